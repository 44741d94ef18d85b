package inputs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// zeros is a reader of n zero bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// squeeze compresses what r yields as the member's name says.
func squeeze(t testing.TB, member string, r io.Reader) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch filepath.Ext(member) {
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	}
	must(t, err)
	_, err = io.Copy(w, r)
	must(t, err, w.Close())
	return b.Bytes()
}

func TestBombsAreCutOffAtTheBound(t *testing.T) {
	const limit = 4 << 20
	for _, member := range []string{"data.tar.xz", "data.tar.gz", "data.tar.zst"} {
		bomb := squeeze(t, member, zeros(16<<20))
		var got int64
		err := readDataLimit(member, bytes.NewReader(bomb), limit, func(r io.Reader) (err error) {
			got, err = io.Copy(io.Discard, r)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "unpacks to more than 4194304 bytes") || got > limit {
			t.Errorf("%s of %d bytes: read %d, %v", member, len(bomb), got, err)
		}
	}
}

// xzWithDictionary makes a stream whose block header has another dictionary.
func xzWithDictionary(t testing.TB, p byte) []byte {
	t.Helper()
	b := squeeze(t, "x.xz", strings.NewReader(strings.Repeat("body", 100)))
	i := bytes.Index(b, []byte{0x21, 0x01})
	if i < 0 {
		t.Fatal("no LZMA2 filter in the stream")
	}
	b[i+2] = p
	return b
}

func TestLargeDictionariesAreRefusedBeforeTheyAreMade(t *testing.T) {
	for _, p := range []byte{31, 37, 40, 63, 255} {
		r, err := newXZReader(bytes.NewReader(xzWithDictionary(t, p)))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err == nil || !strings.Contains(err.Error(), "dictionary of") {
			t.Errorf("property %d: got %v", p, err)
		}
	}
}

func TestXZReadsWhatXZWrites(t *testing.T) {
	tool := needTool(t, "xz")
	body := bytes.Repeat([]byte("All work and no play makes a dull archive.\n"), 30_000)
	noise := squeeze(t, "x.gz", bytes.NewReader(body))
	for _, content := range [][]byte{nil, []byte("x"), body, noise} {
		for _, args := range [][]string{{"-6"}, {"-9e"}, {"-0"}, {"-T2", "--block-size=100000"}, {"--check=none"}, {"--check=sha256"}, {"--check=crc32"}, {"--lzma2=dict=4096"}} {
			cmd := exec.Command(tool, append(args, "-c")...)
			cmd.Stdin = bytes.NewReader(content)
			packed, err := cmd.Output()
			must(t, err)
			r, err := newXZReader(iotestOneByte{bytes.NewReader(packed)})
			must(t, err)
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("xz %v of %d bytes: read %d, %v", args, len(content), len(got), err)
			}
		}
	}
}

// iotestOneByte yields little at a time, so that fields are split.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 3)]) }

// FuzzXZ holds that the guard refuses nothing that the decoder takes, unless it
// is for memory, and that no block behind the guard has a large dictionary.
func FuzzXZ(f *testing.F) {
	f.Add(squeeze(f, "x.xz", strings.NewReader(strings.Repeat("body", 100))))
	f.Add(squeeze(f, "x.xz", strings.NewReader("")))
	f.Add(xzWithDictionary(f, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(r io.Reader, err error) ([]byte, error) {
			if err != nil {
				return nil, err
			}
			return io.ReadAll(io.LimitReader(r, 1<<20))
		}
		guarded, gerr := read(newXZReader(bytes.NewReader(b)))
		if gerr != nil && strings.Contains(gerr.Error(), "dictionary of") {
			return // the decoder alone would set the memory aside
		}
		plain, err := read(xz.ReaderConfig{SingleStream: true}.NewReader(bytes.NewReader(b)))
		if (err == nil) != (gerr == nil) || err == nil && !bytes.Equal(guarded, plain) {
			t.Errorf("guarded: %d bytes, %v; plain: %d bytes, %v", len(guarded), gerr, len(plain), err)
		}
	})
}

