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
		{"unknown Kubernetes version", swap("v1.34.4", "1.34.4"), `shop.yaml:6:12: kubernetes.version: "1.34.4" is not a version of Kubernetes; use one like v1.34.4`},
		{"version that is not built from modules", swap("  version: v1.34.4", "  version: v1.34.9\n  source: modules"), "kubernetes.source: kubernetes v1.34.9 cannot be had from modules, only from release"},
		{"unknown source", swap("  version: v1.34.4", "  version: v1.34.4\n  source: releases"), `kubernetes.source: "releases" is not supported; did you mean release?`},
		{"version of another distro", swap("  version: v1.34.4", "  version: v1.34.4\n  distro: k3s"), `kubernetes.version: "v1.34.4" is not supported; known are: v1.34.1+k3s1`},
		{"mirror with a password", swap("  version: v1.34.4", "  version: v1.34.4\n  mirror: https://u:p@mirror.example"), "is not the address of a mirror"},
		{"missing required field", swap("name: shop\n", ""), "shop.yaml:1:1: name: missing; use at most 40 lower-case letters"},
		{"host bits in a network", swap("v1.34.4", "v1.34.4\n  podCIDR: 10.88.0.1/24"), "kubernetes.podCIDR"},
		{"mirror with credentials", add("debian:\n  mirror: http://me:pw@deb.example\n"), "debian.mirror"},
		{"kernel that is no kernel", add("kernel:\n  package: nginx\n"), `kernel.package: "nginx" is not a kernel package`},
		{"two parameters in one", add("kernel:\n  cmdline: ['quiet init=/bin/sh']\n"), "kernel.cmdline[0]"},
		{"a parameter of the builder", add("kernel:\n  cmdline: [sealift.roothash=00]\n"), "shop.yaml:10:13: kernel.cmdline[0]: sealift.roothash=00 is set by the image builder"},
		{"another init", add("kernel:\n  cmdline: [init=/bin/sh]\n"), "init=/bin/sh is set by the image builder"},
		{"debug parameter without debug", add("kernel:\n  cmdline: [sealift.onfatal=halt]\n"), "sealift.onfatal is heeded only in images marked debug"},
		{"path as a module", add("kernel:\n  root: [../evil]\n"), "kernel.root[0]"},
		{"image with two sources", add("preload:\n  images:\n  - {name: docker.io/a/b:1, go: x, layout: y}\n"), "preload.images[0]: 2 of from, archive, layout, go are set, want at most one"},
		{"image from half a reference", add("preload:\n  images:\n  - {name: docker.io/a/b:1, from: b}\n"), "preload.images[0].from"},
		{"pattern of no reference", add("preload:\n  exclude: [\"a b\"]\n"), "preload.exclude[0]"},
		{"short image reference", add("preload:\n  images:\n  - {name: nginx, go: x}\n"), "preload.images[0].name"},
		{"image twice", add("preload:\n  images:\n  - {name: 'docker.io/a/b:1', go: x}\n  - {name: 'docker.io/a/b:1', go: y}\n"), "docker.io/a/b:1 is listed twice"},
		{"small ESP", add("disk:\n  esp: 63\n"), "disk.esp: 63 MiB is not between 64"},
		{"hash tree too small", add("disk:\n  slot: 4096\n  verity: 8\n"), "disk.verity: 8 MiB is not between 33"},
		{"UKI budget above the ESP", add("disk:\n  uki: 100\n"), "two UKIs of 100 MiB do not fit an ESP of 128 MiB"},
		{"disk smaller than the layout", add("install:\n  minDisk: 100\n"), "install.minDisk: 100 MiB is less than"},
		{"another parameter of the agent", add("kernel:\n  cmdline: [sealift.verdict=yes]\n"), "sealift.verdict is set by the image builder"},
		{"leading zero", add("disk:\n  esp: 0120\n"), `"0120" is not a decimal number in range`},
		{"zero written out", add("disk:\n  verity: 0\n"), "shop.yaml:10:11: disk.verity: 0 MiB is not between 1 and 1048576"},
		{"package twice", add("packages: [nano, vim, nano]\n"), "shop.yaml:9:23: packages[2]: nano is listed twice"},
		{"empty string", add("kernel:\n  package: ''\n"), `shop.yaml:10:12: kernel.package: "" is not a kernel package`},
		{"base oci without an image", add("base: oci\n"), "oci: missing: base oci needs an image"},
		{"an image without base oci", add("oci:\n  archive: x.tar\n"), `oci: base is "minimal", and only base oci takes an image`},
		{"two images", add("base: oci\noci:\n  archive: x.tar\n  layout: x\n"), "shop.yaml:11:3: oci: 2 of layout, archive, image are set, want exactly one"},
		{"image that no digest pins", add("base: oci\noci:\n  image: registry.example/os:v1\n"), "oci.image: \"registry.example/os:v1\" is not an image reference with a digest"},
		{"file with two contents", add("files:\n- {path: /etc/x, content: a, source: b}\n"), "shop.yaml:10:3: files[0]: 2 of content, source are set, want exactly one"},
		{"file without content", add("files:\n- {path: /etc/x}\n"), "files[0]: 0 of content, source are set, want exactly one"},
		{"file without a path", add("files:\n- content: a\n"), "shop.yaml:10:3: files[0].path: missing"},
		{"relative path", add("files:\n- {path: etc/x, content: a}\n"), `files[0].path: "etc/x" is not an absolute path`},
		{"path with dots", add("files:\n- {path: /etc/../x, content: a}\n"), "files[0].path: /etc/../x is not a clean path"},
		{"the agent", add("files:\n- {path: /usr/lib/sealift/agent, content: a}\n"), "files[0].path: /usr/lib/sealift/agent is not"},
		{"the agent by another name", add("files:\n- {path: /lib/sealift/agent, content: a}\n"), "files[0].path: /lib/sealift/agent is not"},
		{"init", add("files:\n- {path: /sbin/init, content: a}\n"), "files[0].path: /sbin/init is not"},
		{"the agent's configuration", add("files:\n- {path: /etc/sealift/agent.json, content: a}\n"), "files[0].path: /etc/sealift/agent.json is not"},
		{"the state partition", add("files:\n- {path: /var/lib/x, content: a}\n"), "files[0].path: /var/lib/x is not"},
		{"a mount point", add("files:\n- {path: /run, content: a}\n"), "files[0].path: /run is not"},
		{"a link of the root", add("files:\n- {path: /bin, content: a}\n"), "files[0].path: /bin is not"},
		{"a kernel module", add("files:\n- {path: /lib/modules/6.1/x.ko, content: a}\n"), "files[0].path: /lib/modules/6.1/x.ko is not"},
		{"a file twice", add("files:\n- {path: /lib/x, content: a}\n- {path: /usr/lib/x, content: b}\n"), "shop.yaml:11:10: files[1].path: /usr/lib/x is listed twice"},
		{"setuid bit", add("files:\n- {path: /etc/x, content: a, mode: '4755'}\n"), `files[0].mode: "4755" is not the mode of a file`},
		{"mode without quotes", add("files:\n- {path: /etc/x, content: a, mode: 0644}\n"), `files[0].mode: got the number 0644, want a string; write "0644"`},
		{"source outside", add("files:\n- {path: /etc/x, source: ../x}\n"), "files[0].source: ../x is not a clean path below the profile's directory"},
		{"absolute source", add("files:\n- {path: /etc/x, source: /etc/shadow}\n"), "files[0].source: /etc/shadow is not a clean path below"},
		{"user without a number", add("users:\n- name: till\n"), "shop.yaml:10:3: users[0].uid: missing"},
		{"user root", add("users:\n- {name: root, uid: 1000}\n"), "users[0].name: root is in every image already"},
		{"system user", add("users:\n- {name: till, uid: 0}\n"), "users[0].uid: 0 is not between 1000 and 59999"},
		{"number twice", add("users:\n- {name: a, uid: 1000}\n- {name: b, uid: 1000}\n"), "shop.yaml:11:18: users[1].uid: 1000 is listed twice"},
		{"shell without debug", add("users:\n- {name: a, uid: 1000, shell: /bin/sh}\n"), "users[0].shell: a user has a shell only in images marked debug"},
		{"manifest that is no pod", add("preload:\n  manifests:\n  - name: x\n    content: |\n      apiVersion: apps/v1\n      kind: Deployment\n"), `preload.manifests[0].content: static pod: apiVersion "apps/v1", kind "Deployment"; want v1 and Pod`},
		{"manifest that is no YAML", add("preload:\n  manifests:\n  - name: x\n    content: '['\n"), "preload.manifests[0].content: static pod: "},
		{"manifest without a name", add("preload:\n  manifests:\n  - source: x.yaml\n"), "preload.manifests[0].name: missing"},
		{"manifest for a distro that takes none", func(s string) string {
			return strings.Replace(s, "version: v1.34.4", "version: v1.34.1+rke2r1\n  distro: rke2", 1) + "preload:\n  manifests:\n  - {name: x, source: x.yaml}\n"
		}, "preload.manifests: distro rke2 takes no static pods from the image"},
		{"hardware without a pattern", add("hardware:\n- {}\n"), "hardware[0]: no field is set"},
		{"hardware by its serial", add("hardware:\n- {serial: '4711'}\n"), "hardware[0].serial: unknown field"},
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
