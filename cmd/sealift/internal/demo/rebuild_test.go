package demo

import (
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestTheSameImageIsBuiltElsewhere builds the demo image a second time with all
// outputs: in another directory and another time zone, under another user and
// another umask, with one CPU and without a network. Every file must be equal. It
// runs only where SEALIFT_VM is set, as the first build may take minutes.
func TestTheSameImageIsBuiltElsewhere(t *testing.T) {
	if os.Getenv("SEALIFT_VM") == "" {
		t.Skip("builds the demo image: make e2e")
	}
	first := mediumImage(t)
	root, bin := checkout(t)
	second := filepath.Join(t.TempDir(), "elsewhere")
	// A user namespace without a mapping: the builder is nobody. A network
	// namespace without an interface that is up.
	cmd := exec.CommandContext(t.Context(), "unshare", "--user", "--net", "--", "sh", "-c", `umask 077 && test "$(id -u)" != "$0" && exec "$@"`,
		"0", filepath.Join(bin, "sealift"), "image", "build", filepath.Join(root, "profiles", "demo.yaml"),
		"--keys", filepath.Join(root, "build", "test", "keys"), "--cache", filepath.Join(root, "build", "cache"),
		"--out", second, "--output", mediumOutputs, "--offline")
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "TZ=Pacific/Kiritimati", "LC_ALL=C", "TMPDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build elsewhere: %v\n%s", err, out)
	}
	names := func(dir string) []string {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range all {
			out = append(out, e.Name())
		}
		return out
	}
	a, b := names(first), names(second)
	if len(a) < 12 || len(a) != len(b) {
		t.Fatalf("the builds made %v and %v", a, b)
	}
	for i, name := range a {
		if b[i] != name {
			t.Fatalf("the builds made %v and %v", a, b)
		}
		if x, y := digest(t, filepath.Join(first, name)), digest(t, filepath.Join(second, name)); x != y {
			t.Errorf("%s differs: SHA-256 %x and %x", name, x, y)
		}
	}
	t.Logf("equal: %v", a)
}

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}
