package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/tree"
)

// file, dir, link and hard are headers of a layer.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Linkname: content}
}
func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}
func hard(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
}

// layerBytes makes a layer. The content of a file stands in Linkname.
func layerBytes(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		var content string
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(content))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func layerFiles(t testing.TB, layers ...[]byte) []Layer {
	t.Helper()
	var out []Layer
	for i, b := range layers {
		name := filepath.Join(t.TempDir(), fmt.Sprint(i))
		must(t, os.WriteFile(name, b, 0o600))
		out = append(out, Layer{File: name, MediaType: types.OCIUncompressedLayer})
	}
	return out
}

func nothing(string) bool { return false }

// list is a tree as a map: "dir", "-> target" or the content.
func list(t testing.TB, tr *tree.Tree) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, tr.Walk(func(name string, n *tree.Node) error {
		switch {
		case name == ".":
		case n.IsDir():
			out[name] = "dir"
		case n.Mode()&fs.ModeSymlink != 0:
			out[name] = "-> " + n.Target()
		default:
			b, err := tr.ReadFile(name, 1<<20)
			if err != nil {
				return err
			}
			out[name] = string(b)
		}
		return nil
	}))
	return out
}

func TestLayersAreAppliedInOrder(t *testing.T) {
	tests := []struct {
		claim  string
		layers [][]tar.Header
		want   map[string]string
	}{
		{"the upper file wins", [][]tar.Header{{file("etc/a", "1")}, {file("etc/a", "2")}}, map[string]string{"etc": "dir", "etc/a": "2"}},
		{"a whiteout removes a file", [][]tar.Header{{file("etc/a", "1"), file("etc/b", "1")}, {file("etc/.wh.a", "")}}, map[string]string{"etc": "dir", "etc/b": "1"}},
		{"a whiteout removes a directory", [][]tar.Header{{file("opt/a/b", "1")}, {file("opt/.wh.a", "")}}, map[string]string{"opt": "dir"}},
		{"a whiteout does not touch its own layer", [][]tar.Header{{file("etc/a", "1")}, {file("etc/a", "2"), file("etc/.wh.a", "")}}, map[string]string{"etc": "dir", "etc/a": "2"}},
		{"a whiteout of nothing means nothing", [][]tar.Header{{dir("etc/"), file("etc/.wh.a", "")}}, map[string]string{"etc": "dir"}},
		{"an opaque directory hides the lower one", [][]tar.Header{{file("etc/a", "1"), file("etc/d/b", "1")}, {file("etc/c", "2"), file("etc/.wh..wh..opq", "")}}, map[string]string{"etc": "dir", "etc/c": "2"}},
		{"a file with a star is no pattern", [][]tar.Header{{file("etc/a", "1"), file("etc/*", "1")}, {file("etc/.wh.*", "")}}, map[string]string{"etc": "dir", "etc/a": "1"}},
		{"a file takes the place of a directory", [][]tar.Header{{file("opt/a/b", "1")}, {file("opt/a", "2")}}, map[string]string{"opt": "dir", "opt/a": "2"}},
		{"a directory takes the place of a link", [][]tar.Header{{dir("etc"), link("opt", "etc")}, {dir("opt"), file("opt/a", "1")}}, map[string]string{"etc": "dir", "opt": "dir", "opt/a": "1"}},
		{"a link in a path is followed inside of the image", [][]tar.Header{{dir("etc"), link("opt", "/etc")}, {file("opt/a", "1")}}, map[string]string{"etc": "dir", "etc/a": "1", "opt": "-> /etc"}},
		{"a hard link is another file", [][]tar.Header{{file("etc/a", "1"), hard("etc/b", "etc/a")}, {file("etc/a", "2")}}, map[string]string{"etc": "dir", "etc/a": "2", "etc/b": "1"}},
		{"names may start with a dot", [][]tar.Header{{dir("./"), file("./etc/a", "1")}}, map[string]string{"etc": "dir", "etc/a": "1"}},
		{"/bin is merged into /usr", [][]tar.Header{{dir("bin"), file("bin/a", "1"), dir("usr/bin"), file("usr/bin/b", "1"), file("lib64/ld", "1")}},
			map[string]string{"usr": "dir", "usr/bin": "dir", "usr/bin/a": "1", "usr/bin/b": "1", "usr/lib64": "dir", "usr/lib64/ld": "1"}},
		{"the links of a merged /usr are every image's", [][]tar.Header{{link("bin", "usr/bin"), file("usr/bin/a", "1")}, {file("bin/b", "2")}}, map[string]string{"usr": "dir", "usr/bin": "dir", "usr/bin/a": "1", "usr/bin/b": "2"}},
		{"a link between what is merged does not lead to itself", [][]tar.Header{{file("usr/bin/a", "1"), link("bin/a", "/usr/bin/a")}, {link("bin/a", "../usr/bin/a")}}, map[string]string{"usr": "dir", "usr/bin": "dir", "usr/bin/a": "1"}},
		{"a link that moves keeps its target", [][]tar.Header{{file("etc/a", "1"), link("bin/a", "../etc/a"), link("bin/b", "a")}}, map[string]string{"etc": "dir", "etc/a": "1", "usr": "dir", "usr/bin": "dir", "usr/bin/a": "-> /etc/a", "usr/bin/b": "-> /bin/a"}},
		{"a whiteout in /bin is of what is in /usr/bin", [][]tar.Header{{file("bin/a", "1"), file("bin/b", "1")}, {file("bin/.wh.a", "")}}, map[string]string{"usr": "dir", "usr/bin": "dir", "usr/bin/b": "1"}},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			var layers [][]byte
			for _, l := range tc.layers {
				layers = append(layers, layerBytes(t, l...))
			}
			tr, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layers...), 1<<20, nothing)
			must(t, err)
			if got := list(t, tr); !maps.Equal(got, tc.want) {
				t.Errorf("got %v\nwant %v", got, tc.want)
			}
		})
	}
}

