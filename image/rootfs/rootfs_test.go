package rootfs

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

const (
	libDir  = "./lib/x86_64-linux-gnu/"
	modDir  = "./lib/modules/6.1.0-1-cloud-amd64/kernel/"
	linker  = "/lib64/ld-linux-x86-64.so.2"
	testSum = "0000000000000000000000000000000000000000000000000000000000000000"
)

// pkg is the content of a package: a name that starts with "->" is the target
// of a symbolic link.
type pkg map[string]any

// writePackage makes a package's data archive as the cache holds it.
func writePackage(t *testing.T, dir, name string, p pkg) string {
	t.Helper()
	file := filepath.Join(dir, name)
	out, err := os.Create(file)
	must(t, err)
	z, err := zstd.NewWriter(out)
	must(t, err)
	w := tar.NewWriter(z)
	var names []string
	for n := range p {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		switch v := p[n].(type) {
		case string:
			must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: strings.TrimPrefix(v, "->"), Mode: 0o777}))
		case []byte:
			must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o755, Size: int64(len(v))}))
			_, err := w.Write(v)
			must(t, err)
		}
	}
	must(t, w.Close(), z.Close(), out.Close())
	return file
}

// packages are a small Debian that has all that the demo profile asks for.
func packages(t *testing.T) map[string]pkg {
	prog := func(libs ...string) []byte { return dynamic(t, linker, append(libs, "libc.so.6")...) }
	static := makeELF(t, "")
	return map[string]pkg{
		"linux-image-cloud-amd64": {"./usr/share/doc/linux/changelog": static},
		"linux-image-6.1.0-1-cloud-amd64": {
			"./boot/vmlinuz-6.1.0-1-cloud-amd64":                   []byte("kernel"),
			"./boot/System.map-6.1.0-1-cloud-amd64":                []byte("map"),
			"./lib/modules/6.1.0-1-cloud-amd64/modules.builtin":    []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme.ko\nkernel/drivers/char/tpm/tpm_tis.ko\n"),
			modDir + "drivers/virtio/virtio.ko":                    kmod(t, "depends="),
			modDir + "drivers/virtio/virtio_pci.ko":                kmod(t, "depends=virtio"),
			modDir + "drivers/block/virtio_blk.ko":                 kmod(t, "depends=virtio"),
			modDir + "drivers/scsi/virtio_scsi.ko":                 kmod(t, "depends=virtio,scsi_mod"),
			modDir + "drivers/scsi/scsi_mod.ko":                    kmod(t, "depends="),
			modDir + "drivers/scsi/sd_mod.ko":                      kmod(t, "depends=scsi_mod"),
			modDir + "drivers/net/virtio_net.ko":                   kmod(t, "depends=virtio"),
			modDir + "fs/efivarfs/efivarfs.ko":                     kmod(t),
			modDir + "fs/erofs/erofs.ko":                           kmod(t, "depends=libcrc32c"),
			modDir + "lib/libcrc32c.ko":                            kmod(t, "softdep=pre: crc32c", "depends="),
			modDir + "drivers/md/dm-mod.ko":                        kmod(t),
			modDir + "drivers/md/dm-verity.ko":                     kmod(t, "depends=reed_solomon,dm-mod"),
			modDir + "lib/reed_solomon.ko":                         kmod(t),
			modDir + "drivers/md/dm-crypt.ko":                      kmod(t, "depends=dm-mod"),
			modDir + "crypto/xts.ko":                               kmod(t, "softdep=pre: ecb", "depends="),
			modDir + "crypto/ecb.ko":                               kmod(t),
			modDir + "fs/overlayfs/overlay.ko":                     kmod(t),
			modDir + "drivers/net/veth.ko":                         kmod(t),
			modDir + "drivers/hid/usbhid/usbhid.ko":                kmod(t, "depends=hid"),
			modDir + "drivers/hid/hid.ko":                          kmod(t),
			modDir + "net/bridge/bridge.ko":                        kmod(t, "depends=llc,stp"),
			modDir + "net/bridge/br_netfilter.ko":                  kmod(t, "depends=bridge"),
			modDir + "net/802/stp.ko":                              kmod(t, "depends=llc"),
			modDir + "net/llc/llc.ko":                              kmod(t),
			modDir + "drivers/ata/unused.ko":                       kmod(t),
			"./usr/share/doc/linux-image-6.1.0-1-cloud-amd64/NEWS": []byte("news"),
		},
		"systemd-boot-efi": {"./usr/lib/systemd/boot/efi/linuxx64.efi.stub": []byte("stub"), "./usr/lib/systemd/boot/efi/linuxia32.efi.stub": []byte("no")},
		"libc6": {
			libDir + "libc.so.6":               dynamic(t, linker, "ld-linux-x86-64.so.2"),
			libDir + "ld-linux-x86-64.so.2":    static,
			"./lib64/ld-linux-x86-64.so.2":     "->/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
			libDir + "libm.so.6":               static,
			"./usr/share/doc/libc6/copyright":  []byte("text"),
			"./usr/lib/x86_64-linux-gnu/gconv": []byte("x"),
		},
		"libext2fs2":                  {libDir + "libext2fs.so.2": "->libext2fs.so.2.4", libDir + "libext2fs.so.2.4": prog()},
		"libseccomp2":                 {"./usr/lib/x86_64-linux-gnu/libseccomp.so.2": "->libseccomp.so.2.5.4", "./usr/lib/x86_64-linux-gnu/libseccomp.so.2.5.4": prog()},
		"e2fsprogs":                   {"./sbin/mke2fs": prog("libext2fs.so.2"), "./sbin/mkfs.ext4": "->mke2fs", "./etc/mke2fs.conf": []byte("[defaults]"), "./sbin/fsck.ext4": static},
		"containerd":                  {"./usr/bin/containerd": prog(), "./usr/bin/containerd-shim-runc-v2": static, "./usr/bin/ctr": prog(), "./usr/bin/containerd-stress": static},
		"runc":                        {"./usr/sbin/runc": prog("libseccomp.so.2")},
		"containernetworking-plugins": {"./usr/lib/cni/bridge": prog(), "./usr/lib/cni/host-local": prog(), "./usr/lib/cni/loopback": prog(), "./usr/lib/cni/vlan": prog()},
		"busybox-static":              {"./bin/busybox": static},
		"nano":                        {"./bin/nano": prog("libm.so.6"), "./usr/share/nano/c.nanorc": []byte("rc"), "./usr/share/doc/nano/README": []byte("doc")},
	}
}

