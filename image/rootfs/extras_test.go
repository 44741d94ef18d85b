package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// beside adds a file beside the profile to the inputs.
func beside(t *testing.T, c *Config, source, content string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "copy")
	must(t, os.WriteFile(file, []byte(content), 0o600))
	if c.Inputs.Files == nil {
		c.Inputs.Files = map[string]string{}
	}
	c.Inputs.Files[source] = file
}

// wantFile holds content and mode of a file of the tree.
func wantFile(t *testing.T, tr *tree.Tree, name, content string, mode fs.FileMode) {
	t.Helper()
	b, err := tr.ReadFile(name, 1<<20)
	if err != nil {
		t.Error(err)
		return
	}
	if string(b) != content {
		t.Errorf("%s holds %q, want %q", name, b, content)
	}
	if n, err := tr.Lookup(name); err != nil || n.Mode() != mode {
		t.Errorf("%s has mode %v, want %v (%v)", name, n.Mode(), mode, err)
	}
}

// rootError builds a root file system that must fail.
func rootError(t *testing.T, c Config, want string) {
	t.Helper()
	b, err := New(c)
	must(t, err)
	if _, err := b.Root(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: display}\nspec: {containers: []}\n"

func TestExtraFilesAreInTheRoot(t *testing.T) {
	c := config(t, packages(t))
	beside(t, &c, "files/x", "from a file")
	c.Profile.Files = []profiles.File{
		{Path: "/etc/motd", Content: "hello\n"},
		{Path: "/opt/a/b/c", Source: "files/x", Mode: "0750"},
		{Path: "/bin/tool", Content: "#!", Mode: "755"},
		{Path: "/etc/containerd/config.toml", Content: "version = 2\n", Replace: true},
	}
	must(t, c.Profile.Validate())
	_, root := build(t, c)
	wantFile(t, root, "/etc/motd", "hello\n", 0o644)
	wantFile(t, root, "/opt/a/b/c", "from a file", 0o750)
	wantFile(t, root, "/usr/bin/tool", "#!", 0o755)
	wantFile(t, root, "/etc/containerd/config.toml", "version = 2\n", 0o644)
}

func TestExtraFilesDoNotReplaceWhatTheImageLivesOn(t *testing.T) {
	for claim, tc := range map[string]struct {
		file profiles.File
		want string
	}{
		"a file that is there":           {profiles.File{Path: "/etc/containerd/config.toml"}, "set replace: true if it is meant to be replaced"},
		"a directory":                    {profiles.File{Path: "/etc/containerd", Replace: true}, "/etc/containerd is a directory"},
		"a program of the distro":        {profiles.File{Path: "/usr/bin/kubelet", Replace: true}, "is a program of distro kubernetes"},
		"the same through a link":        {profiles.File{Path: "/bin/kubelet", Replace: true}, "is a program of distro kubernetes"},
		"the agent":                      {profiles.File{Path: profiles.RootAgentPath, Replace: true}, "is the image builder's"},
		"the agent through a link":       {profiles.File{Path: "/lib/sealift/agent", Replace: true}, "is the image builder's"},
		"init":                           {profiles.File{Path: "/sbin/init", Replace: true}, "is the image builder's"},
		"the agent's configuration":      {profiles.File{Path: "/etc/sealift/agent.json"}, "is the image builder's"},
		"the node's configuration":       {profiles.File{Path: profiles.NodeConfigPath, Replace: true}, "is the image builder's"},
		"the release":                    {profiles.File{Path: "/etc/os-release", Replace: true}, "is the image builder's"},
		"a mount point":                  {profiles.File{Path: "/var/x"}, "below a mount point"},
		"a source that was not locked":   {profiles.File{Path: "/etc/x", Source: "x"}, "source x is not among the inputs"},
		"a mode that is no mode":         {profiles.File{Path: "/etc/x", Mode: "rwx"}, `mode "rwx" is not octal`},
		"a file below a file":            {profiles.File{Path: "/etc/os-release/x"}, "not a directory"},
		"a file below a link to nothing": {profiles.File{Path: "/etc/mtab/x"}, "is a link to nothing"},
	} {
		t.Run(claim, func(t *testing.T) {
			c := config(t, packages(t))
			c.Profile.Files = []profiles.File{tc.file} // not validated: the builder does not rely on it
			rootError(t, c, tc.want)
		})
	}
}

func TestUsersAreLocked(t *testing.T) {
	c := config(t, packages(t))
	c.Profile.Debug = true
	c.Profile.Users = []profiles.User{{Name: "till", UID: 1000}, {Name: "debug", UID: 1001, Shell: "/bin/busybox"}}
	must(t, c.Profile.Validate())
	_, root := build(t, c)
	wantFile(t, root, "/etc/passwd", `root:x:0:0:root:/root:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
till:x:1000:1000::/nonexistent:/usr/sbin/nologin
debug:x:1001:1001::/nonexistent:/bin/busybox
`, 0o644)
	wantFile(t, root, "/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\ntill:x:1000:\ndebug:x:1001:\n", 0o644)
	wantFile(t, root, "/etc/shadow", "root:!*:::::::\nnobody:!*:::::::\ntill:!*:::::::\ndebug:!*:::::::\n", 0o600)
	wantFile(t, root, "/etc/gshadow", "root:!*::\ntty:!*::\nnogroup:!*::\ntill:!*::\ndebug:!*::\n", 0o600)
}

func TestUsersThatCannotBeAreRefused(t *testing.T) {
	for claim, tc := range map[string]struct {
		user profiles.User
		want string
	}{
		"name of another":          {profiles.User{Name: "nobody", UID: 1000}, "/etc/passwd has nobody with number 65534 already"},
		"number of another":        {profiles.User{Name: "a", UID: 65534}, "/etc/passwd has nobody with number 65534 already"},
		"number of another group":  {profiles.User{Name: "a", UID: 5}, "/etc/group has tty with number 5 already"},
		"shell that is not there":  {profiles.User{Name: "a", UID: 1000, Shell: "/bin/bash"}, "user a: shell"},
		"shell that is no program": {profiles.User{Name: "a", UID: 1000, Shell: "/etc/passwd"}, "shell /etc/passwd is no program"},
	} {
		t.Run(claim, func(t *testing.T) {
			c := config(t, packages(t))
			c.Profile.Users = []profiles.User{tc.user}
			rootError(t, c, tc.want)
		})
	}
}

func TestStaticPodsAreWhereTheKubeletLooks(t *testing.T) {
	c := config(t, packages(t))
	_, root := build(t, c)
	b, err := root.ReadFile("/etc/kubernetes/kubelet.yaml", 1<<20)
	must(t, err)
	if strings.Contains(string(b), "staticPodPath") {
		t.Error("the kubelet looks for static pods though there are none")
	}
	beside(t, &c, "pods/display.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"spec":{}}`)
	c.Profile.Preload.Manifests = []profiles.Manifest{{Name: "a", Content: pod}, {Name: "b", Source: "pods/display.json"}}
	must(t, c.Profile.Validate())
	_, root = build(t, c)
	b, err = root.ReadFile("/etc/kubernetes/kubelet.yaml", 1<<20)
	must(t, err)
	if !strings.Contains(string(b), "\nstaticPodPath: /etc/kubernetes/manifests\n") {
		t.Errorf("no staticPodPath in\n%s", b)
	}
	wantFile(t, root, "/etc/kubernetes/manifests/a.yaml", pod, 0o600)
	if _, err := root.Lookup("/etc/kubernetes/manifests/b.yaml"); err != nil {
		t.Error(err)
	}
	c.Profile.Preload.Manifests[0].Content = "apiVersion: v1\nkind: Service\n"
	rootError(t, c, `manifest a: static pod: apiVersion "v1", kind "Service"`)
}

func TestStaticPodsOfOtherDistros(t *testing.T) {
	for name, c := range map[string]struct{ version, flag string }{
		"k3s": {"v1.34.1+k3s1", "--kubelet-arg=pod-manifest-path=%s"},
		"k0s": {"v1.34.1+k0s.1", "--kubelet-extra-args=--node-ip=${NODE_IP} --hostname-override=${NODE_NAME} --pod-manifest-path=%s"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := profiles.LoadDistro(name)
			must(t, err)
			config := distroConfig(t, name, c.version)
			preload(t, config, "docker.io/rancher/mirrored-pause:3.6")
			// The directory is there in any case: the flag is.
			_, root := build(t, config)
			if n, _, err := root.Resolve(d.Node.Manifests); err != nil || !n.Mode().IsDir() {
				t.Errorf("without static pods: %s: %v", d.Node.Manifests, err)
			}
			config.Profile.Preload.Manifests = []profiles.Manifest{{Name: "a", Content: pod}}
			must(t, config.Profile.Validate())
			_, root = build(t, config)
			wantFile(t, root, d.Node.Manifests+"/a.yaml", pod, 0o600)
			raw, err := root.ReadFile(profiles.NodeConfigPath, 1<<20)
			must(t, err)
			var n profiles.NodeConfig
			must(t, json.Unmarshal(raw, &n))
			if want := fmt.Sprintf(c.flag, d.Node.Manifests); len(n.Services) != 1 || !slices.Contains(n.Services[0].Args, want) {
				t.Errorf("arguments %q, want %q among them", n.Services[0].Args, want)
			}
		})
	}
	config := distroConfig(t, "rke2", "v1.34.1+rke2r1")
	preload(t, config, "docker.io/rancher/mirrored-pause:3.6")
	config.Profile.Preload.Manifests = []profiles.Manifest{{Name: "a", Content: pod}}
	rootError(t, config, "distro rke2 takes no static pods from the image")
}

func certificate(t *testing.T, ca bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestAttestCA(t *testing.T) {
	c := config(t, packages(t))
	get := func() (string, error) {
		b, err := New(c)
		must(t, err)
		ca, err := b.AttestCA()
		return string(ca), err
	}
	if ca, err := get(); err != nil || ca != "" {
		t.Errorf("without one: %q, %v", ca, err)
	}
	c.Profile.Attest.CA = "ca.pem"
	if _, err := get(); err == nil || !strings.Contains(err.Error(), "not among the inputs") {
		t.Errorf("not locked: %v", err)
	}
	good := certificate(t, true)
	beside(t, &c, "ca.pem", "Our CA:\n"+good)
	if ca, err := get(); err != nil || ca != good {
		t.Errorf("got %q, %v, want the certificate alone", ca, err)
	}
	for text, want := range map[string]string{
		"":                       "0 in PEM",
		good + "rest":            `1 in PEM, then "rest"`,
		certificate(t, false):    "is not an authority's",
		strings.Repeat(good, 17): "more than 16",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n": `block 1 is a "PRIVATE KEY"`,
	} {
		beside(t, &c, "ca.pem", text)
		if _, err := get(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// baseImage makes a configuration whose base is an image of one layer.
func baseImage(t *testing.T, files map[string][]byte, links map[string]string) Config {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(content))}))
		_, err := w.Write(content)
		must(t, err)
	}
	for name, target := range links {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}))
	}
	must(t, w.Close())
	file := filepath.Join(t.TempDir(), "layer")
	must(t, os.WriteFile(file, b.Bytes(), 0o600))
	c := config(t, packages(t))
	c.Profile.Base, c.Profile.OCI.Archive = profiles.BaseOCI, "base.tar"
	must(t, c.Profile.Validate())
	c.Inputs.Base = []oci.Layer{{File: file, MediaType: types.OCIUncompressedLayer}}
	return c
}

