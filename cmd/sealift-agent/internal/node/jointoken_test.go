package node

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/profiles"
)

// authority is a CA certificate and what it signs with.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string, parent *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
		SubjectKeyId: []byte(name),
	}
	signer := &authority{tmpl, key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, signer.cert, &key.PublicKey, signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func pemOf(list ...*authority) []byte {
	var out []byte
	for _, a := range list {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return out
}

func TestTokensOfK3sNameTheClustersCA(t *testing.T) {
	root := newAuthority(t, "root", nil)
	middle := newAuthority(t, "middle", root)
	leaf := newAuthority(t, "cluster", middle)
	other := newAuthority(t, "other", nil)
	for claim, tc := range map[string]struct {
		ca   []byte
		want [32]byte
	}{
		"a single CA: the file":                    {pemOf(root), sha256.Sum256(pemOf(root))},
		"a chain: its root":                        {pemOf(leaf, middle, root), sha256.Sum256(root.cert.Raw)},
		"a chain in another order: its root":       {pemOf(leaf, root, middle), sha256.Sum256(root.cert.Raw)},
		"certificates that are no chain: the file": {pemOf(leaf, other), sha256.Sum256(pemOf(leaf, other))},
	} {
		got, err := k3sToken(tc.ca, []byte("abcdef.0123456789abcdef"))
		if want := fmt.Sprintf("K10%x::abcdef.0123456789abcdef", tc.want); err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v, want %s", claim, got, err, want)
		}
	}
	for _, ca := range []string{"", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := k3sToken([]byte(ca), []byte("x")); err == nil {
			t.Errorf("a token for the CA %q was made", ca)
		}
	}
}

func TestTokensOfK0sAreKubeconfigs(t *testing.T) {
	token, err := joinToken(testJoin(), profiles.JoinK0s)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(string(token))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	var k kubeconfig
	if err := json.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	// k0s takes the name of the first context's user for the kind of the token.
	if k.Contexts[0].Context.User != "kubelet-bootstrap" || k.Users[0].Name != "kubelet-bootstrap" || k.Users[0].User.Token != "abcdef.0123456789abcdef" ||
		k.Clusters[0].Name != "k0s" || len(k.Clusters[0].Cluster.CA) == 0 || k.Contexts[0].Context.Cluster != "k0s" ||
		k.Clusters[0].Cluster.Server != "https://10.77.0.1:6443" || k.CurrentContext != k.Contexts[0].Name {
		t.Errorf("got %s", text)
	}
	j := testJoin()
	j.Token = nil
	for _, format := range profiles.JoinFormats() {
		if _, err := joinToken(j, format); err == nil {
			t.Errorf("format %q: a join without a token was rendered", format)
		}
	}
	if _, err := joinToken(testJoin(), "other"); err == nil {
		t.Error("a token of unknown form was rendered")
	}
}

func TestATokenIsSpentOnceTheNodeHasJoined(t *testing.T) {
	ca := newAuthority(t, "cluster", nil)
	for format, want := range map[string]string{
		profiles.JoinKubeconfig: "",
		profiles.JoinK0s:        "",
		profiles.JoinK3s:        fmt.Sprintf("K10%x::node:joined", sha256.Sum256(pemOf(ca))),
	} {
		p := testPaths(t)
		p.Format, p.Server = format, filepath.Join(filepath.Dir(p.CA), "server")
		j := testJoin()
		j.CA = pemOf(ca)
		if err := prepareJoin(j, p); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(p.Bootstrap); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
			t.Errorf("format %q: the token's file is %v, %v", format, st, err)
		}
		write(t, p.Kubeconfig, "x")
		if joined, err := forgetToken(t.Context(), p, time.Time{}); err != nil || !joined {
			t.Errorf("format %q: %v, %v", format, joined, err)
		}
		check := func(when string) {
			b, err := os.ReadFile(p.Bootstrap)
			if format == profiles.JoinKubeconfig {
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("format %q %s: %v, want no file", format, when, err)
				}
				return
			}
			if err != nil || string(b) != want {
				t.Errorf("format %q %s: %q, %v, want %q", format, when, b, err, want)
			}
		}
		check("after the join")
		// The next boot has an empty /run and gets no token.
		if err := os.RemoveAll(filepath.Dir(p.Bootstrap)); err != nil {
			t.Fatal(err)
		}
		if err := prepareJoin(nil, p); err != nil {
			t.Fatal(err)
		}
		check("in the next boot")
		u, err := joinServer(p)
		if err != nil || u.String() != "https://10.77.0.1:6443" {
			t.Errorf("format %q: the cluster is at %v, %v", format, u, err)
		}
	}
}