func config(t *testing.T, content map[string]pkg) Config {
	t.Helper()
	dir := t.TempDir()
	p := profiles.Defaults()
	p.APIVersion, p.Kind, p.Name, p.Version = profiles.APIVersion, profiles.Kind, "shop", "1"
	p.Kubernetes.Version, p.Attest.URL = "v1.34.4", "https://attest.example:8443"
	p.Preload.Images = []profiles.PreloadImage{{Name: "docker.io/shop/till:v2", Go: "till"}}
	must(t, p.Validate())
	lock := &profiles.Lock{}
	in := &inputs.Inputs{Lock: lock, Packages: map[string]string{}, Programs: map[string]string{}, Sources: map[string]string{}}
	for name, c := range content {
		lock.Debian.Packages = append(lock.Debian.Packages, profiles.LockedPackage{Name: name, Version: "1-1", SHA256: testSum})
		in.Packages[name] = writePackage(t, dir, name, c)
	}
	program := filepath.Join(dir, "program")
	must(t, os.WriteFile(program, []byte("static program"), 0o755))
	in.Programs["kubelet"], in.Sources["docker.io/shop/till:v2"] = program, program
	return Config{Profile: p, Inputs: in, Agent: program, Pause: program, Epoch: 1700000000}
}

func build(t *testing.T, c Config) (*Builder, *tree.Tree) {
	t.Helper()
	b, err := New(c)
	must(t, err)
	root, err := b.Root(t.Context())
	must(t, err)
	return b, root
}

