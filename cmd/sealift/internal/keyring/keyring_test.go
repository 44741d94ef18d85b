package keyring

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/image/efivar"
)

func newKeyring(t *testing.T) *Keyring {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := Init(dir, time.Now(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestInitMakesEveryKeyUsable(t *testing.T) {
	k := newKeyring(t)
	if _, err := k.DB(); err != nil {
		t.Error(err)
	}
	if _, err := k.Image(); err != nil {
		t.Error(err)
	}
	if key, err := k.PCR(); err != nil || key.N.BitLen() != 2048 {
		t.Errorf("PCR key: %v", err)
	}
	if _, err := k.Release(); err != nil {
		t.Error(err)
	}
	if kek, err := k.DiskKEK(); err != nil || len(kek) != 32 || bytes.Equal(kek, make([]byte, 32)) {
		t.Errorf("disk KEK: %d bytes, %v", len(kek), err)
	}
	for _, name := range []string{FileImage, FilePCR, FileRelease} {
		if b, err := k.PublicPEM(name); err != nil || !bytes.HasPrefix(b, []byte("-----BEGIN PUBLIC KEY")) {
			t.Errorf("%s.pub: %q, %v", name, b, err)
		}
	}
	if b, err := k.CertificatePEM(FileServiceCA); err != nil || !bytes.HasPrefix(b, []byte("-----BEGIN CERTIFICATE")) {
		t.Errorf("service CA: %q, %v", b, err)
	}
	e, err := k.Enrolment()
	if err != nil {
		t.Fatal(err)
	}
	lists, err := e.Lists()
	if err != nil {
		t.Fatal(err)
	}
	for v, list := range lists {
		b, err := k.Auth(v)
		if err != nil || !bytes.HasSuffix(b, list) {
			t.Errorf("%s.auth does not end with its signature list (%v)", v, err)
		}
	}
	if _, err := k.Auth(efivar.DBX); err == nil {
		t.Error("a payload for dbx is there")
	}
}

func TestOnlyTheOwnerReadsPrivateFiles(t *testing.T) {
	k := newKeyring(t)
	entries, err := os.ReadDir(k.Dir())
	if err != nil {
		t.Fatal(err)
	}
	private := 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(e.Name()) == ".key" {
			private++
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %04o, want 0600", e.Name(), info.Mode().Perm())
			}
		}
	}
	if private != 8 {
		t.Errorf("%d private files, want 8", private)
	}
	if info, err := os.Stat(k.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %04o, want 0700 (%v)", info.Mode().Perm(), err)
	}
	path := filepath.Join(k.Dir(), "image.key")
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Image(); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a key that the group can read is loaded: %v", err)
	}
	if err := os.Chmod(k.Dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.Dir()); err == nil {
		t.Error("a directory that others can read is opened")
	}
}

func TestInitNeverTouchesWhatIsThere(t *testing.T) {
	for name, make := range map[string]func(string) error{
		"empty directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"file":            func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"dangling link":   func(p string) error { return os.Symlink("nowhere", p) },
	} {
		dir := filepath.Join(t.TempDir(), "keys")
		if err := make(dir); err != nil {
			t.Fatal(err)
		}
		if err := Init(dir, time.Now(), rand.Reader); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: error is %v, want fs.ErrExist", name, err)
		}
	}
}

func TestAFailedInitLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	short := io.MultiReader(io.LimitReader(rand.Reader, 40), iotest.ErrReader(errors.New("out of randomness")))
	if err := Init(filepath.Join(parent, "keys"), time.Now(), short); err == nil || !strings.Contains(err.Error(), "out of randomness") {
		t.Errorf("error is %v", err)
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

func TestLoadersSayWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(dir string) error
		load func(*Keyring) error
		want string
	}{
		"missing file": {
			func(d string) error { return os.Remove(filepath.Join(d, "pcr.key")) },
			func(k *Keyring) error { _, err := k.PCR(); return err },
			"has no file pcr.key",
		},
		"not PEM": {
			func(d string) error { return os.WriteFile(filepath.Join(d, "image.key"), []byte("hello"), 0o600) },
			func(k *Keyring) error { _, err := k.Image(); return err },
			"one PEM block",
		},
		"key of another kind": {
			func(d string) error { return os.Rename(filepath.Join(d, "pcr.key"), filepath.Join(d, "image.key")) },
			func(k *Keyring) error { _, err := k.Image(); return err },
			"holds *rsa.PrivateKey, want *ecdsa.PrivateKey",
		},
		"certificate of another key": {
			func(d string) error { return os.Rename(filepath.Join(d, "KEK.crt"), filepath.Join(d, "db.crt")) },
			func(k *Keyring) error { _, err := k.DB(); return err },
			"is not of this key",
		},
		"short disk key": {
			func(d string) error { return os.WriteFile(filepath.Join(d, "disk-kek.key"), []byte("00ff\n"), 0o600) },
			func(k *Keyring) error { _, err := k.DiskKEK(); return err },
			"got 4 characters, want 64",
		},
		"directory in place of a file": {
			func(d string) error {
				return errors.Join(os.Remove(filepath.Join(d, "db.crt")), os.Mkdir(filepath.Join(d, "db.crt"), 0o700))
			},
			func(k *Keyring) error { _, err := k.DB(); return err },
			"not a regular file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeyring(t)
			if err := c.edit(k.Dir()); err != nil {
				t.Fatal(err)
			}
			if err := c.load(k); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestIssuedCertificatesServeATLSConnection(t *testing.T) {
	k := newKeyring(t)
	i, err := k.Issuer(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := i.IssueServer([]string{"10.98.0.1", "attest.example", "fd00::1"})
	if err != nil {
		t.Fatal(err)
	}
	operator, err := i.IssueOperator("alice", []api.Role{api.RoleOperator, api.RoleAuditor, api.RoleOperator})
	if err != nil {
		t.Fatal(err)
	}
	if ou := operator.Leaf.Subject.OrganizationalUnit; len(ou) != 2 || ou[0] != "auditor" || ou[1] != "operator" {
		t.Errorf("roles are %q", ou)
	}
	for _, name := range []string{"10.98.0.1", "attest.example", "fd00::1"} {
		a, b := net.Pipe()
		s := tls.Server(a, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.Pool()})
		done := make(chan error, 1)
		go func() { done <- s.HandshakeContext(t.Context()) }()
		c := tls.Client(b, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: i.Pool(), ServerName: name, Certificates: []tls.Certificate{operator}})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Errorf("client, as %s: %v", name, err)
		}
		if err := <-done; err != nil {
			t.Errorf("server, as %s: %v", name, err)
		}
		a.Close()
		b.Close()
	}
	if err := server.Leaf.VerifyHostname("10.98.0.2"); err == nil {
		t.Error("certificate is good for an address that was not asked for")
	}
	if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: i.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("server certificate is good for a client")
	}
}

// A box whose clock's battery is empty believes that it is the day of its
// image, or of its CA; and a service may run for years.
func TestServerCertificatesAreValidAsLongAsTheCA(t *testing.T) {
	k := newKeyring(t)
	ca, err := k.Certificate(FileServiceCA)
	if err != nil {
		t.Fatal(err)
	}
	i, err := k.Issuer(ca.NotBefore.Add(2*365*24*time.Hour), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := i.IssueServer([]string{"attest.example"})
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]time.Time{"at the CA's first moment": ca.NotBefore, "at its last": ca.NotAfter} {
		if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: i.Pool(), CurrentTime: at}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	operator, err := i.IssueOperator("alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	if life := operator.Leaf.NotAfter.Sub(operator.Leaf.NotBefore); life != operatorLife+clockSkew {
		t.Errorf("an operator's certificate is valid for %v, want %v", life, operatorLife+clockSkew)
	}
}

func TestBadNamesAreNotCertified(t *testing.T) {
	i, err := newKeyring(t).Issuer(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, hosts := range [][]string{nil, {""}, {"*.example"}, {"a b"}, {"host:443"}, {"-x"}} {
		if _, err := i.IssueServer(hosts); err == nil {
			t.Errorf("hosts %q: accepted", hosts)
		}
	}
	if _, err := i.IssueOperator("", nil); err == nil {
		t.Error("operator without a name: accepted")
	}
	if _, err := i.IssueOperator("bob", []api.Role{"Admin"}); err == nil {
		t.Error("role in capitals: accepted")
	}
}

func TestIssuerRefusesAnExpiredCA(t *testing.T) {
	k := newKeyring(t)
	if _, err := k.Issuer(time.Now().Add(11*365*24*time.Hour), rand.Reader); err == nil || !strings.Contains(err.Error(), "valid from") {
		t.Errorf("error is %v", err)
	}
}
