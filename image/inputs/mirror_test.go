package inputs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

// now is when the tests' indexes are read; they are a day old.
var now = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// stanza is one package of a test mirror.
type stanza struct{ name, version, depends, provides string }

// mirror is a small Debian mirror: three suites, signed with a key of its own.
type mirror struct {
	*httptest.Server
	key   *openpgp.Entity
	files map[string][]byte // by path of the address
	asked atomic.Int64      // requests
}

func newMirror(t testing.TB, suites map[string][]stanza) *mirror {
	t.Helper()
	cfg := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return now.AddDate(-1, 0, 0) }}
	key, err := openpgp.NewEntity("test archive", "", "test@example.org", cfg)
	must(t, err)
	m := &mirror{key: key, files: map[string][]byte{}}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		b, ok := m.files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		// Nothing is left to say if the client went away.
		_, _ = w.Write(b)
	}))
	t.Cleanup(m.Close)
	for _, suite := range []string{"bookworm", "bookworm-updates", "bookworm-security"} {
		m.addSuite(t, suite, suites[suite], "")
	}
	return m
}

// deb is a package with one file.
func deb(t testing.TB, name, version string) []byte {
	return makeDeb(t, "data.tar", makeTar(t, file("./usr/share/doc/"+name, version)))
}

func (m *mirror) addSuite(t testing.TB, suite string, packages []stanza, extra string) {
	t.Helper()
	archive := "/debian"
	if strings.HasSuffix(suite, "-security") {
		archive = "/debian-security"
	}
	var index bytes.Buffer
	for _, p := range packages {
		pool := "pool/main/" + p.name + "_" + p.version + "_amd64.deb"
		body := deb(t, p.name, p.version)
		m.files[archive+"/"+pool] = body
		fmt.Fprintf(&index, "Package: %s\nVersion: %s\nArchitecture: amd64\nFilename: %s\nSize: %d\nSHA256: %x\nDescription: x\n more of it\n",
			p.name, p.version, pool, len(body), sha256.Sum256(body))
		if p.depends != "" {
			fmt.Fprintf(&index, "Depends: %s\n", p.depends)
		}
		if p.provides != "" {
			fmt.Fprintf(&index, "Provides: %s\n", p.provides)
		}
		index.WriteString("\n")
	}
	var z bytes.Buffer
	w, err := xz.NewWriter(&z)
	must(t, err)
	_, err = w.Write(index.Bytes())
	must(t, err, w.Close())
	sum := sha256.Sum256(z.Bytes())
	root := archive + "/dists/" + suite
	m.files[fmt.Sprintf("%s/main/binary-amd64/by-hash/SHA256/%x", root, sum)] = z.Bytes()
	release := fmt.Sprintf("Origin: Test\nSuite: oldstable\nCodename: %s\nDate: %s\nAcquire-By-Hash: yes\n%sSHA256:\n %x %d main/binary-amd64/Packages.xz\n",
		suite, now.AddDate(0, 0, -1).Format("Mon, 02 Jan 2006 15:04:05 UTC"), extra, sum, z.Len())
	m.files[root+"/InRelease"] = sign(t, m.key, release)
}

func sign(t testing.TB, key *openpgp.Entity, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, key.PrivateKey, &packet.Config{Time: func() time.Time { return now.AddDate(0, 0, -1) }})
	must(t, err)
	_, err = w.Write([]byte(text))
	must(t, err, w.Close())
	return out.Bytes()
}