func TestKernelAndStubAreRead(t *testing.T) {
	b, _ := build(t, config(t, packages(t)))
	if b.KernelVersion != "6.1.0-1-cloud-amd64" || string(b.Kernel) != "kernel" || string(b.Stub) != "stub" || b.StubPackage != "1-1" {
		t.Errorf("got kernel %s %q, stub %s %q", b.KernelVersion, b.Kernel, b.StubPackage, b.Stub)
	}
}

func TestRootHoldsWhatIsWantedAndNothingElse(t *testing.T) {
	_, root := build(t, config(t, packages(t)))
	for name, target := range map[string]string{
		"/sbin/init":       profiles.RootAgentPath,
		"/usr/bin/mount":   "busybox",
		"/etc/machine-id":  "/run/machine-id",
		"/etc/resolv.conf": "/run/resolv.conf",
		"/bin":             "usr/bin",
	} {
		if n, err := root.Lookup(name); err != nil || n.Target() != target {
			t.Errorf("%s: %v, want a link to %s", name, err, target)
		}
	}
	for _, name := range []string{
		"/usr/bin/kubelet", "/usr/bin/containerd", "/usr/bin/busybox", "/usr/sbin/runc", "/usr/sbin/mke2fs", "/etc/mke2fs.conf", "/usr/lib/cni/bridge",
		"/usr/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2",
		"/usr/lib/x86_64-linux-gnu/libext2fs.so.2.4", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2.5.4",
		"/proc", "/sys", "/dev", "/run", "/tmp", "/var", profiles.RootAgentPath, profiles.NodeConfigPath,
	} {
		if _, _, err := root.Resolve(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, root.Walk(func(name string, _ *tree.Node) error {
		for _, bad := range []string{"share/doc", "libm.so", "fsck", "stress", "vlan", "vmlinuz", "System.map", "stub", "gconv", "nano", "unused"} {
			if strings.Contains(name, bad) {
				t.Errorf("%s is in the root file system", name)
			}
		}
		return nil
	}))
}

func TestRootIsTheSameTwice(t *testing.T) {
	c := config(t, packages(t))
	var images [2]bytes.Buffer
	for i := range images {
		_, root := build(t, c)
		must(t, root.WriteCPIO(&images[i], 0))
		slices.Reverse(c.Inputs.Lock.Debian.Packages)
	}
	if !bytes.Equal(images[0].Bytes(), images[1].Bytes()) {
		t.Error("two trees of the same inputs differ")
	}
}

func TestRootConfigurationIsFilledIn(t *testing.T) {
	_, root := build(t, config(t, packages(t)))
	for name, want := range map[string]string{
		"/etc/cni/net.d/10-pods.conflist": `"subnet": "10.88.0.0/24"`,
		"/etc/containerd/config.toml":     `sandbox_image = "docker.io/sealift/pause:1"`,
		"/etc/kubernetes/kubelet.yaml":    "clientCAFile: /var/lib/kubelet/cluster-ca.crt",
		"/etc/os-release":                 "IMAGE_VERSION=1",
	} {
		b, err := root.ReadFile(name, 1<<20)
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v: no %q in\n%s", name, err, want, b)
		}
	}
	for debug, want := range map[bool]string{
		false: "VERSION_ID=1\n",
		true:  "VERSION_ID=1\nVARIANT=\"Debug\"\nVARIANT_ID=debug\n",
	} {
		c := config(t, packages(t))
		c.Profile.Debug = debug
		_, root := build(t, c)
		b, err := root.ReadFile("/etc/os-release", 1<<20)
		must(t, err)
		if text := string(b); !strings.HasSuffix(text, "IMAGE_VERSION=1\n"+want) || profiles.MarkedDebug(b) != debug {
			t.Errorf("os-release with debug %t is %q", debug, text)
		}
	}
	raw, err := root.ReadFile(profiles.NodeConfigPath, 1<<20)
	must(t, err)
	var n profiles.NodeConfig
	must(t, json.Unmarshal(raw, &n))
	if n.Image != "shop 1" || len(n.Services) != 2 || n.Services[0].Socket == "" || len(n.Import) == 0 {
		t.Errorf("node configuration is %+v", n)
	}
}

