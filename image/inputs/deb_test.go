package inputs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// needTool skips the test without the program, or fails it where every tool
// has to be there.
func needTool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("%s is missing: %v", name, err)
		}
		t.Skipf("%s is missing", name)
	}
	return p
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// makeDeb wraps a tar archive as a package, compressed as the name says.
func makeDeb(t testing.TB, member string, data []byte) []byte {
	t.Helper()
	var body bytes.Buffer
	var w io.WriteCloser
	var err error
	switch filepath.Ext(member) {
	case ".xz":
		w, err = xz.NewWriter(&body)
	case ".gz":
		w = gzip.NewWriter(&body)
	case ".zst":
		w, err = zstd.NewWriter(&body)
	default:
		w = nopCloser{&body}
	}
	must(t, err)
	_, err = w.Write(data)
	must(t, err, w.Close())
	out := bytes.NewBufferString("!<arch>\n")
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {member, body.Bytes()}} {
		fmt.Fprintf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.body))
		out.Write(m.body)
		if len(m.body)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type entry struct {
	tar.Header
	body string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(e.body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func file(name, body string) entry { return entry{Header: tar.Header{Name: name}, body: body} }

func link(kind byte, name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: kind, Linkname: target}}
}

func TestReadDebReadsEveryCompression(t *testing.T) {
	data := makeTar(t,
		entry{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}},
		entry{Header: tar.Header{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755}},
		entry{Header: tar.Header{Name: "./usr/bin/x", Mode: 0o4755}, body: "program"},
		link(tar.TypeSymlink, "./bin/y", "../usr/bin/x"),
		link(tar.TypeSymlink, "./bin/abs", "/usr/bin/x"),
		link(tar.TypeLink, "./usr/bin/z", "./usr/bin/x"),
	)
	want := "usr/bin drwxr-xr-x\nusr/bin/x urwxr-xr-x program\nbin/y Lrwxrwxrwx ../usr/bin/x\n" +
		"bin/abs Lrwxrwxrwx /usr/bin/x\nusr/bin/z urwxr-xr-x = usr/bin/x\n"
	for _, member := range []string{"data.tar", "data.tar.xz", "data.tar.gz", "data.tar.zst"} {
		var got strings.Builder
		err := ReadDeb(bytes.NewReader(makeDeb(t, member, data)), func(e DebEntry, r io.Reader) error {
			fmt.Fprintf(&got, "%s %s", e.Name, e.Mode)
			switch {
			case e.Mode&fs.ModeSymlink != 0:
				fmt.Fprintf(&got, " %s", e.Link)
			case e.Hard != "":
				fmt.Fprintf(&got, " = %s", e.Hard)
			case e.Mode.IsRegular():
				b, err := io.ReadAll(r)
				must(t, err)
				fmt.Fprintf(&got, " %s", b)
			}
			got.WriteByte('\n')
			return nil
		})
		if err != nil || got.String() != want {
			t.Errorf("%s: %v\ngot:\n%s\nwant:\n%s", member, err, got.String(), want)
		}
	}
}

func TestReadDebReadsWhatDpkgWrites(t *testing.T) {
	dpkg := needTool(t, "dpkg-deb")
	root := t.TempDir()
	must(t,
		os.MkdirAll(filepath.Join(root, "DEBIAN"), 0o755),
		os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755),
		os.WriteFile(filepath.Join(root, "DEBIAN/control"), []byte("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"), 0o644),
		os.WriteFile(filepath.Join(root, "usr/bin/x"), bytes.Repeat([]byte("body"), 70_000), 0o755),
	)
	for _, z := range []string{"xz", "gzip", "none", "zstd"} {
		deb := filepath.Join(t.TempDir(), "x.deb")
		if out, err := exec.Command(dpkg, "--root-owner-group", "-Z"+z, "-b", root, deb).CombinedOutput(); err != nil {
			t.Logf("this dpkg-deb writes no %s: %v: %s", z, err, out)
			continue
		}
		size := int64(0)
		err := ReadDebFile(deb, func(e DebEntry, r io.Reader) error {
			n, err := io.Copy(io.Discard, r)
			size += n
			return err
		})
		if err != nil || size != 280_000 {
			t.Errorf("%s: read %d bytes of content, %v, want 280000", z, size, err)
		}
	}
}