// TestFlattenAgreesWithTheRegistryClient compares with another implementation,
// for images in which nothing is merged.
func TestFlattenAgreesWithTheRegistryClient(t *testing.T) {
	layers := [][]byte{
		layerBytes(t, dir("etc"), file("etc/a", "1"), file("etc/b", "1"), dir("opt"), dir("opt/x"), file("opt/x/y", "1"), link("srv", "opt"), file("home/u/f", "1")),
		layerBytes(t, file("etc/a", "2"), file("etc/.wh.b", ""), file("opt/x/.wh..wh..opq", ""), file("opt/x/z", "2")),
		layerBytes(t, file(".wh.home", ""), file("etc/b", "3"), hard("etc/c", "etc/b")),
	}
	img := empty.Image
	var err error
	for _, l := range layers {
		img, err = mutate.AppendLayers(img, static.NewLayer(l, types.OCIUncompressedLayer))
		must(t, err)
	}
	rc := mutate.Extract(img)
	defer rc.Close()
	want := map[string]bool{}
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		for name := path.Clean(h.Name); name != "."; name = path.Dir(name) {
			want[name] = true
		}
	}
	tr, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layers...), 1<<20, nothing)
	must(t, err)
	got := map[string]bool{}
	for name := range list(t, tr) {
		got[name] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

func TestEveryCompressionIsRead(t *testing.T) {
	raw := layerBytes(t, file("etc/a", "1"))
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, err := g.Write(raw)
	must(t, err, g.Close())
	z, err := zstd.NewWriter(&zs)
	must(t, err)
	_, err = z.Write(raw)
	must(t, err, z.Close())
	for media, b := range map[types.MediaType][]byte{
		types.OCIUncompressedLayer: raw, types.OCILayer: gz.Bytes(), types.OCILayerZStd: zs.Bytes(),
		types.DockerUncompressedLayer: raw, types.DockerLayer: gz.Bytes(),
	} {
		l := layerFiles(t, b)
		l[0].MediaType = media
		tr, err := Flatten(t.Context(), t.TempDir(), l, 1<<20, nothing)
		if err != nil {
			t.Errorf("%s: %v", media, err)
		} else if list(t, tr)["etc/a"] != "1" {
			t.Errorf("%s: %v", media, list(t, tr))
		}
	}
}

func TestOwnersBecomeRootAndLoseTheirPrivileges(t *testing.T) {
	mode := func(name string, mode int64, uid, gid int) tar.Header {
		h := file(name, "x")
		h.Mode, h.Uid, h.Gid = mode, uid, gid
		return h
	}
	tr, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layerBytes(t,
		mode("usr/bin/su", 0o4755, 0, 0), mode("usr/bin/chage", 0o2755, 0, 42), mode("usr/bin/other", 0o6755, 1000, 1000), mode("usr/bin/typed", 0o100755, 0, 0),
	)), 1<<20, nothing)
	must(t, err)
	for name, want := range map[string]fs.FileMode{
		"usr/bin/su": fs.ModeSetuid | 0o755, "usr/bin/chage": 0o755, "usr/bin/other": 0o755, "usr/bin/typed": 0o755,
	} {
		n, err := tr.Lookup(name)
		must(t, err)
		if n.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, n.Mode(), want)
		}
	}
}