func TestRootHoldsThePreloadedImages(t *testing.T) {
	_, root := build(t, config(t, packages(t)))
	for file, name := range map[string]string{
		"docker.io__sealift__pause@1.tar": "docker.io/sealift/pause:1",
		"docker.io__shop__till@v2.tar":    "docker.io/shop/till:v2",
	} {
		b, err := root.ReadFile(profiles.ImagesDir+"/"+file, 1<<20)
		must(t, err, oci.CheckArchive(bytes.NewReader(b), name))
	}
}

func TestAnArchiveIsCheckedBeforeItIsPreloaded(t *testing.T) {
	c := config(t, packages(t))
	program := c.Agent
	var good bytes.Buffer
	must(t, oci.WriteArchive(&good, oci.Image{Name: "docker.io/x/y:1", Arch: "amd64", Program: program, Path: "/y"}))
	file := filepath.Join(t.TempDir(), "y.tar")
	must(t, os.WriteFile(file, good.Bytes(), 0o600))
	c.Profile.Preload.Images = []profiles.PreloadImage{{Name: "docker.io/x/y:1", Archive: "y.tar"}}
	c.Inputs.Archives = map[string]string{"docker.io/x/y:1": file}
	build(t, c)
	c.Profile.Preload.Images[0].Name = "docker.io/x/z:1"
	c.Inputs.Archives = map[string]string{"docker.io/x/z:1": file}
	b, err := New(c)
	must(t, err)
	if _, err := b.Root(t.Context()); err == nil || !strings.Contains(err.Error(), "docker.io/x/y:1") {
		t.Errorf("an archive of another image: %v", err)
	}
}

func base(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, strings.TrimSuffix(filepath.Base(p), ".ko"))
	}
	return out
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	b, root := build(t, config(t, packages(t)))
	boot, mods, err := b.Initrd(profiles.AgentConfig{Mode: profiles.ModeBoot, AttestURL: "https://a:1"})
	must(t, err)
	want := []string{"virtio", "virtio_pci", "virtio_net", "virtio_blk", "scsi_mod", "virtio_scsi", "sd_mod", "efivarfs", "dm-mod",
		"reed_solomon", "dm-verity", "dm-crypt", "ecb", "xts", "libcrc32c", "erofs"}
	if got := base(mods); !slices.Equal(got, want) {
		t.Errorf("initramfs loads\n%v, want\n%v", got, want)
	}
	for _, m := range mods {
		if _, err := boot.Lookup(m); err != nil {
			t.Error(err)
		}
	}
	raw, err := boot.ReadFile(profiles.AgentConfigPath, 1<<20)
	must(t, err)
	var cfg profiles.AgentConfig
	must(t, json.Unmarshal(raw, &cfg))
	if cfg.Image != "shop 1" || cfg.AttestURL != "https://a:1" || !slices.Equal(cfg.Modules, mods) {
		t.Errorf("agent configuration is %+v", cfg)
	}
	_, mods, err = b.Initrd(profiles.AgentConfig{Mode: profiles.ModeInstall})
	must(t, err)
	if got := base(mods); slices.Contains(got, "dm-verity") || !slices.Contains(got, "efivarfs") {
		t.Errorf("installer loads %v", got)
	}
	list, err := root.ReadFile(profiles.RootModulesPath, 1<<20)
	must(t, err)
	if got, want := base(strings.Fields(string(list))), []string{"overlay", "veth", "llc", "stp", "bridge", "br_netfilter"}; !slices.Equal(got, want) {
		t.Errorf("root loads %v, want %v", got, want)
	}
	list, err = root.ReadFile(profiles.PeopleModulesPath, 1<<20)
	must(t, err)
	people := strings.Fields(string(list))
	if got, want := base(people), []string{"hid", "usbhid"}; !slices.Equal(got, want) {
		t.Errorf("people get %v, want %v", got, want)
	}
	for _, p := range people {
		if _, err := root.Lookup(p); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := b.Initrd(profiles.AgentConfig{Mode: "other"}); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

func TestModulesAskedForMustExist(t *testing.T) {
	for _, tc := range []struct {
		claim, module, want string
	}{
		{"built in", "ext4", ""},
		{"dash for underscore", "virtio-blk", ""},
		{"missing", "zfs", "the kernel has no module zfs, and it is not built in"},
	} {
		c := config(t, packages(t))
		c.Profile.Kernel.Root = []string{tc.module}
		b, err := New(c)
		must(t, err)
		_, err = b.Root(t.Context())
		if (tc.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.claim, err, tc.want)
		}
	}
}

