package inputs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// controlArchive is a package with nothing but a control archive.
func controlArchive(t testing.TB, name string, member []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {name, member}} {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		b.Write(m.data)
		if len(m.data)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

func controlTar(t testing.TB, control string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./control", Mode: 0o644, Size: int64(len(control))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(control)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTheControlFileSaysWhichSourceAPackageIsBuiltFrom(t *testing.T) {
	for name, c := range map[string]struct{ control, source, version string }{
		"its own":         {"Package: a\nVersion: 1-1\n", "a", "1-1"},
		"another":         {"Package: a\nSource: b\nVersion: 1-1\n", "b", "1-1"},
		"another version": {"Package: a\nSource: b (0.9-3)\nDescription: x\n more: y\n\nSource: c\n", "b", "0.9-3"},
	} {
		f := packageFacts{Source: "a", SourceVersion: "1-1"}
		fields, err := parseControlArchive(bufio.NewReader(bytes.NewReader(controlArchive(t, "control.tar.gz", controlTar(t, c.control)))))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.control(fields)
		if f.Source != c.source || f.SourceVersion != c.version {
			t.Errorf("%s: got %s %s, want %s %s", name, f.Source, f.SourceVersion, c.source, c.version)
		}
	}
	good := controlArchive(t, "control.tar.gz", controlTar(t, "Package: a\n"))
	for name, b := range map[string][]byte{
		"empty":           nil,
		"no archive":      []byte("x"),
		"cut":             good[:len(good)-20],
		"no control":      controlArchive(t, "data.tar.gz", controlTar(t, "Package: a\n")),
		"no fields":       controlArchive(t, "control.tar.gz", controlTar(t, "text\n")),
		"odd compression": controlArchive(t, "control.tar.lz", nil),
	} {
		if got, err := parseControlArchive(bufio.NewReader(bytes.NewReader(b))); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestControlFilesAreReadAsDpkgReadsThem(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, compression := range []string{"xz", "gzip", "none"} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "p", "DEBIAN"), 0o755); err != nil {
			t.Fatal(err)
		}
		control := "Package: tiny\nVersion: 1:2.0-1+b1\nSource: large (1:2.0-1)\nArchitecture: all\nMaintainer: A <a@example.org>\nHomepage: https://example.org/\nDescription: x\n y\n"
		if err := os.WriteFile(filepath.Join(dir, "p", "DEBIAN", "control"), []byte(control), 0o644); err != nil {
			t.Fatal(err)
		}
		deb := filepath.Join(dir, "tiny.deb")
		if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--uniform-compression", "-Z"+compression, "-b", filepath.Join(dir, "p"), deb).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb: %v: %s", err, out)
		}
		got, err := readControl(deb)
		if err != nil {
			t.Errorf("%s: %v", compression, err)
			continue
		}
		for field, value := range got {
			out, err := exec.Command("dpkg-deb", "-f", deb, field).Output()
			if want, _, _ := strings.Cut(string(out), "\n"); err != nil || value != strings.TrimSpace(want) {
				t.Errorf("%s: %s is %q, dpkg-deb says %q (%v)", compression, field, value, want, err)
			}
		}
		if len(got) != 7 {
			t.Errorf("%s: got %v", compression, maps.Collect(maps.All(got)))
		}
	}
}

func FuzzControl(f *testing.F) {
	f.Add(controlArchive(f, "control.tar.gz", controlTar(f, "Package: a\nSource: b (1)\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := parseControlArchive(bufio.NewReader(bytes.NewReader(b)))
		if (err == nil) != (fields != nil) {
			t.Errorf("got %v, %v", fields, err)
		}
		(&packageFacts{}).control(fields)
	})
}