func TestWhatIsLeftOutIsNotRead(t *testing.T) {
	out := func(name string) bool { return name == "var" || name == "usr/lib/modules" }
	tr, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layerBytes(t,
		file("var/lib/x", strings.Repeat("x", 100)), link("var", "/etc"), file("lib/modules/6/x.ko", "x"), file("usr/lib/modules.conf", "x"),
	)), 10, out)
	must(t, err)
	if got := list(t, tr); len(got) != 3 || got["usr/lib/modules.conf"] != "x" {
		t.Errorf("got %v", got)
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	tests := []struct {
		claim   string
		headers []tar.Header
		want    string
	}{
		{"absolute name", []tar.Header{file("/etc/a", "")}, "name is absolute"},
		{"name that leads out", []tar.Header{file("../a", "")}, "name leads out of the image"},
		{"name that leads out further down", []tar.Header{file("a/../../b", "")}, "name leads out of the image"},
		{"link that leads out", []tar.Header{link("etc/a", "../../b")}, "leads out of the image"},
		{"absolute link that leads out", []tar.Header{link("etc/a", "/../b")}, "leads out of the image"},
		{"link to nothing at all", []tar.Header{link("etc/a", "")}, "target of the link is empty"},
		{"device", []tar.Header{{Typeflag: tar.TypeChar, Name: "etc/a"}}, "neither file, directory nor link"},
		{"block device", []tar.Header{{Typeflag: tar.TypeBlock, Name: "etc/a"}}, "neither file, directory nor link"},
		{"pipe", []tar.Header{{Typeflag: tar.TypeFifo, Name: "etc/a"}}, "neither file, directory nor link"},
		{"hard link to nothing", []tar.Header{hard("etc/a", "etc/b")}, "hard link etc/a"},
		{"hard link to a directory", []tar.Header{dir("etc"), hard("a", "etc")}, "is no regular file"},
		{"hard link that leads out", []tar.Header{hard("etc/a", "../b")}, "name leads out of the image"},
		{"long component", []tar.Header{file("etc/"+strings.Repeat("a", 256), "")}, "component of 256 bytes"},
		{"long name", []tar.Header{file(strings.Repeat("a/", 2048)+"b", "")}, "name is empty or too long"},
		{"deep name", []tar.Header{file(strings.Repeat("a/", tree.MaxDepth)+"b", "")}, "name of 129 components"},
		{"deep link", []tar.Header{hard("a", strings.Repeat("a/", tree.MaxDepth)+"b")}, "name of 129 components"},
		{"file below a file", []tar.Header{file("etc", ""), file("etc/a", "")}, "not a directory"},
		{"two files in one place", []tar.Header{file("bin/a", "1"), file("usr/bin/a", "2")}, "bin/a and usr/bin/a are two files, but usr/bin/a is where both belong"},
		{"a file for /bin", []tar.Header{file("bin", "1")}, "neither directory nor link"},
		{"links in a circle", []tar.Header{link("a", "b"), link("b", "a"), file("a/x", "")}, "symbolic links"},
		{"whiteout of a whiteout", []tar.Header{file("etc/.wh..wh.a", "")}, "not a whiteout that the image specification has"},
		{"whiteout of nothing", []tar.Header{file("etc/.wh.", "")}, "not a whiteout"},
		{"whiteout that leads up", []tar.Header{file("etc/.wh...", "")}, "not a whiteout"},
		{"too much content", []tar.Header{file("etc/a", strings.Repeat("x", 600)), file("etc/b", strings.Repeat("x", 600))}, "unpacks to more than 1024 bytes"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			if _, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layerBytes(t, tc.headers...)), 1024, nothing); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	for claim, media := range map[string]types.MediaType{"foreign": types.OCIRestrictedLayer, "config": types.OCIConfigJSON, "none": ""} {
		l := layerFiles(t, layerBytes(t))
		l[0].MediaType = media
		if _, err := Flatten(t.Context(), t.TempDir(), l, 1024, nothing); err == nil {
			t.Errorf("a layer of type %s was accepted", claim)
		}
	}
}

