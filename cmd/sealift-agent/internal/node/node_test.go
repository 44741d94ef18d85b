package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/netup"
	"github.com/sealift/sealift/profiles"
)

func testJoin() *api.Join {
	return &api.Join{
		Server: "https://10.77.0.1:6443", CA: []byte("-----BEGIN CERTIFICATE-----\n"),
		Token: attest.Secret("abcdef.0123456789abcdef"), Expires: time.Unix(1e9, 0).UTC(),
	}
}

func TestHandoverIsReadOnceAndDestroyed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sealift/handover.json")
	want := Handover{
		Config:   profiles.AgentConfig{Mode: profiles.ModeBoot, Image: "demo 1", Debug: true},
		NodeName: "store-1", DiskGUID: "00112233-4455-6677-8899-aabbccddeeff", Join: testJoin(),
		Lease: &netup.Lease{Iface: "eth0", Address: netip.MustParsePrefix("10.0.0.7/24"), ACK: []byte{1, 2}},
	}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v, want 0600", st.Mode(), err)
	}
	if err := want.Write(path); err == nil {
		t.Error("an existing handover was written over")
	}
	// What the memory behind the file holds can be seen through another link.
	other := path + ".other"
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	got, err := ReadHandover(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Join.Token) != string(want.Join.Token) || got.Lease.Address != want.Lease.Address || got.NodeName != want.NodeName || !got.Config.Debug {
		t.Errorf("got %+v", got)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if b, err := os.ReadFile(other); err != nil || strings.Contains(string(b), "store-1") {
		t.Errorf("the content is still there: %v", err)
	}
	if _, err := ReadHandover(path); err == nil {
		t.Error("a second read succeeded")
	}
}

func TestHandoverWithoutALeaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h")
	if err := os.WriteFile(path, []byte(`{"nodeName":"a","diskGUID":"b"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadHandover(path); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}

func TestBootstrapKubeconfig(t *testing.T) {
	b, err := bootstrapKubeconfig(testJoin(), bootstrapUser, bootstrapUser)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"v1","kind":"Config",` +
		`"clusters":[{"name":"sealift","cluster":{"server":"https://10.77.0.1:6443","certificate-authority-data":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg=="}}],` +
		`"users":[{"name":"sealift","user":{"token":"abcdef.0123456789abcdef"}}],` +
		`"contexts":[{"name":"sealift","context":{"cluster":"sealift","user":"sealift"}}],"current-context":"sealift"}`
	if string(b) != want {
		t.Errorf("got %s\nwant %s", b, want)
	}
	for name, change := range map[string]func(*api.Join){
		"plain http is refused":        func(j *api.Join) { j.Server = "http://10.77.0.1" },
		"a missing server is refused":  func(j *api.Join) { j.Server = "" },
		"a missing token is refused":   func(j *api.Join) { j.Token = nil },
		"a missing CA is refused":      func(j *api.Join) { j.CA = nil },
		"a server with no host is bad": func(j *api.Join) { j.Server = "https:///x" },
	} {
		t.Run(name, func(t *testing.T) {
			j := testJoin()
			change(j)
			if _, err := bootstrapKubeconfig(j, bootstrapUser, bootstrapUser); err == nil {
				t.Error("no error")
			} else if strings.Contains(err.Error(), "0123456789") {
				t.Errorf("the token is in the error: %v", err)
			}
		})
	}
}

func testPaths(t *testing.T) profiles.JoinPaths {
	dir := t.TempDir()
	return profiles.JoinPaths{CA: dir + "/var/ca.crt", Bootstrap: dir + "/run/bootstrap", Kubeconfig: dir + "/var/kubeconfig"}
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := replaceFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPrepareJoin(t *testing.T) {
	ca := string(testJoin().CA)
	tests := map[string]struct {
		join         *api.Join
		ca, config   string // before; empty: no file
		err          string
		keepsConfig  bool
		hasBootstrap bool
	}{
		"a new node gets CA and token":                    {join: testJoin(), hasBootstrap: true},
		"a node that joined needs no token":               {ca: ca, config: "x", keepsConfig: true},
		"a node that never joined needs a token":          {err: "released no join token"},
		"a node that lost its kubeconfig needs a token":   {ca: ca, err: "released no join token"},
		"a token for the same cluster keeps the identity": {join: testJoin(), ca: ca, config: "x", keepsConfig: true, hasBootstrap: true},
		"a token for another cluster drops the identity":  {join: testJoin(), ca: "other", config: "x", hasBootstrap: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := testPaths(t)
			if tt.ca != "" {
				write(t, p.CA, tt.ca)
			}
			if tt.config != "" {
				write(t, p.Kubeconfig, tt.config)
			}
			err := prepareJoin(tt.join, p)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(p.CA); err != nil || string(b) != ca {
				t.Errorf("CA is %q, %v", b, err)
			}
			if _, err := os.Stat(p.Kubeconfig); (err == nil) != tt.keepsConfig {
				t.Errorf("kubeconfig: %v", err)
			}
			st, err := os.Stat(p.Bootstrap)
			if (err == nil) != tt.hasBootstrap || err == nil && st.Mode().Perm() != 0o600 {
				t.Errorf("bootstrap kubeconfig: %v, %v", st, err)
			}
		})
	}
}

func TestHasCertificate(t *testing.T) {
	old, fresh := time.Unix(1e9, 0), time.Unix(2e9, 0)
	const kubeconfig = "users:\n- name: default-auth\n  user:\n    client-certificate: pki/current.pem\n"
	tests := map[string]struct {
		kubeconfig string
		cert       time.Time // zero: no file
		want       bool
	}{
		"no kubeconfig yet":                           {},
		"a kubeconfig whose certificate is to come":   {kubeconfig: kubeconfig},
		"a certificate from before the token":         {kubeconfig: kubeconfig, cert: old},
		"a certificate that the token got":            {kubeconfig: kubeconfig, cert: fresh, want: true},
		"a kubeconfig that holds the certificate":     {kubeconfig: "client-certificate-data: x\n", want: true},
		"a kubeconfig that is there counts as joined": {kubeconfig: "x", want: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := testPaths(t)
			write(t, p.Bootstrap, "token")
			if err := os.Chtimes(p.Bootstrap, time.Time{}, time.Unix(15e8, 0)); err != nil {
				t.Fatal(err)
			}
			if tt.kubeconfig != "" {
				write(t, p.Kubeconfig, tt.kubeconfig)
			}
			if !tt.cert.IsZero() {
				cert := filepath.Join(filepath.Dir(p.Kubeconfig), "pki/current.pem")
				write(t, cert, "x")
				if err := os.Chtimes(cert, time.Time{}, tt.cert); err != nil {
					t.Fatal(err)
				}
			}
			if got := hasCertificate(p); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestForgetTokenDeletesIt(t *testing.T) {
	for name, tt := range map[string]struct {
		kubeconfig string
		expires    time.Time
		joined     bool
	}{
		"once the node has joined":    {kubeconfig: "x", joined: true},
		"once it has expired":         {expires: time.Unix(1e9, 0)},
		"joined counts after expiry":  {kubeconfig: "x", expires: time.Unix(1e9, 0), joined: true},
		"a token without an end too ": {kubeconfig: "x", joined: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := testPaths(t)
			write(t, p.Bootstrap, "token")
			if tt.kubeconfig != "" {
				write(t, p.Kubeconfig, tt.kubeconfig)
			}
			joined, err := forgetToken(t.Context(), p, tt.expires)
			if err != nil || joined != tt.joined {
				t.Errorf("got %v, %v", joined, err)
			}
			if _, err := os.Stat(p.Bootstrap); !os.IsNotExist(err) {
				t.Errorf("the token is still there: %v", err)
			}
		})
	}
}

func TestImporterImportsOnce(t *testing.T) {
	dir, markers := t.TempDir(), t.TempDir()
	for _, n := range []string{"b.tar", "a.tar"} {
		write(t, filepath.Join(dir, n), n)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	var ran []string
	fail := 1
	im := importer{
		dir: dir, command: []string{"/bin/ctr", "import"}, rootHash: "00",
		marker: func(root, archive string) string { return filepath.Join(markers, root+filepath.Base(archive)) },
		run: func(_ context.Context, args []string) error {
			ran = append(ran, strings.Join(args, " "))
			if fail--; fail >= 0 {
				return errors.New("runtime is not ready")
			}
			return nil
		},
		step: t.Logf, sleep: func(context.Context, time.Duration) error { return nil },
	}
	want := []string{"/bin/ctr import " + dir + "/a.tar", "/bin/ctr import " + dir + "/a.tar", "/bin/ctr import " + dir + "/b.tar"}
	if err := im.importAll(t.Context()); err != nil || !slices.Equal(ran, want) {
		t.Errorf("got %q, %v, want %q", ran, err, want)
	}
	ran = nil
	if err := im.importAll(t.Context()); err != nil || len(ran) != 0 {
		t.Errorf("a second boot imported %q, %v", ran, err)
	}
	im.rootHash = "11"
	if err := im.importAll(t.Context()); err != nil || len(ran) != 2 {
		t.Errorf("another image imported %q, %v, want both", ran, err)
	}
	im.dir = filepath.Join(dir, "missing")
	if err := im.importAll(t.Context()); err != nil {
		t.Errorf("an image without archives: %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"store-1": true, "a": true, "n1.example": true, "1a": true,
		"": false, "Store": false, "node_x": false, "-a": false, "a-": false, "a..b": false, "a/b": false,
		strings.Repeat("a", 63): true, strings.Repeat("a", 64): false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestMachineIDIsAVersion4UUIDAndStays(t *testing.T) {
	id := machineID("00112233-4455-6677-8899-aabbccddeeff")
	if len(id) != 32 || id[12] != '4' || !strings.ContainsRune("89ab", rune(id[16])) {
		t.Errorf("got %s", id)
	}
	if machineID("00112233-4455-6677-8899-aabbccddeeff") != id || machineID("x") == id {
		t.Error("it must depend on the disk GUID, and on nothing else")
	}
}

func inputEvent(typ, code uint16, value uint32) []byte {
	b := make([]byte, 16, inputEventSize)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, code)
	return binary.NativeEndian.AppendUint32(b, value)
}

func TestIsPowerKey(t *testing.T) {
	down, up, syn := inputEvent(evKey, keyPower, 1), inputEvent(evKey, keyPower, 0), inputEvent(0, 0, 0)
	for name, tt := range map[string]struct {
		b    []byte
		want bool
	}{
		"the power key going down":      {down, true},
		"after other events":            {slices.Concat(syn, inputEvent(evKey, 30, 1), down), true},
		"the power key going up":        {up, false},
		"another key":                   {inputEvent(evKey, 30, 1), false},
		"half an event":                 {down[:20], false},
		"another type of the same code": {inputEvent(4, keyPower, 1), false},
		"nothing":                       {nil, false},
	} {
		if got := isPowerKey(tt.b); got != tt.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestParseMounts(t *testing.T) {
	got, err := parseMounts(strings.NewReader("21 1 253:0 / / ro shared:1 - erofs /dev/dm-0 ro\n22 21 0:5 / /var/lib/a\\040b rw - tmpfs t rw\n"))
	if err != nil || !slices.Equal(got, []string{"/", "/var/lib/a b"}) {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := parseMounts(strings.NewReader("21 1 253:0\n")); err == nil {
		t.Error("a short line: no error")
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("21 1 253:0 / / ro shared:1 - erofs /dev/dm-0 ro\n")
	f.Add("a b c d \\040\\134\n")
	f.Fuzz(func(t *testing.T, s string) {
		if targets, err := parseMounts(strings.NewReader(s)); err == nil && len(targets) > strings.Count(s, "\n")+1 {
			t.Errorf("%d mounts from %q", len(targets), s)
		}
	})
}

func TestKeepMounted(t *testing.T) {
	for target, want := range map[string]bool{
		"/": true, "/proc": true, "/sys/fs/cgroup": true, "/dev/pts": true, "/run": true,
		"/var": false, "/run/containerd/x/rootfs": false, "/var/lib/kubelet/pods/x": false, "/tmp": false, "/devices": false,
	} {
		if got := keepMounted(target); got != want {
			t.Errorf("%s: got %v", target, got)
		}
	}
}

func TestEndFor(t *testing.T) {
	for sig, want := range map[unix.Signal]boot.End{unix.SIGINT: boot.EndReboot, unix.SIGTERM: boot.EndPowerOff, unix.SIGPWR: boot.EndPowerOff} {
		if got := endFor(sig); got != want {
			t.Errorf("%s: got %s, want %s", sig, got, want)
		}
	}
}

func TestParseConfig(t *testing.T) {
	good := profiles.NodeConfig{
		Services: []profiles.Service{{Name: "kubelet", Args: []string{"/usr/bin/kubelet", "--node-ip=${NODE_IP}"}}},
		Join:     profiles.JoinPaths{CA: "/var/ca", Bootstrap: "/run/b", Kubeconfig: "/var/k"},
	}
	for name, tt := range map[string]struct {
		change func(*profiles.NodeConfig)
		ok     bool
	}{
		"a whole configuration":          {func(*profiles.NodeConfig) {}, true},
		"a service without a name":       {func(c *profiles.NodeConfig) { c.Services[0].Name = "" }, false},
		"a service named like a path":    {func(c *profiles.NodeConfig) { c.Services[0].Name = "../x" }, false},
		"a service without a program":    {func(c *profiles.NodeConfig) { c.Services[0].Args = nil }, false},
		"a program with a relative path": {func(c *profiles.NodeConfig) { c.Services[0].Args = []string{"kubelet"} }, false},
		"a relative path to read ahead":  {func(c *profiles.NodeConfig) { c.Prefetch = []string{"kubelet"} }, false},
		"a CA on the read-only root":     {func(c *profiles.NodeConfig) { c.Join.CA = "/etc/ca" }, false},
		"no join paths":                  {func(c *profiles.NodeConfig) { c.Join = profiles.JoinPaths{} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			c.Services = slices.Clone(good.Services)
			tt.change(&c)
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseConfig(b); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := ParseConfig([]byte("{")); err == nil {
		t.Error("half a document: no error")
	}
}

func TestExpand(t *testing.T) {
	n := Node{Handover: &Handover{NodeName: "store-1"}, nodeIP: "10.0.0.7"}
	if got := n.expand("--x=${NODE_IP},${NODE_NAME},${HOME}"); got != "--x=10.0.0.7,store-1,${HOME}" {
		t.Errorf("got %s", got)
	}
}