// rawTar is a tar archive with headers that archive/tar would not write.
func rawTar(t testing.TB, edit func(h []byte), entries ...entry) []byte {
	t.Helper()
	b := makeTar(t, entries...)
	edit(b[:512])
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestHostileTarHeadersAreRefused(t *testing.T) {
	sparse := makeTar(t, entry{Header: tar.Header{Name: "./zeros", Format: tar.FormatPAX, PAXRecords: map[string]string{
		"XNU.sparse.major": "0", "XNU.sparse.minor": "1", "XNU.sparse.name": "./zeros", "XNU.sparse.size": "1000000000000", "XNU.sparse.numblocks": "1", "XNU.sparse.map": "999999999999,1"}}, body: "x"})
	sparse = bytes.ReplaceAll(sparse, []byte("XNU"), []byte("GNU"))
	for claim, tc := range map[string]struct {
		b    []byte
		want string
	}{
		"a name of 4 GiB": {rawTar(t, func(h []byte) {
			h[156] = 'L'
			copy(h[124:136], "40000000000\x00")
		}, file("././@LongLink", "x")), "entry 0"},
		"a PAX header of 4 GiB": {rawTar(t, func(h []byte) {
			h[156] = 'x'
			copy(h[124:136], "40000000000\x00")
		}, file("./x", "x")), "entry 0"},
		"a file of 8 GiB": {rawTar(t, func(h []byte) {
			copy(h[124:136], "77777777777\x00")
		}, file("./x", "x")), "at most 1073741824 allowed"},
		"a negative size": {rawTar(t, func(h []byte) {
			copy(h[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
		}, file("./x", "x")), "entry 0"},
		"a sparse file": {sparse, "sparse files are not supported"},
		"an odd mode": {rawTar(t, func(h []byte) {
			copy(h[100:108], "7777777\x00")
		}, file("./x", "x")), "has unknown bits"},
	} {
		deb := makeDeb(t, "data.tar", tc.b)
		err := ReadDeb(bytes.NewReader(deb), func(_ DebEntry, r io.Reader) error {
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
}

func TestHostileArHeadersAreRefused(t *testing.T) {
	member := func(name, size string) string {
		return fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10s`\n", name, 0, 0, 0, "100644", size)
	}
	start := "!<arch>\n" + member("debian-binary", "4") + "2.0\n"
	for claim, tc := range map[string]struct{ text, want string }{
		"a negative size":            {start + member("data.tar", "-1"), "is not a number"},
		"a size that is a word":      {start + member("data.tar", "many"), "is not a number"},
		"a size past the end":        {start + member("data.tar", "9999999999") + "x", "data"},
		"another first member":       {"!<arch>\n" + member("data.tar", "0"), "want debian-binary"},
		"another format":             {"!<arch>\n" + member("debian-binary", "4") + "3.0\n", "package format"},
		"a header without its end":   {start + strings.Replace(member("data.tar", "0"), "`", "x", 1), "is damaged"},
		"half a header":              {start + member("data.tar", "0")[:30], "header of an archive member"},
		"members without end":        {start + strings.Repeat(member("x", "0"), 20), "too many members"},
		"a name that is a directory": {start + member("data.tar/../../x", "0"), "compression is not supported"},
	} {
		err := ReadDeb(strings.NewReader(tc.text), func(DebEntry, io.Reader) error { return nil })
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
}

func TestAHostilePackageLeavesNothingBehind(t *testing.T) {
	outside := t.TempDir()
	m := newMirror(t, nil)
	bad := makeDeb(t, "data.tar.xz", makeTar(t, file("./good", "1"), link(tar.TypeSymlink, "./out", outside), file("./out/x", "2"), file("./../../x", "3")))
	m.files["/bad.deb"] = bad
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml"}
	if _, err := f.fetchPackage(t.Context(), locked(m, bad, "/bad.deb")); err == nil || !strings.Contains(err.Error(), "leads out of the package") {
		t.Errorf("got %v", err)
	}
	if left := leftovers(t, f.Cache); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
	// The package itself has the digest that was pinned and stays; nothing was
	// remembered as unpacked from it.
	sweepCheck(t, f.Cache)
	if memos, err := filepath.Glob(filepath.Join(f.Cache.Dir, memoUnpack, "*")); err != nil || len(memos) > 0 {
		t.Errorf("remembered: %v, %v", memos, err)
	}
}

func TestDamagedMemosAreWorkToDoAgain(t *testing.T) {
	m := newMirror(t, nil)
	body := makeDeb(t, "data.tar", makeTar(t, file("./a", "1")))
	m.files["/a.deb"] = body
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml"}
	p := locked(m, body, "/a.deb")
	first, err := f.fetchPackage(t.Context(), p)
	must(t, err)
	for _, text := range []string{"", "{", `{"sha256":"00"}`, `{"sha256":"` + strings.Repeat("0", 64) + `"}`, `{"sha256":"` + strings.Repeat("7", 64) + `"}`, "\x00\x01"} {
		must(t, os.WriteFile(f.Cache.memoPath(memoUnpack, p.SHA256), []byte(text), 0o644))
		if again, err := f.fetchPackage(t.Context(), p); err != nil || again != first {
			t.Errorf("memo %q: got %s, %v, want %s", text, again, err, first)
		}
	}
}

func FuzzVerifyRelease(f *testing.F) {
	m := newMirror(f, demoSuites())
	good := m.files["/debian/dists/bookworm/InRelease"]
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("Origin: Test"), []byte("Origin: Tesu"), 1))
	f.Add([]byte("-----BEGIN PGP SIGNED MESSAGE-----\n\n-----BEGIN PGP SIGNATURE-----")) // the library panics
	keys, err := keyring()
	must(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		// Nothing that a fuzzer can make is signed by Debian.
		if _, err := verifyRelease(b, keys, "bookworm", now); err == nil {
			t.Error("an index without a signature of Debian was trusted")
		}
	})
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte("Package: x\nSource: y (1.0)\nDescription: z\n more\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		fields, err := parseControl(io.LimitReader(bytes.NewReader(b), maxControl))
		if err == nil {
			(&packageFacts{}).control(fields)
		}
	})
}

func FuzzArHeader(f *testing.F) {
	f.Add([]byte(fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", "data.tar.xz", 0, 0, 0, "100644", 4)))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, size, err := arHeader(bytes.NewReader(b))
		if err == nil && (size < 0 || len(name) > 16) {
			t.Errorf("member %q of %d bytes", name, size)
		}
		if len(b) == 0 && !errors.Is(err, io.EOF) {
			t.Errorf("an empty header: %v", err)
		}
	})
}
