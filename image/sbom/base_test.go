package sbom

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// based is a sample on a base image with dpkg's database and that of distroless
// images.
func based(t testing.TB) Input {
	t.Helper()
	in := sample(t)
	base := tree.New()
	files := map[string]string{
		"/etc/os-release":          "ID=ubuntu\nVERSION_ID=\"24.04\"\n",
		"/usr/bin/bash":            "a shell",
		"/usr/lib/libz.so.1":       "zlib",
		"/usr/local/bin/own":       "of no package",
		"/usr/lib/libtz.so":        "of distroless",
		"/var/lib/dpkg/status":     "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nArchitecture: amd64\nSource: bash (5.2)\nDescription: x\n more\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: amd64\n\nPackage: zlib1g\nStatus: install ok installed\nVersion: 1:1.3\nArchitecture: amd64\nSource: zlib\n",
		"/var/lib/dpkg/status.d/a": "Package: tzdata\nVersion: 2025\nArchitecture: all\n",

		"/var/lib/dpkg/status.d/a.md5sums":      "0123456789abcdef0123456789abcdef  usr/lib/libtz.so\n",
		"/var/lib/dpkg/info/bash.list":          "/.\n/bin\n/bin/bash\n",
		"/var/lib/dpkg/info/zlib1g:amd64.list":  "/usr/lib/libz.so.1\n",
		"/usr/share/doc/bash/copyright":         "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-3+\n",
		"/usr/share/doc/zlib1g/copyright":       "prose\n",
		"/usr/share/doc/unrelated/of/no/matter": "x",
	}
	if err := base.Symlink("usr/bin", "/bin"); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := base.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in.Base = &Base{Name: "registry.example/os:1", Digest: sum("base"), Tree: base}
	for name, text := range files {
		if slices.Contains([]string{"/usr/bin/bash", "/usr/lib/libz.so.1", "/usr/local/bin/own", "/usr/lib/libtz.so"}, name) {
			if err := in.Places[0].Tree.WriteFile(name, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return in
}

func TestFilesOfABaseImageAreOfItsPackagesOrOfTheImage(t *testing.T) {
	v := scan(t, based(t))
	for name, want := range map[string]struct{ name, version, purl, license string }{
		"root/usr/bin/bash":      {"bash", "5.2-1", "pkg:deb/ubuntu/bash@5.2-1?arch=amd64&distro=ubuntu-24.04&upstream=bash%405.2", "GPL-3.0-or-later"},
		"root/usr/lib/libz.so.1": {"zlib1g", "1:1.3", "pkg:deb/ubuntu/zlib1g@1:1.3?arch=amd64&distro=ubuntu-24.04&upstream=zlib", ""},
		"root/usr/lib/libtz.so":  {"tzdata", "2025", "pkg:deb/ubuntu/tzdata@2025?arch=all&distro=ubuntu-24.04", ""},
		"root/usr/local/bin/own": {"registry.example/os", "1", "pkg:oci/os@sha256:" + sum("base").String() + "?arch=amd64&repository_url=registry.example%2Fos&tag=1", ""},
		"root/usr/bin/runc":      {"runc", "1.1.5+ds1-1+deb12u1", "pkg:deb/debian/runc@1.1.5%2Bds1-1%2Bdeb12u1?arch=amd64", "Apache-2.0 AND (GPL-2.0-or-later OR LicenseRef-runc-odd-licence-15b9b649)"},
	} {
		i := slices.IndexFunc(v.Files, func(f File) bool { return f.Path == name })
		if i < 0 {
			t.Errorf("%s is not listed", name)
			continue
		}
		c, ok := v.Component(v.Files[i].From)
		if !ok {
			t.Errorf("%s is from nothing", name)
			continue
		}
		if c.Name != want.name || c.Version != want.version || c.PURL != want.purl || declared(c.Licenses) != want.license {
			t.Errorf("%s is from %s %s, %s, %q; want %+v", name, c.Name, c.Version, c.PURL, declared(c.Licenses), want)
		}
	}
	for _, c := range v.Components {
		if c.Name == "gone" {
			t.Error("a package that was removed is listed")
		}
	}
}

// statusBase is a base image with this text as dpkg's list of packages.
func statusBase(t testing.TB, status string, files map[string]string) *Base {
	t.Helper()
	b := &Base{Name: "x", Tree: tree.New()}
	for name, text := range files {
		if err := b.Tree.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Tree.WriteFile("var/lib/dpkg/status", []byte(status), 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

func stanza(name, arch string) string {
	return fmt.Sprintf("Package: %s\nVersion: 1\nArchitecture: %s\nStatus: install ok installed\n\n", name, arch)
}

func TestAHostilePackageDatabaseIsRefused(t *testing.T) {
	const list = "var/lib/dpkg/info/a.list"
	long := strings.Repeat("/f\n", 400_000) // several architectures share it
	var many strings.Builder
	for i := range maxPackages + 1 {
		many.WriteString(stanza(fmt.Sprint("p", i), "all"))
	}
	var shared string
	for i := range 9 {
		shared += stanza("a", fmt.Sprint("arch", i))
	}
	for claim, tc := range map[string]struct {
		base *Base
		want string
	}{
		"a package twice":      {statusBase(t, stanza("a", "amd64")+stanza("a", "amd64"), nil), `package "a:amd64" is listed twice`},
		"in two places":        {statusBase(t, stanza("a", "amd64"), map[string]string{"var/lib/dpkg/status.d/a": stanza("a", "amd64")}), "is listed twice"},
		"too many packages":    {statusBase(t, many.String(), nil), "more than 50000 packages"},
		"too many paths":       {statusBase(t, shared, map[string]string{"f": "x", list: long}), "more than 2000000 paths"},
		"lists that are large": {statusBase(t, shared, map[string]string{list: strings.Repeat("x", 15<<20)}), "are too large"},
	} {
		if _, err := tc.base.read(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := statusBase(t, stanza("a", "all"), nil).read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAPathOfAPackageCountsOnce(t *testing.T) {
	b := statusBase(t, stanza("a", "amd64")+stanza("a", "i386"), map[string]string{"f": "x", "var/lib/dpkg/info/a:amd64.list": strings.Repeat("/f\n/./f\n/f\n", 1000)})
	c := must[*baseContent](t)(b.read(t.Context()))
	if got := c.packages[0].Files[sum("x")]; !slices.Equal(got, []string{"f"}) || len(c.packages) != 2 {
		t.Errorf("got %d paths of %d packages", len(got), len(c.packages))
	}
}

// TestOneContentInManyFilesIsFoundFast is an image whose files all have the
// content of all files of a package.
func TestOneContentInManyFilesIsFoundFast(t *testing.T) {
	const n = 100_000
	in := sample(t)
	p := Package{Name: "many", Version: "1", Arch: "all", Source: "many", SourceVersion: "1", Files: map[manifest.SHA256][]string{}}
	for i := range n {
		p.Files[sum("x")] = append(p.Files[sum("x")], fmt.Sprint("usr/", i))
	}
	c := collection{v: &Inventory{}, at: map[string]int{}}
	c.packages(append(in.Packages, p))
	start := time.Now()
	for i := range n {
		if from := c.from(&File{Path: fmt.Sprint("root/usr/", i), Size: 1, SHA256: sum("x")}); from != "deb-"+identifier("many_1_all") {
			t.Fatalf("from %q", from)
		}
	}
	if d := time.Since(start); d > 10*time.Second { // some 100 ms; minutes if all are compared
		t.Errorf("it took %s", d)
	}
}

// TestAFileIsOfThePackageThatHasItsName holds which of several packages with the
// same content a file is of.
func TestAFileIsOfThePackageThatHasItsName(t *testing.T) {
	files := func(names ...string) map[manifest.SHA256][]string {
		return map[manifest.SHA256][]string{sum("x"): names, sum(""): {"etc/empty"}}
	}
	c := collection{v: &Inventory{}, at: map[string]int{}}
	c.packages([]Package{
		{Name: "c", Version: "1", Arch: "all", Files: files("lib/x", "usr/share/doc")},
		{Name: "b", Version: "1", Arch: "all", Files: files("opt/x", "usr/lib/y")},
		{Name: "a", Version: "1", Arch: "all", Files: files("srv/other")},
	})
	for name, want := range map[string]string{"usr/lib/x": "c", "lib/x": "c", "usr/lib/y": "b", "etc/x": "b", "etc/none": "a", "usr/share/doc": "c"} {
		f := File{Path: "root/" + name, Size: 1, SHA256: sum("x")}
		if got := c.from(&f); got != "deb-"+identifier(want+"_1_all") {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
	for name, want := range map[string]string{"etc/empty": "deb-" + identifier("a_1_all"), "usr/empty": ""} {
		if got := c.from(&File{Path: "root/" + name, SHA256: sum("")}); got != want {
			t.Errorf("the empty file %s is of %q, want %q", name, got, want)
		}
	}
}

func TestDocumentsOfAnImageWithABaseAreValid(t *testing.T) {
	v := scan(t, based(t))
	validSPDX(t, must[[]byte](t)(v.SPDX()))
	validCycloneDX(t, must[[]byte](t)(v.CycloneDX()))
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Package: a\nStatus: install ok installed\nVersion: 1\nSource: b (2)\n\n x\n:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseStatus(b)
		for _, p := range all {
			if err != nil || p.Name == "" || p.Source == "" {
				t.Errorf("got %+v, %v", p, err)
			}
		}
	})
}