func TestImageAsBase(t *testing.T) {
	c := baseImage(t, map[string][]byte{
		"usr/bin/app":        []byte("the base's own"),
		"bin/sh":             []byte("a shell"),
		"etc/passwd":         []byte("root:$6$hash:0:0:root:/root:/bin/sh\nwww:x:33:33::/:/bin/false\n"),
		"etc/group":          []byte("root:x:0:\nwww:x:33:\n"),
		"etc/shadow":         []byte("root:$6$hash:1:0:99999:7:::\n"),
		"etc/shadow-":        []byte("root:$6$hash:1:0:99999:7:::\n"),
		"etc/hosts":          []byte("10.0.0.1 base\n"),
		"etc/os-release":     []byte("ID=other\n"),
		"etc/resolv.conf":    []byte("nameserver 10.0.0.2\n"),
		"sbin/init":          []byte("another init"),
		"var/lib/db":         []byte("state"),
		"dev/null":           []byte(""),
		"boot/vmlinuz":       []byte("another kernel"),
		"lib/modules/5/a.ko": []byte("another module"),
	}, map[string]string{"lib64": "usr/lib64"})
	c.Profile.Users = []profiles.User{{Name: "till", UID: 1000}}
	_, root := build(t, c)
	wantFile(t, root, "/usr/bin/app", "the base's own", 0o755)
	wantFile(t, root, "/bin/sh", "a shell", 0o755)
	wantFile(t, root, "/etc/hosts", "10.0.0.1 base\n", 0o755)
	wantFile(t, root, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/:/bin/false\ntill:x:1000:1000::/nonexistent:/usr/sbin/nologin\n", 0o644)
	wantFile(t, root, "/etc/shadow", "root:!*:::::::\nwww:!*:::::::\ntill:!*:::::::\n", 0o600)
	for _, name := range []string{"/usr/bin/containerd", "/usr/bin/kubelet", profiles.RootAgentPath, "/usr/lib/x86_64-linux-gnu/libc.so.6", "/etc/nsswitch.conf", "/var", "/dev"} {
		if _, _, err := root.Resolve(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"/etc/shadow-", "/var/lib", "/dev/null", "/boot", "/usr/lib/modules/5"} {
		if _, err := root.Lookup(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	for name, target := range map[string]string{"/sbin/init": profiles.RootAgentPath, "/etc/resolv.conf": "/run/resolv.conf", "/bin": "usr/bin"} {
		if n, err := root.Lookup(name); err != nil || n.Target() != target {
			t.Errorf("%s leads to %q, want %s (%v)", name, n.Target(), target, err)
		}
	}
	release, err := root.ReadFile("/etc/os-release", 1<<20)
	must(t, err)
	if !strings.Contains(string(release), "ID=sealift\n") {
		t.Errorf("os-release is %q", release)
	}
}

func TestEmptyImageAsBaseIsTheMinimalBase(t *testing.T) {
	_, want := build(t, config(t, packages(t)))
	c := baseImage(t, nil, nil)
	_, got := build(t, c)
	// The accounts of a base image are locked, those of the minimal base have
	// no other state.
	for _, name := range []string{"etc/shadow", "etc/gshadow"} {
		must(t, got.Remove(name))
	}
	names := func(tr *tree.Tree) string {
		var out []string
		must(t, tr.Walk(func(name string, n *tree.Node) error {
			out = append(out, name+" "+n.Mode().String()+n.Target())
			return nil
		}))
		return strings.Join(out, "\n")
	}
	if names(got) != names(want) {
		t.Errorf("got\n%s\nwant\n%s", names(got), names(want))
	}
}

func TestImagesThatCannotBeABaseAreRefused(t *testing.T) {
	const libc, ld = "usr/lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"
	plain := makeELF(t, "")
	for claim, tc := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"the builder's directory":          {map[string][]byte{"usr/lib/sealift/agent": nil}, "/usr/lib/sealift is the image builder's"},
		"the agent's configuration":        {map[string][]byte{"etc/sealift/x": nil}, "/etc/sealift is the image builder's"},
		"a C library in another place":     {map[string][]byte{ld: plain, "usr/lib64/libc.so.6": plain}, "only one is there: its C library is not where Debian and its relatives have it"},
		"a C library without a linker":     {map[string][]byte{libc: plain}, "only one is there"},
		"a library that is no library":     {map[string][]byte{libc: []byte("x"), ld: plain}, "base image: /" + libc},
		"accounts that are no accounts":    {map[string][]byte{"etc/passwd": []byte("root\n")}, "/etc/passwd: line 1 has 1 fields, want 7"},
		"more than the slot":               {map[string][]byte{"opt/x": make([]byte, 65<<20)}, "unpacks to more than"},
		"a file where a directory must be": {map[string][]byte{"etc/containerd": []byte("x")}, "not a directory"},
	} {
		t.Run(claim, func(t *testing.T) {
			c := baseImage(t, tc.files, nil)
			c.Profile.Disk.Slot = 64
			rootError(t, c, tc.want)
		})
	}
}

// TestLibrariesOfTheBaseMustHaveWhatIsNeeded uses a real program and a real C
// library: those of the machine that runs the test.
func TestLibrariesOfTheBaseMustHaveWhatIsNeeded(t *testing.T) {
	const libc, ld = "/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Skip(err)
		}
		return b
	}
	program, library, linker := read("/bin/sh"), read(libc), read(ld)
	content := packages(t)
	content["runc"]["./usr/sbin/runc"] = program
	c := config(t, content)
	base := baseImage(t, map[string][]byte{libc[1:]: library, ld[1:]: linker}, nil)
	c.Profile, c.Inputs.Base = base.Profile, base.Inputs.Base
	_, root := build(t, c)
	if b, err := root.ReadFile(libc, 16<<20); err != nil || !bytes.Equal(b, library) {
		t.Errorf("the C library is not the base's: %v", err)
	}

	base = baseImage(t, map[string][]byte{libc[1:]: makeELF(t, ""), ld[1:]: linker}, nil)
	c.Inputs.Base = base.Inputs.Base
	rootError(t, c, "usr/sbin/runc needs GLIBC_")

	t.Run("versions are those that readelf sees", func(t *testing.T) {
		tr := tree.New()
		must(t, tr.WriteFile("sh", program, 0o755), tr.WriteFile("libc", library, 0o755))
		sh, err := tr.Lookup("sh")
		must(t, err)
		lib, err := tr.Lookup("libc")
		must(t, err)
		want, err := neededVersions(sh, "libc.so.6")
		must(t, err)
		have, err := definedVersions(lib)
		must(t, err)
		if len(want) == 0 || len(have) < 20 {
			t.Errorf("%v of %v", want, have)
		}
	})
}
