package profiles

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEachArchitectureHasALockOfItsOwn(t *testing.T) {
	for _, tc := range []struct{ profile, arch, want string }{
		{"profiles/demo.yaml", AMD64, "profiles/demo.lock.yaml"},
		{"profiles/demo.yaml", ARM64, "profiles/demo.arm64.lock.yaml"},
		{"shop", ARM64, "shop.arm64.lock.yaml"},
	} {
		if got := LockPathFor(tc.profile, tc.arch); got != tc.want {
			t.Errorf("lock of %s for %s is %s, want %s", tc.profile, tc.arch, got, tc.want)
		}
	}
	if got := LockPath("profiles/demo.yaml"); got != "profiles/demo.lock.yaml" {
		t.Errorf("lock is %s", got)
	}
}

func TestDefaultsFollowTheArchitectureThatIsAskedFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shop.yaml")
	if err := os.WriteFile(file, []byte(valid), 0o600); err != nil {
		t.Fatal(err)
	}
	amd64, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	arm64, err := LoadFor(file, ARM64)
	if err != nil {
		t.Fatal(err)
	}
	if arm64.Arch != ARM64 || arm64.Kernel.Package != "linux-image-cloud-arm64" || arm64.Disk.UKI <= amd64.Disk.UKI {
		t.Errorf("arch %s, kernel %s, uki %d MiB", arm64.Arch, arm64.Kernel.Package, arm64.Disk.UKI)
	}
	a, err := amd64.InputDigest()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := arm64.InputDigest(); err != nil || a == b {
		t.Errorf("both architectures choose the same inputs: %s, %v", b, err)
	}
	if _, err := LoadFor(file, "riscv64"); err == nil {
		t.Error("an unknown architecture was accepted")
	}
}

func TestDemoProfileLoadsForArm64AndItsLockFits(t *testing.T) {
	p, err := LoadFor("demo.yaml", ARM64)
	if err != nil {
		t.Fatal(err)
	}
	l, err := LoadLock(LockPathFor("demo.yaml", ARM64))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckProfile(p); err != nil {
		t.Errorf("%v: run sealift profile lock profiles/demo.yaml --arch arm64", err)
	}
}
