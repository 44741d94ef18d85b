package profiles

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func readDemoLock(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("demo.lock.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLockIsWrittenAsItIsRead(t *testing.T) {
	raw := readDemoLock(t)
	l, err := ParseLock("demo.lock.yaml", raw)
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, out) {
		t.Error("encoding the parsed lock gives another text")
	}
	d1, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	l.Debian.Packages[0].Size++
	if d2, err := l.Digest(); err != nil || d1 == d2 {
		t.Errorf("digest does not depend on a package's size (%v)", err)
	}
}

func TestLockPinsEveryPackageTwice(t *testing.T) {
	l, err := ParseLock("demo.lock.yaml", readDemoLock(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Debian.Packages {
		if len(p.URLs) != 2 || !strings.HasPrefix(p.URLs[1], "https://snapshot.debian.org/archive/debian") {
			t.Errorf("package %s: addresses %v, want a mirror and snapshot.debian.org", p.Name, p.URLs)
		}
	}
	if _, err := l.Package("libc6"); err != nil {
		t.Error(err)
	}
	if _, err := l.Package("none"); err == nil {
		t.Error("a package that is not locked was found")
	}
}

func TestDamagedLocksAreRefused(t *testing.T) {
	raw := string(readDemoLock(t))
	tests := []struct{ claim, old, new, want string }{
		{"unknown field", "suite: bookworm\n", "suit: bookworm\n", "debian.suit: unknown field; did you mean suite?"},
		{"short digest", "sha256: 3d3fdbe9", "sha256: 3d3f", "is not a SHA-256 digest"},
		{"upper-case digest", "sha256: 3d3fdbe9", "sha256: 3D3FDBE9", "is not a SHA-256 digest"},
		{"size below one", "size: 928188", "size: 0", "debian.packages[0].size: 0 is not between 1"},
		{"file address", "http://deb.debian.org/debian/pool/main/b/busybox", "file:///etc", "is not an http or https address"},
		{"package name with a path", "name: busybox-static", "name: ../busybox", "is not a package name"},
		{"toolchain that is a path", "toolchain: go1.26.8", "toolchain: /bin/sh", "is not a Go toolchain"},
		{"other kind", "kind: Lock", "kind: Profile", "kind"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			bad := strings.Replace(raw, tc.old, tc.new, 1)
			if bad == raw {
				t.Fatalf("%q is not in the lock", tc.old)
			}
			if _, err := ParseLock("l.yaml", []byte(bad)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestLockOfAnotherChoiceIsStale(t *testing.T) {
	l, err := ParseLock("demo.lock.yaml", readDemoLock(t))
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() *Profile {
		p, err := Load("demo.yaml")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	same := fresh()
	same.Kernel.Cmdline = append(same.Kernel.Cmdline, "quiet")
	same.Disk.Slot *= 2
	if err := l.CheckProfile(same); err != nil {
		t.Errorf("a change that chooses no inputs makes the lock stale: %v", err)
	}
	for claim, edit := range map[string]func(*Profile){
		"name":     func(p *Profile) { p.Name = "other" },
		"packages": func(p *Profile) { p.Packages = []string{"nano"} },
		"kernel":   func(p *Profile) { p.Kernel.Package = "linux-image-amd64" },
		"mirror":   func(p *Profile) { p.Debian.Mirror = "http://mirror.example" },
		"preload":  func(p *Profile) { p.Preload.Images = nil },
	} {
		p := fresh()
		edit(p)
		if err := l.CheckProfile(p); err == nil {
			t.Errorf("the lock fits a profile with another %s", claim)
		}
	}
}

func FuzzParseLock(f *testing.F) {
	f.Add(readDemoLock(f))
	f.Add([]byte("debian: {packages: [{name: x}]}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLock("l.yaml", b)
		if err != nil {
			return
		}
		out, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseLock("l.yaml", out); err != nil {
			t.Errorf("an encoded lock does not parse: %v", err)
		}
	})
}