func TestUpperLayersTogetherAreBounded(t *testing.T) {
	a, b := layerBytes(t, file("a", strings.Repeat("x", 600))), layerBytes(t, file("b", strings.Repeat("x", 600)))
	if _, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, a, b), 1024, nothing); err == nil || !strings.Contains(err.Error(), "layer 2 of 2: the files have 1200 bytes, at most 1024 allowed") {
		t.Errorf("got %v", err)
	}
	b = layerBytes(t, file("a", strings.Repeat("y", 600)))
	if _, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, a, b), 1024, nothing); err != nil {
		t.Errorf("a file that replaces another: %v", err)
	}
}

// zeros is a layer with a file of n zeros, compressed.
func zeros(t testing.TB, n int64) Layer {
	t.Helper()
	name := filepath.Join(t.TempDir(), "layer")
	out, err := os.Create(name)
	must(t, err)
	z := gzip.NewWriter(out)
	w := tar.NewWriter(z)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: n}))
	for block := make([]byte, 1<<20); n > 0; n -= int64(len(block)) {
		_, err := w.Write(block[:min(n, int64(len(block)))])
		must(t, err)
	}
	must(t, w.Close(), z.Close(), out.Close())
	return Layer{File: name, MediaType: types.OCILayer}
}

func TestContentIsNotHeldInMemory(t *testing.T) {
	l, spools := zeros(t, 64<<20), t.TempDir()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tr, err := Flatten(t.Context(), spools, []Layer{l, l}, 64<<20, nothing)
	must(t, err)
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 16 {
		t.Errorf("two layers of 64 MiB took %d MiB", got)
	}
	n, err := tr.Lookup("big")
	must(t, err)
	c, err := n.Open()
	must(t, err)
	if got, err := io.Copy(io.Discard, c); got != 64<<20 || err != nil {
		t.Errorf("the file has %d bytes, %v", got, err)
	}
	must(t, c.Close())
	if left, err := os.ReadDir(spools); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAllLayersHaveOneBudget(t *testing.T) {
	var layers [][]byte
	for range 5 {
		layers = append(layers, layerBytes(t, file("a", strings.Repeat("x", 1000))))
	}
	if _, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layers[:4]...), 1024, nothing); err != nil {
		t.Errorf("a file that is replaced three times: %v", err)
	}
	if _, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, layers...), 1024, nothing); err == nil || !strings.Contains(err.Error(), "layer 5 of 5: with the layers below, unpacks to more than 4096 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestTheTreeOfAllLayersIsBounded(t *testing.T) {
	deep := layerBytes(t, dir(strings.Repeat("a/", 50)+"a"), link("l", strings.Repeat("a/", 2000)))
	for want, near := range map[string]func(*flattener){
		"more than 1000000 files and directories in all": func(fl *flattener) { fl.nodes = maxNodes - 50 },
		"more than 67108864 bytes of names in all":       func(fl *flattener) { fl.names = maxNames - 4000 },
		"more than 500000 entries in all":                func(fl *flattener) { fl.entries = maxLayerEntries - 1 },
	} {
		fl := newFlattener(t.Context(), t.TempDir(), 1024, nothing)
		must(t, fl.add(bytes.NewReader(deep)))
		fl = newFlattener(t.Context(), t.TempDir(), 1024, nothing)
		near(fl)
		if err := fl.add(bytes.NewReader(deep)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// What an opaque root takes away was there.
	fl := newFlattener(t.Context(), t.TempDir(), 1024, nothing)
	must(t, fl.add(bytes.NewReader(deep)), fl.add(bytes.NewReader(layerBytes(t, file(".wh..wh..opq", "")))))
	if fl.nodes != 52 || fl.tree.Added() != 0 {
		t.Errorf("%d nodes were counted", fl.nodes)
	}
}

func TestFlattenStopsWithItsContext(t *testing.T) {
	l := zeros(t, 8<<20)
	for claim, after := range map[string]int{"at once": 0, "while it reads": 3} {
		ctx := &counted{Context: t.Context(), left: after}
		if _, err := Flatten(ctx, t.TempDir(), []Layer{l}, 64<<20, nothing); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", claim, err)
		}
	}
	// While it applies: the context of an empty layer is asked for each entry.
	layer := layerBytes(t, dir("a"), dir("b"), dir("c"))
	fl := newFlattener(t.Context(), t.TempDir(), 1024, nothing)
	fl.left = func(name string) bool {
		if name == "c" {
			fl.ctx = &counted{Context: t.Context(), left: 1}
		}
		return false
	}
	if err := fl.add(bytes.NewReader(layer)); !errors.Is(err, context.Canceled) {
		t.Errorf("while it applies: got %v", err)
	}
	if _, err := fl.tree.Lookup("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it went on: %v", err)
	}
}

