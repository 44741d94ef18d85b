//go:build vmtest

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/verity"
)

// modules are what the checks need of Debian's cloud kernel, in load order.
var modules = []string{
	"virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio", "virtio_pci", "virtio_blk",
	"dm-mod", "reed_solomon", "dm-bufio", "dm-verity", "ecb", "xts", "dm-crypt", "libcrc32c", "erofs", "efivarfs",
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(name); err != nil && !filepath.IsAbs(name) {
		cmd.Path, cmd.Err = "/usr/sbin/"+name, nil
	} else if err == nil {
		cmd.Path = path
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// fixture is what a machine is started with.
type fixture struct {
	dir, kernel, rootHash string
}

func newFixture(t *testing.T) fixture {
	deb := os.Getenv("VMTEST_KERNEL")
	if deb == "" {
		t.Skip("VMTEST_KERNEL does not name a Debian cloud kernel package")
	}
	fx := fixture{dir: t.TempDir()}
	run(t, "dpkg-deb", "-x", deb, filepath.Join(fx.dir, "deb"))
	kernels, err := filepath.Glob(filepath.Join(fx.dir, "deb/boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels in %s: %q, %v", deb, kernels, err)
	}
	fx.kernel = kernels[0]
	fx.initramfs(t)
	fx.disks(t)
	run(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", filepath.Join(fx.dir, "vars.fd"))
	return fx
}

func (fx *fixture) initramfs(t *testing.T) {
	root := filepath.Join(fx.dir, "root")
	run(t, "mkdir", "-p", root+"/modules", root+"/keys", root+"/sbin", root+"/etc")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-tags", "vmtest", "-o", root+"/init", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	var list strings.Builder
	for _, m := range modules {
		path := strings.TrimSpace(run(t, "find", filepath.Join(fx.dir, "deb/lib/modules"), "-name", m+".ko"))
		run(t, "cp", path, root+"/modules/")
		fmt.Fprintf(&list, "/modules/%s.ko\n", m)
	}
	if err := os.WriteFile(root+"/modules.list", []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "/sbin/mke2fs", root+"/sbin/")
	for _, m := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(run(t, "ldd", "/sbin/mke2fs"), -1) {
		run(t, "mkdir", "-p", root+filepath.Dir(m[1]))
		run(t, "cp", m[1], root+m[1])
	}
	// efitools make the payloads: another implementation than ours.
	keys := root + "/keys/"
	for _, k := range []struct{ name, signer string }{{"PK", "PK"}, {"KEK", "PK"}, {"db", "KEK"}} {
		run(t, "openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN="+k.name, "-keyout", keys+k.name+".key", "-out", keys+k.name+".crt")
		run(t, "cert-to-efi-sig-list", keys+k.name+".crt", keys+k.name+".esl")
		run(t, "sign-efi-sig-list", "-k", keys+k.signer+".key", "-c", keys+k.signer+".crt", k.name, keys+k.name+".esl", keys+k.name+".auth")
	}
	run(t, "sh", "-c", "cd "+root+" && find . | cpio --quiet -o -H newc | gzip -1 > ../initrd")
}

// disks makes vda with our layout and room behind it, and vdb full of noise.
func (fx *fixture) disks(t *testing.T) {
	src, erofs, tree := filepath.Join(fx.dir, "src"), filepath.Join(fx.dir, "erofs"), filepath.Join(fx.dir, "tree")
	run(t, "mkdir", src)
	run(t, "dd", "if=/dev/urandom", "of="+src+"/large", "bs=1M", "count=4", "status=none")
	run(t, "mkfs.erofs", erofs, src)
	run(t, "truncate", "-s", "%4096", erofs)
	out := run(t, "veritysetup", "format", erofs, tree)
	fx.rootHash = regexp.MustCompile(`Root hash:\s*([0-9a-f]{64})`).FindStringSubmatch(out)[1]
	var root [32]byte
	for i := range root {
		b, err := strconv.ParseUint(fx.rootHash[2*i:2*i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		root[i] = byte(b)
	}
	data, hash := verity.Partitions(root)
	vda, vdb := filepath.Join(fx.dir, "vda"), filepath.Join(fx.dir, "vdb")
	run(t, "truncate", "-s", "48M", vda)
	run(t, "sgdisk", "-n", "1:2048:+8M", "-t", "1:ef00", "-c", "1:esp",
		"-n", "2:0:+16M", "-c", "2:root-a", "-u", "2:"+data.String(),
		"-n", "3:0:+2M", "-c", "3:root-verity-a", "-u", "3:"+hash.String(),
		"-n", "4:0:+16M", "-c", "4:root-b", "-n", "5:0:+2M", "-c", "5:root-verity-b", vda)
	run(t, "dd", "if="+erofs, "of="+vda, "bs=1M", "seek=9", "conv=notrunc", "status=none")
	run(t, "dd", "if="+tree, "of="+vda, "bs=1M", "seek=25", "conv=notrunc", "status=none")
	run(t, "truncate", "-s", "512M", vda)
	if err := os.WriteFile(vdb, bytes.Repeat([]byte{0xa5}, 96<<20), 0o644); err != nil {
		t.Fatal(err)
	}
}

// boot runs the machine to its end and returns what it printed.
func (fx *fixture) boot(t *testing.T, ctx context.Context, kernel bool, cmdline string) string {
	t.Helper()
	args := []string{
		"-machine", "q35,smm=on,accel=tcg", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-smp", "2", "-m", "512", "-nographic", "-nic", "none", "-no-reboot",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + fx.dir + "/vars.fd",
		"-drive", "if=none,id=a,format=raw,discard=unmap,file=" + fx.dir + "/vda", "-device", "virtio-blk-pci,drive=a",
		"-drive", "if=none,id=b,format=raw,discard=unmap,file=" + fx.dir + "/vdb", "-device", "virtio-blk-pci,drive=b",
	}
	if kernel {
		args = append(args, "-kernel", fx.kernel, "-initrd", fx.dir+"/initrd",
			"-append", "console=ttyS0 panic=-1 quiet vmtest.roothash="+fx.rootHash+" "+cmdline)
	}
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput()
	if err != nil && ctx.Err() == nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	return string(out)
}

func TestTheLibrariesInAMachine(t *testing.T) {
	fx := newFixture(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out := fx.boot(t, ctx, true, "vmtest.panic")
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "check: ") || strings.Contains(line, "vmtest: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if !strings.Contains(out, "vmtest: 0 failed") {
		t.Fatalf("not all checks passed:\n%s", out)
	}
	if !strings.Contains(out, "Kernel panic - not syncing: dm-verity device corrupted") {
		t.Errorf("the kernel did not panic:\n%s", out)
	}

	vda := filepath.Join(fx.dir, "vda")
	if v := run(t, "sgdisk", "--verify", vda); !strings.Contains(v, "No problems found") {
		t.Errorf("sgdisk --verify:\n%s", v)
	}
	// The state partition starts behind the image's last partition, at 45 MiB.
	state, key := filepath.Join(fx.dir, "state"), filepath.Join(fx.dir, "key")
	run(t, "dd", "if="+vda, "of="+state, "bs=1M", "skip=45", "count=32", "status=none")
	if err := os.WriteFile(key, bytes.Repeat([]byte{0x0a}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "cryptsetup", "open", "--test-passphrase", "--key-file", key, state)

	// The firmware now starts from our entry, and finds no file there.
	ctx, cancel = context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	out = fx.boot(t, ctx, false, "")
	m := regexp.MustCompile(`BdsDxe: [^\r\n]*`).FindString(out)
	t.Log(m)
	if !strings.Contains(m, `"Sealift" from HD(1,GPT`) {
		t.Errorf("the first boot option tried is %q", m)
	}
}
