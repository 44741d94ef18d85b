package demo

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/cmd/sealift/internal/progress"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

// TestOneBox is the demo as a test. It takes minutes, so it runs only where
// SEALIFT_VM is set; SEALIFT_BIN is the directory of the built programs.
func TestOneBox(t *testing.T) {
	if os.Getenv("SEALIFT_VM") == "" {
		t.Skip("the long VM run: make e2e")
	}
	if os.Geteuid() != 0 {
		cmd := exec.Command("unshare", "-Urn", "--", os.Args[0], "-test.run=^TestOneBox$", "-test.v", "-test.timeout=60m")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("in a user namespace: %v", err)
		}
		return
	}
	root, bin := checkout(t)
	dir := filepath.Join(root, "build", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := New(t.Context(), Options{
		Dir: dir, Cache: filepath.Join(root, "build", "cache"), Profile: filepath.Join(root, "profiles", "demo.yaml"),
		Sealift: filepath.Join(bin, "sealift"), Agent: filepath.Join(bin, "sealift-agent"),
		Log:      progress.New(os.Stderr, progress.Plain, time.Now),
		WriteLog: filepath.Join(dir, "writes.log"),
	})
	defer d.Close()
	disk := &diskKeyOracle{d: d}
	// What other people's tools say when a step is over.
	after := map[string]func(*testing.T){
		"disk key: another one is asked for":                    disk.asked,
		"disk key: changed by the next boot":                    disk.changed,
		"disk key: the boot after opens with it":                disk.opened,
		"SHA-384: a box without SHA-256, from nothing to Ready": func(t *testing.T) { wantBanks(t, d.box384, "sha384") },
		"SHA-384: the same with both banks":                     func(t *testing.T) { wantBanks(t, d.box384, "sha256", "sha384") },
	}
	for _, s := range d.Steps() {
		if !t.Run(s.Name, func(t *testing.T) {
			seen, err := s.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Log(seen)
			if look := after[s.Name]; look != nil {
				look(t)
			}
			delete(after, s.Name)
		}) {
			t.Fatalf("step %q failed; what builds on it was not run", s.Name)
		}
	}
	for name := range after {
		t.Errorf("there is no step %q", name)
	}
	for _, f := range d.Timings() {
		t.Logf("%s: %.1f s (goal: at most %.0f s)", f.What, f.Took.Seconds(), f.Goal.Seconds())
	}
}

// wantBanks checks, with tpm2-tools, which PCR banks are active in the TPM of a box
// that is off.
func wantBanks(t *testing.T, b *vm.Box, want ...string) {
	t.Helper()
	device := tpmtest.OpenState(t, filepath.Join(b.Dir, "tpm"))
	out, err := exec.Command(tpmtest.Tool(t, "tpm2_getcap"), "-T", "swtpm:path="+device.Socket, "pcrs").CombinedOutput()
	if err != nil {
		t.Fatalf("tpm2_getcap: %v\n%s", err, out)
	}
	var got []string
	for _, m := range regexp.MustCompile(`(sha\d+): \[ 0, 1,`).FindAllSubmatch(out, -1) {
		got = append(got, string(m[1]))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the TPM has the banks %q, want %q:\n%s", got, want, out)
	}
}

// checkout returns the directory of the repository, and that of the built
// programs.
func checkout(t *testing.T) (root, bin string) {
	t.Helper()
	root, err := filepath.Abs("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	if bin = os.Getenv("SEALIFT_BIN"); bin == "" {
		bin = filepath.Join(root, "bin")
	}
	return root, bin
}
