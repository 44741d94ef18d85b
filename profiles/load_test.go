package profiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// valid is a profile with only the fields that have no default.
const valid = `apiVersion: sealift.dev/v1
kind: Profile
name: shop
version: "7"
kubernetes:
  version: v1.34.4
attest:
  url: https://attest.example:8443
`

func TestProfileWithDefaultsIsValid(t *testing.T) {
	p, err := Parse("shop.yaml", []byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	if p.Arch != "amd64" || p.Base != "minimal" || p.Debian.Suite != "bookworm" || p.Kernel.Package != "linux-image-cloud-amd64" {
		t.Errorf("defaults are missing: %+v", p)
	}
	if p.Disk.Verity < minVerity(p.Disk.Slot) || p.Install.MinDisk < p.Disk.fixed() {
		t.Errorf("dependent defaults are missing: %+v %+v", p.Disk, p.Install)
	}
	if err := p.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
}

func TestDemoProfileLoadsAndItsLockFits(t *testing.T) {
	p, err := Load("demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	l, err := LoadLock(LockPath("demo.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckProfile(p); err != nil {
		t.Errorf("%v: run sealift profile lock profiles/demo.yaml", err)
	}
}

func TestFaultsAreNamedWithTheirPlace(t *testing.T) {
	tests := []struct {
		claim string
		edit  func(string) string
		want  string
	}{
		{"unknown field", add("kernal:\n  package: x\n"), "shop.yaml:9:1: kernal: unknown field; did you mean kernel?"},
		{"unknown nested field", add("disk:\n  solt: 3\n"), "shop.yaml:10:3: disk.solt: unknown field; did you mean slot?"},
		{"unknown field that is near nothing", add("disk:\n  colour: 3\n"), "shop.yaml:10:3: disk.colour: unknown field; known are: esp, slot, verity, uki"},
		{"repeated field", add("name: x\n"), "shop.yaml:9:1: name: repeated field"},
		{"number for a string", swap(`"7"`, `7`), `shop.yaml:4:10: version: got the number 7, want a string; write "7"`},
		{"boolean for a string", swap("name: shop", "name: true"), `shop.yaml:3:7: name: got the boolean true, want a string; write "true"`},
		{"string for a number", add("disk:\n  esp: big\n"), `shop.yaml:10:8: disk.esp: got the string "big", want a whole number`},
		{"fraction for a number", add("disk:\n  esp: 96.5\n"), "shop.yaml:10:8: disk.esp: got the number 96.5, want a whole number"},
		{"number out of range", add("disk:\n  esp: 99999999999\n"), `disk.esp: "99999999999" is not a decimal number in range`},
		{"string for a boolean", add("debug: maybe\n"), `shop.yaml:9:8: debug: got the string "maybe", want true or false`},
		{"mapping for a list", add("packages:\n  a: b\n"), "packages: got a mapping, want a list"},
		{"list for a mapping", add("disk: [1]\n"), "disk: got a list, want a mapping"},
		{"no value", add("disk:\n"), "disk: no value; leave the field out to get its default"},
		{"anchor", add("packages: [&a nginx, *a]\n"), "shop.yaml:9:12: packages[0]: anchors, aliases and tags are not supported"},
		{"tag", add("packages: [!!str nginx]\n"), "shop.yaml:9:12: packages[0]: anchors, aliases and tags are not supported"},
		{"second document", add("---\nname: x\n"), "a second document"},
		{"broken YAML", add("disk: [\n"), "not YAML"},
		{"wrong apiVersion", swap("sealift.dev/v1", "sealift.dev/v2"), `shop.yaml:1:13: apiVersion: got "sealift.dev/v2", want "sealift.dev/v1"`},
		{"bad name", swap("shop", "Shop_1"), `shop.yaml:3:7: name: "Shop_1" is not a name`},
		{"bad version", swap(`"7"`, `"7 beta"`), `version: "7 beta" is not a version`},
		{"unknown architecture", add("arch: amd46\n"), `arch: "amd46" is not supported; did you mean amd64?`},
		{"kernel of another architecture", add("arch: arm64\nkernel:\n  package: linux-image-cloud-amd64\n"), "kernel.package: linux-image-cloud-amd64 is for amd64, the profile for arm64"},
		{"unknown base", add("base: minimum\n"), `base: "minimum" is not supported; did you mean minimal?`},
		{"unknown distro", swap("  version: v1.34.4", "  version: v1.34.4\n  distro: kubernets"), "did you mean kubernetes?"},
		{"unknown Kubernetes version", swap("v1.34.4", "1.34.4"), `shop.yaml:6:12: kubernetes.version: "1.34.4" is not supported; did you mean v1.34.4?`},
		{"version that is not built from modules", swap("  version: v1.34.4", "  version: v1.34.9\n  source: modules"), "kubernetes.source: kubernetes v1.34.9 cannot be had from modules, only from release"},
		{"unknown source", swap("  version: v1.34.4", "  version: v1.34.4\n  source: releases"), `kubernetes.source: "releases" is not supported; did you mean release?`},
		{"version of another distro", swap("  version: v1.34.4", "  version: v1.34.4\n  distro: k3s"), `kubernetes.version: "v1.34.4" is not supported; known are: v1.34.1+k3s1`},
		{"mirror with a password", swap("  version: v1.34.4", "  version: v1.34.4\n  mirror: https://u:p@mirror.example"), "is not the address of a mirror"},
		{"missing required field", swap("name: shop\n", ""), `name: "" is not a name`},
		{"host bits in a network", swap("v1.34.4", "v1.34.4\n  podCIDR: 10.88.0.1/24"), "kubernetes.podCIDR"},
		{"mirror with credentials", add("debian:\n  mirror: http://me:pw@deb.example\n"), "debian.mirror"},
		{"kernel that is no kernel", add("kernel:\n  package: nginx\n"), `kernel.package: "nginx" is not a kernel package`},
		{"two parameters in one", add("kernel:\n  cmdline: ['quiet init=/bin/sh']\n"), "kernel.cmdline[0]"},
		{"a parameter of the builder", add("kernel:\n  cmdline: [sealift.roothash=00]\n"), "sealift.roothash is set by the image builder"},
		{"another init", add("kernel:\n  cmdline: [init=/bin/sh]\n"), "init is set by the image builder"},
		{"debug parameter without debug", add("kernel:\n  cmdline: [sealift.onfatal=halt]\n"), "sealift.onfatal is heeded only in images marked debug"},
		{"path as a module", add("kernel:\n  root: [../evil]\n"), "kernel.root[0]"},
		{"image with two sources", add("preload:\n  images:\n  - {name: docker.io/a/b:1, go: x, layout: y}\n"), "preload.images[0]: only one of go and layout can be set"},
		{"image from half a reference", add("preload:\n  images:\n  - {name: docker.io/a/b:1, from: b}\n"), "preload.images[0].from"},
		{"pattern of no reference", add("preload:\n  exclude: [\"a b\"]\n"), "preload.exclude[0]"},
		{"short image reference", add("preload:\n  images:\n  - {name: nginx, go: x}\n"), "preload.images[0].name"},
		{"image twice", add("preload:\n  images:\n  - {name: 'docker.io/a/b:1', go: x}\n  - {name: 'docker.io/a/b:1', go: y}\n"), "docker.io/a/b:1 is listed twice"},
		{"small ESP", add("disk:\n  esp: 63\n"), "disk.esp: 63 MiB is not between 64"},
		{"hash tree too small", add("disk:\n  slot: 4096\n  verity: 8\n"), "disk.verity: 8 MiB is not between 33"},
		{"UKI budget above the ESP", add("disk:\n  uki: 100\n"), "two UKIs of 100 MiB do not fit an ESP of 128 MiB"},
		{"disk smaller than the layout", add("install:\n  minDisk: 100\n"), "install.minDisk: 100 MiB is less than"},
		{"plain http", swap("https://", "http://"), "attest.url"},
		{"path in the service's address", swap(":8443", ":8443/v1"), "attest.url"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			_, err := Parse("shop.yaml", []byte(tc.edit(valid)))
			var fe *FileError
			if !errors.As(err, &fe) {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %v, want a FileError with %q", err, tc.want)
				}
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got:\n%v\nwant: %s", err, tc.want)
			}
		})
	}
}

