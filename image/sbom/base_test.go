package sbom

import (
	"slices"
	"testing"

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