// demoSuites are the packages that the demo profile asks for, with what tells
// a resolver from a guess.
func demoSuites() map[string][]stanza {
	return map[string][]stanza{
		"bookworm": {
			{"linux-image-cloud-amd64", "6.1.1-1", "linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-1)", ""},
			{"linux-image-6.1.0-1-cloud-amd64", "6.1.1-1", "kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120) | linux-initramfs-tool", ""},
			{"systemd-boot-efi", "252.39-1", "", ""},
			{"e2fsprogs", "1.47.0-2", "libc6 (>= 2.34), logsave, libss", ""},
			{"libss2", "1.47.0-2", "libc6", "libss"},
			{"containerd", "1.6.20-1", "runc (>= 0.1.0~), libc6 (>= 2.34)", ""},
			{"runc", "1.1.5-1", "libc6 | libc6-musl", ""},
			{"containernetworking-plugins", "1.1.1-3", "iptables, libc6", ""},
			{"busybox-static", "1:1.35.0-4", "", ""},
			{"libc6", "2.36-9", "libgcc-s1", ""},
			{"libgcc-s1", "12.2.0-14", "", ""},
		},
		"bookworm-updates": {{"libgcc-s1", "12.2.0-14+deb12u1", "", ""}},
		"bookworm-security": {
			{"linux-image-cloud-amd64", "6.1.10-1", "linux-image-6.1.0-2-cloud-amd64 (= 6.1.10-1)", ""},
			{"linux-image-6.1.0-2-cloud-amd64", "6.1.10-1", "kmod", ""},
			{"runc", "1.1.4-9", "libc6", ""},
		},
	}
}

func demoProfile(t testing.TB, mirror string) *profiles.Profile {
	t.Helper()
	p := profiles.Defaults()
	p.APIVersion, p.Kind, p.Name, p.Version = profiles.APIVersion, profiles.Kind, "shop", "1"
	p.Kubernetes.Version, p.Attest.URL, p.Debian.Mirror = "v1.34.4", "https://attest.example:8443", mirror
	must(t, p.Validate())
	return p
}

