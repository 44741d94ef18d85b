package sbom

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func sum(s string) manifest.SHA256 { return sha256.Sum256([]byte(s)) }

const imagesDir = "/var/lib/images"

// programOnce builds the program of testdata once for all tests.
var programOnce = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "sealift-sbom-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "program")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", file, "./testdata/program").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	return os.ReadFile(file)
})

// goProgram is a Go program with a module.
func goProgram(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, must[[]byte](t)(programOnce()), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// sample is an image with everything that an inventory tells apart.
func sample(t testing.TB) Input {
	t.Helper()
	root, initramfs := tree.New(), tree.New()
	add := func(tr *tree.Tree, name, content string, exec bool) {
		t.Helper()
		mode := os.FileMode(0o644)
		if exec {
			mode = 0o755
		}
		if err := tr.WriteFile(name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	add(root, "/usr/bin/runc", "the program runc", true)
	add(root, "/usr/lib/libc.so.6", "the C library", true)
	add(root, "/etc/os-release", "ID=sealift\n", false)
	add(root, "/etc/empty", "", false)
	add(root, "/usr/share/a file with <odd> \"name\"", "x", false)
	if err := root.Symlink("libc.so.6", "/usr/lib/libc.so"); err != nil {
		t.Fatal(err)
	}
	for _, place := range []struct {
		tr   *tree.Tree
		name string
	}{{root, "/usr/lib/agent"}, {initramfs, "/init"}} {
		if err := place.tr.AddFile(place.name, goProgram(t), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var archive bytes.Buffer
	if err := oci.WriteArchive(&archive, oci.Image{Name: "docker.io/sealift/hello:v1", Arch: "amd64", Program: goProgram(t), Path: "/hello"}); err != nil {
		t.Fatal(err)
	}
	add(root, imagesDir+"/hello.tar", archive.String(), false)
	return Input{
		Name: "demo", Version: "1.0.0", Arch: "amd64", Digest: sum("disk"), Epoch: time.Unix(1_780_000_000, 0), Tool: "v0.1.0",
		ImagesDir: imagesDir, Workers: 2,
		Places: []Place{{"root", root}, {"initramfs", initramfs}},
		Blobs:  []Blob{{"uki", "linux", []byte("a kernel")}},
		Packages: []Package{
			{
				Name: "runc", Version: "1.1.5+ds1-1+deb12u1", Arch: "amd64", Source: "runc", SourceVersion: "1.1.5+ds1-1+deb12u1",
				SHA256: sum("runc.deb"), URL: "http://deb.debian.org/debian/pool/main/r/runc/runc_1.1.5.deb", Homepage: "https://github.com/opencontainers/runc",
				Licenses: ParseCopyright("runc", []byte("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Apache-2.0\n\nFiles: x\nLicense: GPL-2+ or odd licence\n text\n")),
				Files:    map[manifest.SHA256][]string{sum("the program runc"): {"usr/sbin/runc"}},
			},
			{
				Name: "libc6", Version: "2.36-9", Arch: "amd64", Source: "glibc", SourceVersion: "2.36-9", SHA256: sum("libc6.deb"),
				Files: map[manifest.SHA256][]string{sum("the C library"): {"lib/libc.so.6"}, sum(""): {"etc/nothing"}},
			},
			{
				Name: "linux-image-cloud-amd64", Version: "6.1.1-1", Arch: "amd64", Source: "linux", SourceVersion: "6.1.1-1", SHA256: sum("linux.deb"),
				Files: map[manifest.SHA256][]string{sum("a kernel"): {"boot/vmlinuz-6.1.0"}},
			},
		},
	}
}

func scan(t testing.TB, in Input) *Inventory {
	t.Helper()
	return must[*Inventory](t)(Scan(t.Context(), in))
}

func TestEveryFileIsListedWithWhereItComesFrom(t *testing.T) {
	v := scan(t, sample(t))
	from := map[string]string{}
	for _, f := range v.Files {
		kind := ""
		if c, ok := v.Component(f.From); ok {
			kind = c.Kind + " " + c.Name
		} else if f.From != "" {
			t.Errorf("%s is from %s, which is not there", f.Path, f.From)
		}
		from[f.Path] = kind
	}
	want := map[string]string{
		"root/usr/bin/runc":                         "debian runc",
		"root/usr/lib/libc.so.6":                    "debian libc6",
		"root/etc/os-release":                       "",
		"root/etc/empty":                            "",
		"root/usr/share/a file with <odd> \"name\"": "",
		"root/usr/lib/agent":                        "program program",
		"initramfs/init":                            "program program",
		"uki/linux":                                 "debian linux-image-cloud-amd64",
		"root/var/lib/images/hello.tar":             "image docker.io/sealift/hello",
		"images/docker.io/sealift/hello:v1/hello":   "program program",
	}
	for name, w := range want {
		if got, ok := from[name]; !ok || got != w {
			t.Errorf("%s is from %q (listed: %t), want %q", name, got, ok, w)
		}
	}
	if len(from) != len(want) {
		t.Errorf("got %d files %v, want %d", len(from), from, len(want))
	}
}

func TestAProgramDependsOnItsModulesAndTheStandardLibrary(t *testing.T) {
	v := scan(t, sample(t))
	var p *Component
	for i := range v.Components {
		if v.Components[i].Kind == KindProgram {
			if p != nil {
				t.Fatalf("the same program is listed twice: %s, %s", p.ID, v.Components[i].ID)
			}
			p = &v.Components[i]
		}
	}
	if p == nil {
		t.Fatal("no program")
	}
	found := map[string]bool{}
	for _, id := range p.DependsOn {
		m, ok := v.Component(id)
		if !ok {
			t.Fatalf("%s depends on %s, which is not there", p.ID, id)
		}
		found[m.Name] = true
		if m.Name == "golang.org/x/mod" && (m.Version == "" || m.PURL != "pkg:golang/golang.org/x/mod@"+m.Version || !strings.HasPrefix(m.Sum, "h1:")) {
			t.Errorf("module is %+v", m)
		}
	}
	for _, name := range []string{"stdlib", "golang.org/x/mod"} {
		if !found[name] {
			t.Errorf("program does not depend on %s", name)
		}
	}
}

func TestAGoProgramOfAPackageStaysOfThePackage(t *testing.T) {
	in := sample(t)
	b := must[[]byte](t)(os.ReadFile(goProgram(t)))
	in.Packages[0].Files[sha256.Sum256(b)] = []string{"usr/lib/agent"}
	v := scan(t, in)
	c, ok := v.Component("deb-" + identifier("runc_1.1.5+ds1-1+deb12u1_amd64"))
	if !ok || len(c.DependsOn) == 0 {
		t.Errorf("the package has no modules: %+v", c)
	}
}

func TestEqualImagesGiveEqualDocuments(t *testing.T) {
	var docs [2][2]string
	for i := range docs {
		in := sample(t)
		in.Workers = 1 + 7*i
		in.Epoch = in.Epoch.In(time.FixedZone("x", 3600*i))
		if i == 1 {
			slices.Reverse(in.Packages)
		}
		v := scan(t, in)
		docs[i] = [2]string{string(must[[]byte](t)(v.SPDX())), string(must[[]byte](t)(v.CycloneDX()))}
	}
	if docs[0][0] != docs[1][0] {
		t.Error("SPDX documents differ")
	}
	if docs[0][1] != docs[1][1] {
		t.Error("CycloneDX documents differ")
	}
}

func TestBothFormatsSayTheSame(t *testing.T) {
	v := scan(t, sample(t))
	a := must[*Document](t)(Read(must[[]byte](t)(v.SPDX())))
	b := must[*Document](t)(Read(must[[]byte](t)(v.CycloneDX())))
	if a.Format != "SPDX-2.3" || b.Format != "CycloneDX-1.6" {
		t.Errorf("formats are %s, %s", a.Format, b.Format)
	}
	if a.Name != "demo" || a.Name != b.Name || a.Version != "1.0.0" || a.Version != b.Version || a.Digest != sum("disk") || a.Digest != b.Digest {
		t.Errorf("images are %s %s %s and %s %s %s", a.Name, a.Version, a.Digest, b.Name, b.Version, b.Digest)
	}
	if !slices.Equal(a.PackageURLs, b.PackageURLs) || !slices.Equal(a.PackageNames, b.PackageNames) || len(a.PackageURLs) != len(v.Components) {
		t.Errorf("components are %v and %v", a.PackageNames, b.PackageNames)
	}
	if len(a.Files) != len(v.Files) || len(b.Files) != len(v.Files) {
		t.Errorf("got %d and %d files, want %d", len(a.Files), len(b.Files), len(v.Files))
	}
	for _, f := range v.Files {
		if a.Files[f.Path] != f.SHA256 || b.Files[f.Path] != f.SHA256 {
			t.Errorf("%s: digests are %s and %s, want %s", f.Path, a.Files[f.Path], b.Files[f.Path], f.SHA256)
		}
	}
}

// validate validates a document against the first schema, which may refer to the others.
func validate(t *testing.T, doc []byte, files ...string) {
	t.Helper()
	c := jsonschema.NewCompiler()
	main := ""
	for i, file := range files {
		raw := must[[]byte](t)(os.ReadFile(file))
		s := must[any](t)(jsonschema.UnmarshalJSON(bytes.NewReader(raw)))
		id, _ := s.(map[string]any)["$id"].(string)
		if err := c.AddResource(id, s); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			main = id
		}
	}
	schema := must[*jsonschema.Schema](t)(c.Compile(main))
	if err := schema.Validate(must[any](t)(jsonschema.UnmarshalJSON(bytes.NewReader(doc)))); err != nil {
		t.Errorf("%#v", err)
	}
}

// moduleDir is where the module of the CycloneDX library lies, with its schemas.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("go list -m %s: %v", module, err)
	}
	return strings.TrimSpace(string(out))
}

func TestSPDXIsValid(t *testing.T) { validSPDX(t, must[[]byte](t)(scan(t, sample(t)).SPDX())) }

func validSPDX(t *testing.T, doc []byte) {
	t.Helper()
	validate(t, doc, "testdata/spdx-2.3.schema.json")
	// The library of the SPDX project reads it and finds every reference.
	d, err := spdxjson.Read(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(d); err != nil {
		t.Error(err)
	}
	if len(d.Packages) < 5 || len(d.Files) < 10 {
		t.Errorf("got %d packages, %d files", len(d.Packages), len(d.Files))
	}
}

func TestCycloneDXIsValid(t *testing.T) {
	validCycloneDX(t, must[[]byte](t)(scan(t, sample(t)).CycloneDX()))
}

func validCycloneDX(t *testing.T, doc []byte) {
	t.Helper()
	dir := filepath.Join(moduleDir(t, "github.com/CycloneDX/cyclonedx-go"), "schema")
	validate(t, doc, filepath.Join(dir, "bom-1.6.schema.json"), filepath.Join(dir, "spdx.schema.json"), filepath.Join(dir, "jsf-0.82.schemax.json"))
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(doc), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{}
	var walk func([]cdx.Component)
	walk = func(all []cdx.Component) {
		for _, c := range all {
			if refs[c.BOMRef] {
				t.Errorf("bom-ref %s is there twice", c.BOMRef)
			}
			refs[c.BOMRef] = true
			if c.Components != nil {
				walk(*c.Components)
			}
		}
	}
	walk([]cdx.Component{*bom.Metadata.Component})
	walk(*bom.Components)
	for _, d := range *bom.Dependencies {
		for _, to := range append([]string{d.Ref}, deref(d.Dependencies)...) {
			if !refs[to] {
				t.Errorf("dependency on %s, which is not there", to)
			}
		}
	}
}

func deref(s *[]string) []string {
	if s == nil {
		return nil
	}
	return *s
}

func TestLicenseIdentifiersAreThoseOfSPDX(t *testing.T) {
	raw := must[[]byte](t)(os.ReadFile(filepath.Join(moduleDir(t, "github.com/CycloneDX/cyclonedx-go"), "schema", "spdx.schema.json")))
	var list struct{ Enum []string }
	if err := json.Unmarshal(raw, &list); err != nil {
		t.Fatal(err)
	}
	names := []string{"GPL-2", "GPL-2+", "gpl-1.0+", "LGPL-2.1+", "LGPL-3", "AGPL-3+", "GFDL-1.3+", "GFDL-NIV-1.2", "GPL-2-only"}
	for name := range otherLicenses {
		names = append(names, name)
	}
	for _, name := range names {
		if id, ok := spdxLicense(name); !ok || !slices.Contains(list.Enum, id) {
			t.Errorf("%s is %q, which SPDX does not have", name, id)
		}
	}
	for _, name := range []string{"GPL", "GPL-9", "LGPL-2.2", "GPL-NIV-2", "public-domain", ""} {
		if id, ok := spdxLicense(name); ok {
			t.Errorf("%s is taken for %s", name, id)
		}
	}
}

func TestCopyrightFilesAreReadOnlyInTheMachineReadableFormat(t *testing.T) {
	const head = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
	for name, c := range map[string]struct {
		text string
		want string
	}{
		"one":               {head + "\nFiles: *\nCopyright: x\nLicense: Expat\n", "MIT"},
		"two":               {head + "\nFiles: *\nLicense: GPL-2+\n\nFiles: a\nLicense: BSD-3-clause\n", "BSD-3-Clause AND GPL-2.0-or-later"},
		"twice":             {head + "\nFiles: *\nLicense: MIT\n\nFiles: a\nLicense: Expat\n", "MIT"},
		"or":                {head + "\nFiles: *\nLicense: GPL-2 or Apache-2.0\n\nFiles: a\nLicense: ISC\n", "(GPL-2.0-only OR Apache-2.0) AND ISC"},
		"and, twice":        {head + "\nFiles: *\nLicense: ISC and MIT\n\nFiles: a\nLicense: MIT\n", "ISC AND MIT"},
		"and, or":           {head + "\nFiles: *\nLicense: GPL-2 and ISC or MIT\n", "GPL-2.0-only AND ISC OR MIT"},
		"unknown":           {head + "\nFiles: *\nLicense: public-domain\n", "LicenseRef-pkg-public-domain"},
		"exception":         {head + "\nFiles: *\nLicense: GPL-2+ with OpenSSL exception\n", "LicenseRef-pkg-GPL-2--with-OpenSSL-exception-ef31d05d"},
		"with a comma":      {head + "\nFiles: *\nLicense: GPL-2, and ISC or MIT\n", "LicenseRef-pkg-GPL-2--and-ISC-or-MIT-87a21e5f"},
		"license texts":     {head + "\nFiles: *\nLicense: GPL-2\n\nLicense: GPL-2\n On Debian: this\n .\n License: MIT\n", "GPL-2.0-only"},
		"of the whole":      {head + "License: MIT\n", "MIT"},
		"prose":             {"This package was debianized by somebody.\n\nLicense: GPL-2\n", ""},
		"another format":    {"Format: https://example.org/\n\nFiles: *\nLicense: GPL-2\n", ""},
		"continuation only": {" Format: x\n", ""},
		"empty":             {"", ""},
		"too large":         {head + "\nFiles: *\nLicense: MIT\n" + strings.Repeat("\n", MaxCopyright), ""},
	} {
		if got := declared(ParseCopyright("pkg", []byte(c.text))); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestPackageURLs(t *testing.T) {
	deb := func(p Package) string { return debPURL(&p) }
	for got, want := range map[string]string{
		deb(Package{Name: "libc6", Version: "1:2.36-9+deb12u1", Arch: "amd64", Source: "glibc", SourceVersion: "1:2.36-9+deb12u1"}): "pkg:deb/debian/libc6@1:2.36-9%2Bdeb12u1?arch=amd64&upstream=glibc",
		deb(Package{Name: "a", Version: "1", Arch: "all", Suite: "bookworm"}):                                                       "pkg:deb/debian/a@1?arch=all&distro=debian-12",
		deb(Package{Name: "a", Version: "1", Arch: "all", Suite: "duke+x"}):                                                         "pkg:deb/debian/a@1?arch=all&distro=duke%2Bx",
		deb(Package{Name: "a", Version: "1~b", Arch: "all", Source: "a", SourceVersion: "1~b"}):                                     "pkg:deb/debian/a@1~b?arch=all",
		deb(Package{Name: "a", Version: "1+b1", Arch: "all", Source: "a", SourceVersion: "1"}):                                      "pkg:deb/debian/a@1%2Bb1?arch=all&upstream=a%401",
		goPURL("github.com/BurntSushi/toml", "v1.4.1", ""):                                                                          "pkg:golang/github.com/burntsushi/toml@v1.4.1",
		goPURL("k8s.io/kubernetes", "v1.34.4", "cmd/kubelet"):                                                                       "pkg:golang/k8s.io/kubernetes@v1.34.4#cmd/kubelet",
		goPURL("gopkg.in/x", "v3.5.1+incompatible", ""):                                                                             "pkg:golang/gopkg.in/x@v3.5.1%2Bincompatible",
		ociPURL("docker.io/sealift/hello:v1", "sha256:00ff", "amd64"):                                                               "pkg:oci/hello@sha256:00ff?arch=amd64&repository_url=docker.io%2Fsealift%2Fhello&tag=v1",
		ociPURL("localhost:5000/Pause", "", "arm64"):                                                                                "pkg:oci/pause?arch=arm64&repository_url=localhost:5000%2FPause",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// tarOf makes an archive of files in order.
func tarOf(t testing.TB, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: members[i], Mode: 0o755, Size: int64(len(members[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(members[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func blob(content string) (digest, name string) {
	d := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	return "sha256:" + d, "blobs/sha256/" + d
}

// platforms is an OCI layout with an index of an image for two platforms, one
// of which is not in the archive, and a compressed layer.
func platforms(t testing.TB) []byte {
	layer := gzipped(t, tarOf(t, "./bin/tool", "tool", "../../escape", "x"))
	layerDigest, layerName := blob(layer)
	m := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q}]}`, layerDigest)
	manifestDigest, manifestName := blob(m)
	list := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q},{"digest":"sha256:%064d"}]}`, manifestDigest, 0)
	listDigest, listName := blob(list)
	index := fmt.Sprintf(`{"manifests":[{"digest":%q,"annotations":{"org.opencontainers.image.ref.name":"registry.k8s.io/pause:3.10"}}]}`, listDigest)
	return tarOf(t, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`, "index.json", index, listName, list, manifestName, m, layerName, layer)
}

func docker(t testing.TB) []byte {
	return tarOf(t, "abc.json", "{}", "l/layer.tar", string(tarOf(t, "bin/tool", "tool")),
		"manifest.json", `[{"Config":"abc.json","RepoTags":["rancher/pause:1"],"Layers":["l/layer.tar"]}]`)
}

func TestArchivesOfContainerImagesAreOpened(t *testing.T) {
	for name, c := range map[string]struct {
		archive []byte
		image   string
		files   []string
	}{
		"index of platforms": {platforms(t), "registry.k8s.io/pause:3.10", []string{"bin/tool", "escape"}},
		"docker save":        {docker(t), "rancher/pause:1", []string{"bin/tool"}},
	} {
		a, err := readArchive(t.Context(), bytes.NewReader(c.archive), int64(len(c.archive)), t.TempDir())
		if err != nil || a == nil || len(a.images) != 1 {
			t.Errorf("%s: got %+v, %v", name, a, err)
			continue
		}
		var files []string
		for _, f := range a.images[0].files {
			files = append(files, f.file.Path)
		}
		if a.images[0].name != c.image || !slices.Equal(files, c.files) {
			t.Errorf("%s: got image %s with %v, want %s with %v", name, a.images[0].name, files, c.image, c.files)
		}
	}
	for name, b := range map[string][]byte{"no archive": []byte("text"), "empty": nil, "another archive": tarOf(t, "a", "b")} {
		if a, err := readArchive(t.Context(), bytes.NewReader(b), int64(len(b)), t.TempDir()); a != nil || err != nil {
			t.Errorf("%s: got %+v, %v", name, a, err)
		}
	}
	for name, b := range map[string][]byte{
		"cut":           platforms(t)[:3000],
		"no manifest":   tarOf(t, "index.json", `{"manifests":[{"digest":"sha256:00"}]}`),
		"index no JSON": tarOf(t, "index.json", `{`),
		"no layer":      tarOf(t, "manifest.json", `[{"Layers":["x"]}]`),
	} {
		if _, err := readArchive(t.Context(), bytes.NewReader(b), int64(len(b)), t.TempDir()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// layout is an OCI layout with images that all have the same layers.
func layout(t testing.TB, images int, layers ...string) []byte {
	t.Helper()
	var list, members []string
	for _, l := range layers {
		d, name := blob(l)
		list, members = append(list, fmt.Sprintf(`{"digest":%q}`, d)), append(members, name, l)
	}
	m := fmt.Sprintf(`{"schemaVersion":2,"layers":[%s]}`, strings.Join(list, ","))
	d, name := blob(m)
	index := fmt.Sprintf(`{"manifests":[%s]}`, strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"digest":%q},`, d), images), ","))
	return tarOf(t, append(members, name, m, "index.json", index)...)
}

func readAll(t testing.TB, b []byte) (*archive, error) {
	t.Helper()
	return readArchive(t.Context(), bytes.NewReader(b), int64(len(b)), t.TempDir())
}

// sparseLayer is a layer with a sparse file of size bytes, 3 of which are
// stored, in GNU's old form.
func sparseLayer(t testing.TB, size int64) string {
	t.Helper()
	b := tarOf(t, "bin/sparse", "abc")
	octal := func(at int, n int64) { copy(b[at:at+12], fmt.Sprintf("%011o\x00", n)) }
	b[156] = tar.TypeGNUSparse
	copy(b[257:265], "ustar  \x00")
	clear(b[345:512])
	octal(386, 0)
	octal(398, 3)
	octal(483, size)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}

func TestSparseFilesOfALayerAreListed(t *testing.T) {
	a, err := readAll(t, layout(t, 1, sparseLayer(t, 1000)))
	if err != nil || len(a.images[0].files) != 1 {
		t.Fatalf("got %+v, %v", a, err)
	}
	want := sha256.Sum256(append([]byte("abc"), make([]byte, 997)...))
	if f := a.images[0].files[0].file; f.Path != "bin/sparse" || f.Size != 1000 || f.SHA256 != want {
		t.Errorf("got %+v", f)
	}
	if _, err := readAll(t, []byte(sparseLayer(t, 1000))); err == nil || !strings.Contains(err.Error(), "a sparse file") {
		t.Errorf("a sparse member of the archive: %v", err)
	}
}

func TestProgramsOfArchivesAreNotHeldInMemory(t *testing.T) {
	program, temp := must[[]byte](t)(os.ReadFile(goProgram(t))), t.TempDir()
	large := string(program) + strings.Repeat("x", 32<<20)
	b := layout(t, 3, string(tarOf(t, "bin/large", large, "bin/small", string(program))))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a, err := readArchive(t.Context(), bytes.NewReader(b), int64(len(b)), temp)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 24 {
		t.Errorf("it took %d MiB", got)
	}
	for _, img := range a.images {
		if len(img.files) != 2 || img.files[0].program == nil || img.files[1].program == nil {
			t.Errorf("the programs are not known: %+v", img.files)
		}
	}
	if left := must[[]os.DirEntry](t)(os.ReadDir(temp)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestArchivesAreBoundedAsAWhole(t *testing.T) {
	layer := string(tarOf(t, "bin/tool", "tool"))
	if _, err := readAll(t, layout(t, 100, layer, layer)); err != nil {
		t.Error(err)
	}
	layers := make([]string, 1001)
	for i := range layers {
		layers[i] = layer
	}
	for want, b := range map[string][]byte{
		"more than 10000 layers": layout(t, 10, layers...),
		"unpack to more than":    layout(t, 1, sparseLayer(t, 17<<30)),
	} {
		if _, err := readAll(t, b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// An index of an image for as many platforms as its bytes have room for,
	// all of which are the same.
	child, childName := blob(`{}`)
	list := `{"manifests":[` + strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"digest":%q},`, child), maxManifests), ",") + `]}`
	d, name := blob(list)
	b := tarOf(t, "index.json", fmt.Sprintf(`{"manifests":[{"digest":%q}]}`, d), name, list, childName, `{}`)
	if _, err := readAll(t, b); err == nil || !strings.Contains(err.Error(), "more than 10000 manifests") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readArchive(ctx, bytes.NewReader(b), int64(len(b)), t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDocumentsThatAreNotOursAreRefused(t *testing.T) {
	good := string(must[[]byte](t)(scan(t, sample(t)).CycloneDX()))
	for name, s := range map[string]string{
		"empty":          "",
		"not JSON":       "x",
		"neither format": "{}",
		"older format":   strings.Replace(good, `"specVersion": "1.6"`, `"specVersion": "1.4"`, 1),
		"data behind":    good + "{}",
		"cut":            good[:len(good)/2],
		"no digest":      `{"bomFormat":"CycloneDX","specVersion":"1.6"}`,
		"file twice":     strings.Replace(good, `"name": "initramfs/init"`, `"name": "root/etc/empty"`, 1),
		"file outside":   strings.Replace(good, `"name": "initramfs/init"`, `"name": "../init"`, 1),
		"nested deep":    `{"bomFormat":"CycloneDX","specVersion":"1.6","components":` + strings.Repeat(`[{"components":`, 20) + "[]" + strings.Repeat("}]", 20) + "}",
		"no digest in a file": `{"bomFormat":"CycloneDX","specVersion":"1.6","metadata":{"component":{"hashes":[{"alg":"SHA-256","content":"` + sum("x").String() + `"}]}},
			"components":[{"type":"file","name":"a"}]}`,
	} {
		if _, err := Read([]byte(s)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	v := scan(f, sample(f))
	for _, write := range []func() ([]byte, error){v.SPDX, v.CycloneDX} {
		f.Add(must[[]byte](f)(write()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := Read(b); err == nil && d.Digest.IsZero() {
			t.Error("a document without a digest is accepted")
		}
	})
}

func FuzzArchive(f *testing.F) {
	f.Add(platforms(f))
	f.Add(docker(f))
	temp := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readArchive(t.Context(), bytes.NewReader(b), int64(len(b)), temp)
		if err != nil || a == nil {
			return
		}
		for _, img := range a.images {
			for _, file := range img.files {
				if strings.HasPrefix(file.file.Path, "..") || strings.HasPrefix(file.file.Path, "/") {
					t.Errorf("file %q leads out of the image", file.file.Path)
				}
			}
		}
	})
}

func FuzzCopyright(f *testing.F) {
	f.Add([]byte("Format: copyright-format/1.0\n\nFiles: *\nLicense: GPL-2+ or MIT and ISC, x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range ParseCopyright("pkg", b) {
			if l.Expression == "" || strings.ContainsAny(l.Expression, "\n\x00") {
				t.Errorf("expression %q", l.Expression)
			}
		}
	})
}