func TestModulesThatDependOnThemselvesAreRefused(t *testing.T) {
	m := &modules{files: map[string]*module{
		"a": {path: "/a.ko", data: kmod(t, "depends=b")},
		"b": {path: "/b.ko", data: kmod(t, "depends=a")},
		"c": {path: "/c.ko", data: kmod(t, "depends=gone")},
		"d": {path: "/d.ko", data: []byte("no ELF")},
	}, builtin: map[string]bool{}}
	for name, want := range map[string]string{"a": "depends on itself", "c": "no module gone, which c depends on", "d": "/d.ko"} {
		if _, err := m.resolve([]string{name}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestMissingInputsAreNamed(t *testing.T) {
	for claim, tc := range map[string]struct {
		edit func(map[string]pkg, *Config)
		want string
	}{
		"file of a package": {func(p map[string]pkg, _ *Config) { delete(p["runc"], "./usr/sbin/runc") }, "package runc has no file /usr/sbin/runc"},
		"library":           {func(p map[string]pkg, _ *Config) { delete(p, "libseccomp2") }, "usr/sbin/runc needs libseccomp.so.2"},
		"program":           {func(_ map[string]pkg, c *Config) { delete(c.Inputs.Programs, "kubelet") }, "program kubelet is not among the inputs"},
		"image":             {func(_ map[string]pkg, c *Config) { delete(c.Inputs.Sources, "docker.io/shop/till:v2") }, "docker.io/shop/till:v2"},
	} {
		content := packages(t)
		tc.edit(content, &Config{Inputs: &inputs.Inputs{Programs: map[string]string{}, Sources: map[string]string{}}})
		c := config(t, content)
		tc.edit(content, &c)
		b, err := New(c)
		must(t, err)
		if _, err := b.Root(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", claim, err, tc.want)
		}
	}
	content := packages(t)
	delete(content, "linux-image-6.1.0-1-cloud-amd64")
	if _, err := New(config(t, content)); err == nil || !strings.Contains(err.Error(), "no package of the lock has a kernel") {
		t.Errorf("no kernel: %v", err)
	}
}

func TestWholePackagesBringEverythingButDocumentation(t *testing.T) {
	c := config(t, packages(t))
	c.Profile.Packages = []string{"nano"}
	_, root := build(t, c)
	for _, name := range []string{"/usr/bin/nano", "/usr/share/nano/c.nanorc", "/usr/lib/x86_64-linux-gnu/libm.so.6"} {
		if _, err := root.Lookup(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := root.Lookup("/usr/share/doc"); err == nil {
		t.Error("documentation is in the root file system")
	}
	n, err := root.Lookup("/usr/bin/nano")
	must(t, err)
	rc, err := n.Open()
	must(t, err)
	b, err := io.ReadAll(rc)
	must(t, err, rc.Close())
	if len(b) == 0 {
		t.Error("the program is empty")
	}
}