func (m *mirror) resolver(t testing.TB) *Resolver {
	return &Resolver{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml", Now: now, keys: openpgp.EntityList{m.key}}
}

func TestResolvePinsTheNewestClosure(t *testing.T) {
	needTool(t, "go")
	m := newMirror(t, demoSuites())
	lock, err := m.resolver(t).Resolve(t.Context(), demoProfile(t, m.URL))
	must(t, err)
	var got []string
	for _, p := range lock.Debian.Packages {
		got = append(got, p.Name+" "+p.Version)
	}
	want := []string{
		"busybox-static 1:1.35.0-4", "containerd 1.6.20-1", "containernetworking-plugins 1.1.1-3", "e2fsprogs 1.47.0-2",
		"libc6 2.36-9",
		"libgcc-s1 12.2.0-14+deb12u1",              // newer in -updates
		"libss2 1.47.0-2",                          // provides libss
		"linux-image-6.1.0-2-cloud-amd64 6.1.10-1", // 6.1.10 is newer than 6.1.1
		"linux-image-cloud-amd64 6.1.10-1",
		"runc 1.1.5-1", // older in -security
		"systemd-boot-efi 252.39-1",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	kernel, err := lock.Package("linux-image-6.1.0-2-cloud-amd64")
	must(t, err)
	if want := snapshotURL + "/debian-security/20260801T000000Z/pool/main/linux-image-6.1.0-2-cloud-amd64_6.1.10-1_amd64.deb"; len(kernel.URLs) != 2 || kernel.URLs[1] != want {
		t.Errorf("addresses are %v, want the second to be %s", kernel.URLs, want)
	}
	if len(lock.Go.Builds) < 2 || len(lock.Go.Modules) < 2 || !strings.HasPrefix(lock.Go.Toolchain, "go1.") {
		t.Errorf("Go builds are not pinned: %+v", lock.Go)
	}
	raw, err := lock.Encode()
	must(t, err)
	if _, err := profiles.ParseLock("shop.lock.yaml", raw); err != nil {
		t.Errorf("the lock does not parse: %v", err)
	}
	again, err := m.resolver(t).Resolve(t.Context(), demoProfile(t, m.URL))
	must(t, err)
	if b, err := again.Encode(); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("a second lock of the same archives differs (%v)", err)
	}
}

func TestResolveRefusesIndexesThatItCannotTrust(t *testing.T) {
	root := "/debian/dists/bookworm/InRelease"
	tests := []struct {
		claim string
		edit  func(t *testing.T, m *mirror)
		want  string
	}{
		{"a changed byte", func(_ *testing.T, m *mirror) {
			m.files[root] = bytes.Replace(m.files[root], []byte("Origin: Test"), []byte("Origin: Tesu"), 1)
		}, "signature"},
		{"another key", func(t *testing.T, m *mirror) {
			other := newMirror(t, demoSuites())
			m.files[root] = other.files[root]
		}, "signature"},
		{"no signature", func(_ *testing.T, m *mirror) { m.files[root] = []byte("Codename: bookworm\n") }, "not a clear-signed message"},
		{"text before the signed part", func(_ *testing.T, m *mirror) {
			m.files[root] = append([]byte("Codename: trixie\n"), m.files[root]...)
		}, "not a clear-signed message"},
		{"text after the signed part", func(_ *testing.T, m *mirror) {
			m.files[root] = append(m.files[root], "\nCodename: trixie\n"...)
		}, "not exactly one clear-signed message"},
		{"another suite", func(_ *testing.T, m *mirror) {
			m.files[root] = m.files["/debian/dists/bookworm-updates/InRelease"]
		}, `index is of suite "bookworm-updates", want "bookworm"`},
		{"an expired index", func(t *testing.T, m *mirror) {
			m.addSuite(t, "bookworm", demoSuites()["bookworm"], "Valid-Until: Fri, 31 Jul 2026 13:00:00 UTC\n")
		}, "index was valid until 2026-07-31T13:00:00Z"},
		{"an index of the future", func(t *testing.T, m *mirror) {
			m.files[root] = sign(t, m.key, "Codename: bookworm\nDate: Mon, 03 Aug 2026 12:00:00 UTC\nSHA256:\n "+strings.Repeat("0", 64)+" 1 x\n")
		}, "index is dated 2026-08-03T12:00:00Z, after now"},
		{"a list of packages with another digest", func(_ *testing.T, m *mirror) {
			for name := range m.files {
				if strings.HasPrefix(name, "/debian/dists/bookworm/main/") {
					m.files[name] = make([]byte, len(m.files[name]))
				}
			}
		}, "SHA-256"},
		{"a missing dependency", func(t *testing.T, m *mirror) {
			m.addSuite(t, "bookworm-updates", []stanza{{"libc6", "3.0-1", "libmagic1 (>= 99)", ""}}, "")
		}, "nothing in the archives meets the dependency libmagic1 (>= 99)"},
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			m := newMirror(t, demoSuites())
			tc.edit(t, m)
			if _, err := m.resolver(t).Resolve(t.Context(), demoProfile(t, m.URL)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	m := newMirror(t, demoSuites())
	r := m.resolver(t)
	p := demoProfile(t, m.URL)
	p.Packages = []string{"no-such-package"}
	if _, err := r.Resolve(t.Context(), p); err == nil || !strings.Contains(err.Error(), "package no-such-package is in none of the archives") {
		t.Errorf("an unknown package: %v", err)
	}
}

func TestEmbeddedKeysSignBookworm(t *testing.T) {
	keys, err := keyring()
	must(t, err)
	want := []string{"b8b80b5b623eab6ad8775c45b7c5d7d6350947f8", "05ab90340c0c5e797f44a8c8254cf3b5aec0a8f0", "4d64fec119c2029067d6e791f8d2585b8783d481"}
	got := map[string]bool{}
	for _, k := range keys {
		got[fmt.Sprintf("%x", k.PrimaryKey.Fingerprint)] = true
	}
	for _, fp := range want {
		if !got[fp] {
			t.Errorf("key %s is missing", fp)
		}
	}
	if len(keys) != len(want) {
		t.Errorf("got %d keys, want %d", len(keys), len(want))
	}
}

// locked is a lock entry of a file on the mirror.
func locked(m *mirror, body []byte, paths ...string) *profiles.LockedPackage {
	p := &profiles.LockedPackage{Name: "runc", Version: "1.1.5-1", Arch: "amd64", Size: int64(len(body)), SHA256: hexSum(body)}
	for _, path := range paths {
		p.URLs = append(p.URLs, m.URL+path)
	}
	return p
}

func TestFetchUsesTheCacheAndStopsWhereItIsDamaged(t *testing.T) {
	m := newMirror(t, nil)
	body := makeDeb(t, "data.tar", makeTar(t, file("./usr/sbin/runc", "program")))
	m.files["/runc.deb"] = body
	p := locked(m, body, "/runc.deb")
	var done int64
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml", Progress: func(e Event) {
		if e.Total == p.Size {
			done = e.Done
		}
	}}
	first, err := f.fetchPackage(t.Context(), p)
	must(t, err)
	if done != p.Size {
		t.Errorf("progress ended at %d of %d bytes", done, p.Size)
	}
	asked := m.asked.Load()
	f.Offline = true
	if again, err := f.fetchPackage(t.Context(), p); err != nil || again != first || m.asked.Load() != asked {
		t.Errorf("second fetch: %s, %v, %d requests; want %s from the cache", again, err, m.asked.Load()-asked, first)
	}
	f.Offline = false
	want, err := parseSum(p.SHA256)
	must(t, err)
	for _, damaged := range []string{f.Cache.path(want), first} {
		must(t, os.WriteFile(damaged, []byte("rot"), 0o644))
		_, err := f.fetchPackage(t.Context(), p)
		var mismatch *MismatchError
		if !errors.As(err, &mismatch) || mismatch.Source != damaged || mismatch.Got == mismatch.Want || !strings.Contains(err.Error(), "runc 1.1.5-1") || m.asked.Load() != asked {
			t.Errorf("damaged cache: %v, %d requests, want a MismatchError that names package and file, and none", err, m.asked.Load()-asked)
		}
		if _, err := os.Stat(damaged); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the damaged file is still in the cache: %v", err)
		}
		if _, err := f.fetchPackage(t.Context(), p); err != nil {
			t.Errorf("fetch after the damage: %v", err)
		}
		asked = m.asked.Load()
	}
	in := &Inputs{Packages: map[string]string{"runc": first}}
	var names []string
	must(t, in.ReadPackage("runc", func(e DebEntry, _ io.Reader) error {
		names = append(names, e.Name)
		return nil
	}))
	if len(names) != 1 || names[0] != "usr/sbin/runc" {
		t.Errorf("unpacked package holds %v", names)
	}
	if left, err := os.ReadDir(filepath.Join(f.Cache.Dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestFetchNamesADifferentFileAndStopsThere(t *testing.T) {
	m := newMirror(t, nil)
	good := makeDeb(t, "data.tar", makeTar(t, file("./a", "1")))
	for claim, bad := range map[string][]byte{
		"same length":   bytes.Replace(good, []byte("./a"), []byte("./b"), 1),
		"longer":        append(bytes.Clone(good), 'x'),
		"shorter":       good[:len(good)-1],
		"an error page": []byte("<html>"),
	} {
		m.files["/bad.deb"], m.files["/good.deb"] = bad, good
		f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml"}
		_, err := f.fetchPackage(t.Context(), locked(m, good, "/bad.deb", "/good.deb"))
		var mismatch *MismatchError
		if !errors.As(err, &mismatch) || mismatch.Source != m.URL+"/bad.deb" || mismatch.Longer != (claim == "longer") ||
			!strings.Contains(err.Error(), "package runc 1.1.5-1: from "+m.URL+"/bad.deb: ") || !strings.Contains(err.Error(), hexSum(good)) {
			t.Errorf("%s: got %v, want a MismatchError that names package, address and digest", claim, err)
		}
		if found, err := filepath.Glob(f.Cache.Dir + "/*/*/*"); err != nil || len(found) > 0 {
			t.Errorf("%s: left in the cache: %v, %v", claim, found, err)
		}
	}
}

func TestFetchTakesAGonePackageFromTheNextAddress(t *testing.T) {
	m := newMirror(t, nil)
	body := makeDeb(t, "data.tar", makeTar(t, file("./a", "1")))
	m.files["/snapshot/runc.deb"] = body
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml"}
	if _, err := f.fetchPackage(t.Context(), locked(m, body, "/gone.deb", "/snapshot/runc.deb")); err != nil {
		t.Error(err)
	}
}

func TestFetchOfAGonePackageNamesItAndTheCommand(t *testing.T) {
	m := newMirror(t, nil)
	p := locked(m, []byte("x"), "/gone.deb")
	p.URLs = append(p.URLs, "http://127.0.0.1:1/unreachable.deb")
	f := &Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "dir/shop.yaml"}
	_, err := f.fetchPackage(t.Context(), p)
	var gone *GoneError
	if !errors.Is(err, ErrGone) || !errors.As(err, &gone) {
		t.Fatalf("got %v, want ErrGone", err)
	}
	if gone.Artifact != "package runc 1.1.5-1" || gone.Hint() != "sealift profile lock dir/shop.yaml" || len(gone.Tried) != 2 {
		t.Errorf("got %+v", gone)
	}
	f.Offline = true
	if _, err := f.fetchPackage(t.Context(), p); err == nil || !strings.Contains(err.Error(), "offline") || errors.Is(err, ErrGone) {
		t.Errorf("offline: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.Offline = false
	if _, err := f.fetchPackage(ctx, p); !errors.Is(err, context.Canceled) || errors.Is(err, ErrGone) {
		t.Errorf("cancelled: %v, want context.Canceled and not ErrGone", err)
	}
}

func TestFetchOfAnotherProfilesLockIsStale(t *testing.T) {
	needTool(t, "go")
	m := newMirror(t, demoSuites())
	p := demoProfile(t, m.URL)
	lock, err := m.resolver(t).Resolve(t.Context(), p)
	must(t, err)
	p.Packages = []string{"nano"}
	var stale *StaleError
	if _, err := (&Fetcher{Cache: Cache{Dir: t.TempDir()}, Profile: "shop.yaml"}).Fetch(t.Context(), p, lock); !errors.As(err, &stale) {
		t.Errorf("got %v, want a StaleError", err)
	}
}

func TestTwoPutsOfOneFileAtOnceAreOneFile(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	body := bytes.Repeat([]byte("body"), 1<<18)
	want := manifest.SHA256(sha256.Sum256(body))
	errs := make(chan error)
	for range 8 {
		go func() {
			_, _, err := c.Put(t.Context(), bytes.NewReader(body), want, int64(len(body)))
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Lookup(t.Context(), want); err != nil {
		t.Error(err)
	}
}

func TestDebianIndexVerifiesWithGpgvToo(t *testing.T) {
	gpgv := needTool(t, "gpgv")
	m := newMirror(t, demoSuites())
	var ring bytes.Buffer
	must(t, m.key.Serialize(&ring))
	keys, in := filepath.Join(t.TempDir(), "ring.gpg"), filepath.Join(t.TempDir(), "InRelease")
	must(t, os.WriteFile(keys, ring.Bytes(), 0o600), os.WriteFile(in, m.files["/debian/dists/bookworm/InRelease"], 0o600))
	if out, err := exec.Command(gpgv, "--keyring", keys, in).CombinedOutput(); err != nil {
		t.Errorf("gpgv: %v\n%s", err, out)
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("Codename: x\nDate: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n " + strings.Repeat("0", 64) + " 1 a\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseRelease(b) })
}

func FuzzParsePackages(f *testing.F) {
	f.Add([]byte("Package: x\nVersion: 1:2~3-4\nArchitecture: amd64\nFilename: pool/x.deb\nSize: 1\nSHA256: "+strings.Repeat("0", 64)+"\nDepends: a (>= 1) | b, c\n"), "a:any (>= 1) [amd64] <!nocheck> | b")
	f.Fuzz(func(_ *testing.T, b []byte, dep string) {
		_ = parsePackages(bytes.NewReader(b), "amd64", func(candidate) error { return nil })
		_, _ = parseDependency(dep)
	})
}