// counted is a context that ends after it was asked a few times.
type counted struct {
	context.Context
	left int
}

func (c *counted) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func TestArchiveWithOneImageIsASource(t *testing.T) {
	name := filepath.Join(t.TempDir(), "base.tar")
	must(t, os.WriteFile(name, archive(t, sample(t)), 0o600))
	a := Archive{File: name}
	img, err := Resolve(t.Context(), a, "base.invalid/image:base", "amd64")
	must(t, err)
	raw, _, err := a.Manifest(t.Context(), AtDigest("base.invalid/image:base", img.Digest))
	must(t, err)
	if !bytes.Equal(raw, img.Manifest) {
		t.Error("the manifest by digest is another")
	}
	if _, err := Resolve(t.Context(), a, "base.invalid/image:base", "arm64"); err == nil || !strings.Contains(err.Error(), "want linux/arm64") {
		t.Errorf("another architecture: %v", err)
	}
	rc, err := a.Blob(t.Context(), "", img.Blobs[1].Digest)
	must(t, err)
	b, err := io.ReadAll(rc)
	must(t, err, rc.Close())
	tr, err := Flatten(t.Context(), t.TempDir(), layerFiles(t, b), 1<<20, nothing)
	must(t, err)
	if _, err := tr.Lookup("usr/bin/hello"); err != nil {
		t.Error(err)
	}
	img.Blobs[1].Digest.Hex = strings.Repeat("0", 64)
	if _, err := a.Blob(t.Context(), "", img.Blobs[1].Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a blob that is not there: %v", err)
	}
	must(t, os.WriteFile(name, []byte("no archive"), 0o600))
	if _, _, err := a.Manifest(t.Context(), "x"); err == nil {
		t.Error("a file that is no archive was read")
	}
}

func FuzzFlatten(f *testing.F) {
	f.Add(layerBytes(f, dir("etc"), file("etc/a", "1"), file("etc/.wh.b", ""), link("bin", "usr/bin"), hard("etc/c", "etc/a")))
	f.Add(layerBytes(f, file("../x", ""), link("a", "/..")))
	f.Add([]byte("no tar"))
	spools := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		fl := newFlattener(t.Context(), spools, 1<<16, nothing)
		defer func() { must(t, fl.spool.close()) }()
		for range 2 { // the second layer finds what the first left
			if fl.add(bytes.NewReader(b)) != nil {
				return
			}
		}
		tr := fl.tree
		must(t, tr.Walk(func(name string, n *tree.Node) error {
			if path.IsAbs(name) || strings.HasPrefix(name, "..") || n.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				t.Errorf("%q has mode %v", name, n.Mode())
			}
			return nil
		}))
	})
}

func FuzzArchive(f *testing.F) {
	f.Add(archive(f, sample(f)))
	f.Add([]byte("no tar"))
	dirName := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		a := Archive{File: filepath.Join(dirName, "base.tar")}
		must(t, os.WriteFile(a.File, b, 0o600))
		img, err := Resolve(t.Context(), a, "base.invalid/image:base", "amd64")
		if err == nil && img.Digest != hashOf(img.Manifest) {
			t.Error("the digest is not that of the manifest")
		}
	})
}