func TestReadDebRefusesWhatLeavesTheRoot(t *testing.T) {
	tests := []struct {
		claim   string
		entries []entry
		want    string
	}{
		{"absolute name", []entry{file("/etc/passwd", "")}, "not relative"},
		{"name with ..", []entry{file("./usr/../../etc/passwd", "")}, "leads out of the package"},
		{"link above the root", []entry{link(tar.TypeSymlink, "./usr/x", "../../etc")}, "leads out of the root"},
		{"absolute link above the root", []entry{link(tar.TypeSymlink, "./usr/a/b/x", "/usr/../../x")}, "leads out of the root"},
		{"empty link", []entry{link(tar.TypeSymlink, "./usr/x", "")}, "target of the link is empty"},
		{"hard link out", []entry{link(tar.TypeLink, "./x", "../etc/shadow")}, "leads out of the package"},
		{"hard link to nothing", []entry{link(tar.TypeLink, "./x", "./y")}, "no earlier file"},
		{"hard link to a link", []entry{link(tar.TypeSymlink, "./y", "z"), link(tar.TypeLink, "./x", "./y")}, "no earlier file"},
		{"block device", []entry{{Header: tar.Header{Name: "./dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8}}}, "neither file, directory nor link"},
		{"character device", []entry{{Header: tar.Header{Name: "./dev/mem", Typeflag: tar.TypeChar, Devmajor: 1}}}, "neither file, directory nor link"},
		{"fifo", []entry{{Header: tar.Header{Name: "./f", Typeflag: tar.TypeFifo}}}, "neither file, directory nor link"},
		{"file twice", []entry{file("./a", "1"), file("./a", "2")}, "came before"},
		{"file through a link", []entry{link(tar.TypeSymlink, "./a", "b"), file("./a", "2")}, "came before"},
		{"directory in place of a file", []entry{file("./a", ""), {Header: tar.Header{Name: "./a/", Typeflag: tar.TypeDir}}}, "came before"},
		{"long name", []entry{file("./"+strings.Repeat("n/", 3000)+"x", "")}, "too long"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			err := ReadDeb(bytes.NewReader(makeDeb(t, "data.tar", makeTar(t, tc.entries...))), func(DebEntry, io.Reader) error { return nil })
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestReadDebRefusesDamagedArchives(t *testing.T) {
	good := makeDeb(t, "data.tar.xz", makeTar(t, file("./a", strings.Repeat("a", 100_000))))
	sink := func(_ DebEntry, r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	must(t, ReadDeb(bytes.NewReader(good), sink))
	for n := range good {
		if n%7 == 0 && ReadDeb(bytes.NewReader(good[:n]), sink) == nil {
			t.Fatalf("a package cut to %d of %d bytes was read", n, len(good))
		}
	}
	if err := ReadDeb(strings.NewReader("!<arch>\n"), sink); err == nil {
		t.Error("an empty archive was read")
	}
	if err := ReadDeb(bytes.NewReader(makeDeb(t, "data.tar.lz", nil)), sink); err == nil || !strings.Contains(err.Error(), "not supported") {
		t.Errorf("unknown compression: %v", err)
	}
	stop := errors.New("stop")
	if err := ReadDeb(bytes.NewReader(good), func(DebEntry, io.Reader) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error is lost: %v", err)
	}
}

func FuzzReadDeb(f *testing.F) {
	for _, member := range []string{"data.tar", "data.tar.gz", "data.tar.zst"} {
		f.Add(makeDeb(f, member, makeTar(f, file("./usr/bin/x", "body"), link(tar.TypeSymlink, "./y", "usr/bin/x"), link(tar.TypeLink, "./z", "./usr/bin/x"))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Errors are expected; what is let through must be inside the root.
		_ = ReadDeb(bytes.NewReader(b), func(e DebEntry, r io.Reader) error {
			if filepath.IsAbs(e.Name) || !filepath.IsLocal(e.Name) {
				t.Errorf("entry %q is not inside the root", e.Name)
			}
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			return err
		})
	})
}