func TestArgumentsNameTheCluster(t *testing.T) {
	for server, want := range map[string]string{
		"https://10.77.0.1:6443": "--server=https://10.77.0.1:6443 --server=https://10.77.0.1:9345",
		"https://[fd00::1]:6443": "--server=https://[fd00::1]:6443 --server=https://[fd00::1]:9345",
		"https://k3s.example":    "--server=https://k3s.example --server=https://k3s.example:9345",
	} {
		p := testPaths(t)
		p.Server = filepath.Join(filepath.Dir(p.CA), "server")
		write(t, p.Server, server+"\n")
		u, err := joinServer(p)
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{Handover: &Handover{NodeName: "store-1"}, joinServer: u}
		if got := n.expand("--server=${JOIN_SERVER}") + " " + n.expand("--server=https://${JOIN_HOST}:9345"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	p := testPaths(t)
	if u, err := joinServer(p); u != nil || err != nil {
		t.Errorf("a distro that need not be told: %v, %v", u, err)
	}
	p.Server = filepath.Join(filepath.Dir(p.CA), "server")
	for _, bad := range []string{"", "10.77.0.1", "http://10.77.0.1", "https://"} {
		write(t, p.Server, bad)
		if _, err := joinServer(p); err == nil {
			t.Errorf("the cluster's address %q was taken", bad)
		}
	}
}

func TestConfigurationsWithOddJoinsAreRefused(t *testing.T) {
	good := `{"join":{"ca":"/var/a","bootstrap":"/run/b","kubeconfig":"/var/c"%s}%s}`
	for claim, tc := range map[string][2]string{
		"a token of unknown form":   {`,"format":"k8s"`, ""},
		"a server file in /etc":     {`,"server":"/etc/x"`, ""},
		"images outside of /var":    {"", `,"imagesDir":"/etc/images"`},
		"images by an unclean path": {"", `,"imagesDir":"/var/../etc"`},
	} {
		if _, err := ParseConfig(fmt.Appendf(nil, good, tc[0], tc[1])); err == nil {
			t.Errorf("%s was accepted", claim)
		}
	}
	if _, err := ParseConfig(fmt.Appendf(nil, good, `,"format":"k3s","server":"/var/d"`, `,"imagesDir":"/var/lib/k0s/images"`)); err != nil {
		t.Error(err)
	}
}

func FuzzK3sCADigest(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := k3sCADigest(b); err == nil && len(d) != 64 {
			t.Errorf("digest %q", d)
		}
	})
}

// TestChildShowsImages runs in a mount namespace of its own.
func TestChildShowsImages(t *testing.T) {
	if os.Getenv("SEALIFT_CHILD") != t.Name() {
		t.Skip("runs in a child process only")
	}
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{"/usr/share", "/run", "/var"} {
		must(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	}
	const dir = "/var/lib/k0s/images"
	must(showImages(dir))
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		t.Errorf("an image without archives: %v", err)
	}
	must(os.MkdirAll(profiles.ImagesDir, 0o755), os.WriteFile(profiles.ImagesDir+"/a.tar", []byte("archive"), 0o444))
	must(showImages(dir))
	entries, err := os.ReadDir(dir)
	must(err)
	if len(entries) != 1 || !entries[0].Type().IsRegular() {
		t.Errorf("the distro finds %v, want one regular file", entries)
	}
	b, err := os.ReadFile(dir + "/a.tar")
	if err != nil || string(b) != "archive" {
		t.Errorf("the archive holds %q, %v", b, err)
	}
	// What distros do with the directory when they start.
	must(os.Chmod(dir, 0o700), os.WriteFile(dir+"/.cache.json", []byte("{}"), 0o600))
	if entries, err := os.ReadDir(profiles.ImagesDir); err != nil || len(entries) != 1 {
		t.Errorf("the image was written to: %v, %v", entries, err)
	}
	if st, err := os.Stat(profiles.ImagesDir); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the image's directory changed: %v, %v", st, err)
	}
}

func TestArchivesAppearWhereADistroLooks(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildShowsImages$", "-test.v")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "TMPDIR=") }), "SEALIFT_CHILD=TestChildShowsImages")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) || strings.Contains(string(out), "overlay: operation not permitted") {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("no user namespace: %v\n%s", err, out)
		}
		t.Skipf("no user namespace: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChildShowsImages") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTheConfigurationOfEachDistroIsAccepted(t *testing.T) {
	for _, name := range profiles.Distros() {
		d, err := profiles.LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		n := d.Node
		raw, err := json.Marshal(profiles.NodeConfig{
			Distro: name, Sysctls: n.Sysctls, Dirs: n.Dirs, Volatile: n.Volatile, Prefetch: n.Prefetch,
			Services: n.Services, Import: n.Import, ImagesDir: n.ImagesDir, Join: n.Join,
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseConfig(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// Whatever variables its services have, a node knows all of them.
		p := testPaths(t)
		p.Server = filepath.Join(filepath.Dir(p.CA), "server")
		write(t, p.Server, "https://10.77.0.1:6443\n")
		u, err := joinServer(p)
		if err != nil {
			t.Fatal(err)
		}
		node := &Node{Handover: &Handover{NodeName: "store-1"}, nodeIP: "10.77.0.7", joinServer: u}
		for _, s := range c.Services {
			for _, a := range s.Args {
				if got := node.expand(a); strings.Contains(got, "${") {
					t.Errorf("%s: service %s: %s is left", name, s.Name, got)
				}
			}
		}
	}
}