func add(text string) func(string) string {
	return func(s string) string { return s + text }
}

func swap(old, new string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, new, 1) }
}

func TestAllFaultsAreFoundInOneRun(t *testing.T) {
	bad := valid + "kernal: 1\ndisk:\n  esp: x\n  slot: y\n"
	var fe *FileError
	if _, err := Parse("p.yaml", []byte(bad)); !errors.As(err, &fe) || len(fe.Problems) != 3 {
		t.Fatalf("got %v, want three problems", err)
	}
	for i := 1; i < len(fe.Problems); i++ {
		if fe.Problems[i].Line < fe.Problems[i-1].Line {
			t.Errorf("problems are not in the order of the file: %v", fe)
		}
	}
}

func TestLargeAndEmptyFilesAreRefused(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("# nothing\n"), make([]byte, MaxSize+1)} {
		if _, err := Parse("p.yaml", b); err == nil {
			t.Errorf("a file of %d bytes was accepted", len(b))
		}
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil {
		t.Error("a large file was loaded")
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	deep := strings.Repeat("[", 200) + strings.Repeat("]", 200)
	if _, err := Parse("p.yaml", []byte("packages: "+deep)); err == nil {
		t.Error("200 levels were accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? {a: b}\n: c"))
	f.Add([]byte("name: |\n  x\n<<: *a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse("p.yaml", b)
		if err == nil {
			if err := p.Validate(); err != nil {
				t.Errorf("a parsed profile is not valid: %v", err)
			}
		}
	})
}
