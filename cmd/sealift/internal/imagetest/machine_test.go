package imagetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/predict"
)

var _, blankVars = Firmware("amd64")

func needFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("REQUIRE_TOOLS") == "" {
		t.Skipf("%s is not installed", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func needTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func TestVariablesAreAddedBehindThoseThatAreThere(t *testing.T) {
	blank := needFile(t, blankVars)
	first := variable{guid.GUID{1}, "First", 7, []byte("odd")}
	second := variable{guid.GUID{2}, "Second", 7, bytes.Repeat([]byte("x"), 1000)}
	one, err := addVariables(blank, []variable{first})
	if err != nil {
		t.Fatal(err)
	}
	both, err := addVariables(one, []variable{second})
	if err != nil {
		t.Fatal(err)
	}
	atOnce, err := addVariables(blank, []variable{first, second})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(both, atOnce) {
		t.Error("one after the other gives another store than both at once")
	}
	if len(both) != len(blank) || bytes.Equal(one, blank) || bytes.Equal(one, both) {
		t.Error("the store has another size, or nothing was added")
	}
	if !bytes.Contains(both, append(appendUTF16(nil, "Second"), second.data...)) {
		t.Error("the second variable is not in the store")
	}
	if _, err := addVariables(blank, []variable{{guid.GUID{1}, "Huge", 7, make([]byte, len(blank))}}); err == nil || !strings.Contains(err.Error(), "no room for variable Huge") {
		t.Errorf("a variable as large as the store: %v", err)
	}
}

// Blank NVRAM of arm64 is formatted as Debian's with keys in it is.
func TestNVRAMOfZerosIsFormatted(t *testing.T) {
	_, vars := Firmware("arm64")
	blank := needFile(t, vars)
	want := needFile(t, "/usr/share/AAVMF/AAVMF_VARS.ms.fd")
	got, err := formatted(blank)
	if err != nil {
		t.Fatal(err)
	}
	const headers = volumeHeader + 16 + storeHeader
	if !bytes.Equal(got[:headers], want[:headers]) {
		t.Errorf("headers are\n%x, want\n%x", got[:headers], want[:headers])
	}
	if len(got) != len(blank) || !allErased(got[headers:armVolume]) {
		t.Error("the store is not erased, or has another size")
	}
	again, err := formatted(got)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("formatted again, it changes (%v)", err)
	}
}

func FuzzAddVariables(f *testing.F) {
	blank := needFile(f, blankVars)
	start, end, err := variableStore(blank)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blank[:start+64])
	f.Add(blank[:min(end, 4096)])
	f.Add([]byte("_FVH"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := addVariables(b, []variable{{guid.GUID{1}, "V", 7, []byte("data")}})
		if err == nil && len(out) != len(b) {
			t.Errorf("%d bytes became %d", len(b), len(out))
		}
	})
}

// An installed disk is what sgdisk finds nothing wrong with, and what package
// predict expects firmware to measure.
func TestTheDiskIsAsAnInstallerLeavesIt(t *testing.T) {
	sgdisk := needTool(t, "sgdisk")
	id, partitions, err := disk.AB("amd64", disk.Sizes{ESP: 64 << 20, Slot: 8 << 20, Verity: 1 << 20}, [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := disk.Plan(id, partitions)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image, installed := filepath.Join(dir, "image"), filepath.Join(dir, "installed")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(l.Size), l.WriteTable(f)); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("esp"), 700000)
	if _, err := f.WriteAt(content, 1<<20+512); err != nil {
		t.Fatal(err)
	}
	const size = 200 << 20
	if err := os.WriteFile(installed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(installed, size); err != nil {
		t.Fatal(err)
	}
	own := guid.GUID{9, 8, 7}
	if err := writeDisk(t.Context(), installed, image, size, own); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(sgdisk, "--verify", installed).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk --verify: %v\n%s", err, out)
	}
	b, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[1<<20+512:][:len(content)], content) {
		t.Error("the content was not copied")
	}
	want, err := predict.GPTEvent(manifest.Disk{Size: l.Size, Partitions: l.Partitions}, predict.Installed{Disk: own, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[512:512+92], want[:92]) || !bytes.Equal(b[1024:1024+5*128], want[100:]) {
		t.Error("the table differs from the predicted event")
	}
	if err := writeDisk(t.Context(), installed, image, l.Size-512, own); err == nil {
		t.Error("an image larger than the disk was written")
	}
}

func TestTheServiceIsWhereTheImageLooksForIt(t *testing.T) {
	for url, want := range map[string]string{
		"https://10.77.2.1:8443":         "10.77.2.1:8443",
		"https://attest.example.com":     "198.51.100.1:443",
		"https://attest.example.com:99/": "198.51.100.1:99",
	} {
		if e, err := parseEndpoint(url); err != nil || e.addr.String() != want {
			t.Errorf("%s: %s (%v), want %s", url, e.addr, err, want)
		}
	}
	for _, url := range []string{"http://10.77.2.1", "https://", "https://[fd00::1]:8443", "https://127.0.0.1", "https://192.0.2.7:1", "https://x:99999", "::"} {
		if e, err := parseEndpoint(url); err == nil {
			t.Errorf("%s: %s, want an error", url, e.addr)
		}
	}
}

func TestTheStatementNamesWhatWasBooted(t *testing.T) {
	r := &Report{Result: Failed, Image: "demo 1", Checks: []Check{{Name: "PCR 4", OK: true}, {Name: "PCR 5"}},
		manifest: manifest.SHA256{1}, disk: Subject{Name: "disk.raw", Digest: map[string]manifest.SHA256{"sha256": {2}}}}
	b, err := r.Statement()
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Type          string `json:"_type"`
		PredicateType string
		Subject       []struct {
			Name   string
			Digest map[string]string
		}
		Predicate struct {
			Result string
			Checks []map[string]any
		}
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != PredicateType || len(s.Subject) != 2 ||
		s.Subject[0].Name != "manifest.json" || !strings.HasPrefix(s.Subject[0].Digest["sha256"], "0100") || s.Subject[1].Name != "disk.raw" ||
		s.Predicate.Result != "failed" || len(s.Predicate.Checks) != 2 || s.Predicate.Checks[1]["ok"] != false {
		t.Errorf("statement is %s", b)
	}
	if n := r.Failures(); n != 1 {
		t.Errorf("%d failures, want 1", n)
	}
	if err := CheckStatement(b, manifest.SHA256{1}, false); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"of another image":        CheckStatement(b, manifest.SHA256{3}, false),
		"with another result":     CheckStatement(b, manifest.SHA256{1}, true),
		"with a result made up":   CheckStatement(bytes.Replace(b, []byte(`"failed"`), []byte(`"passed"`), 1), manifest.SHA256{1}, true),
		"of another type":         CheckStatement(bytes.Replace(b, []byte("image-test/v1"), []byte("image-test/v2"), 1), manifest.SHA256{1}, false),
		"that is not a statement": CheckStatement([]byte("{"), manifest.SHA256{1}, false),
		"that is empty":           CheckStatement(nil, manifest.SHA256{1}, false),
	} {
		if err == nil {
			t.Errorf("a statement %s would be signed", name)
		}
	}
}
