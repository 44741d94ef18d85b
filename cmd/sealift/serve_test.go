package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/api"
)

// process is `sealift serve` in a process of its own.
type process struct {
	*service
	cmd  *exec.Cmd
	log  *json.Decoder
	text *bytes.Buffer // what of the log was read
}

// startProcess runs this test binary as sealift, see TestMain.
func startProcess(t *testing.T, settings ...string) *process {
	t.Helper()
	p := &process{service: newService(t, settings...), text: new(bytes.Buffer)}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(self, "serve", "--log-format", "json", "--config", filepath.Join(p.dir, "serve.yaml"))
	p.cmd.Args[0] = "sealift"
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceValue(func() int {
		p.signal(syscall.SIGTERM)
		return p.wait()
	})
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it has ended if the test went well
	p.log = json.NewDecoder(io.TeeReader(stderr, p.text))
	p.await(p.log)
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// logged reads the log until a message comes.
func (p *process) logged(msg string) {
	p.t.Helper()
	for {
		var line map[string]any
		if err := p.log.Decode(&line); err != nil {
			p.t.Fatalf("the log ended before %q: %v\n%s", msg, err, p.text)
		}
		if line["msg"] == msg {
			return
		}
	}
}

// wait reads the log to its end and returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	for p.log.Decode(new(any)) == nil {
	}
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// client is an operator's HTTP client, a new connection for each request.
func (s *service) client() *http.Client {
	s.t.Helper()
	pool, crt, err := readIdentity(s.identity)
	if err != nil {
		s.t.Fatal(err)
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{crt}}}}
}

// held begins a request to the node API whose body is not there yet.
func (p *process) held(path string, length int) *tls.Conn {
	p.t.Helper()
	pool, _, err := readIdentity(p.identity)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := tls.Dial("tcp", strings.TrimPrefix(p.nodes, "https://"), &tls.Config{RootCAs: pool})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", path, length); err != nil {
		p.t.Fatal(err)
	}
	// The service asks for the body when it reads it.
	line, err := bufio.NewReader(io.LimitReader(c, 25)).ReadString('\n')
	if err != nil || !strings.Contains(line, "100 Continue") {
		p.t.Fatalf("%q, %v", line, err)
	}
	return c
}

func TestTheEndIsInOrder(t *testing.T) {
	t.Parallel()
	p := startProcess(t, `monitor: {listen: "127.0.0.1:0"}`, `limits: {grace: 5s, drain: 1m}`)
	ready := func() (int, string) {
		resp, err := http.Get(p.monitor + "/readyz")
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(b)
	}
	if status, body := ready(); status != 200 {
		t.Fatalf("before the end: HTTP %d, %s", status, body)
	}
	body := `{"releaseID":"x","outcome":"unlocked","proof":"AA=="}`
	open := p.held(api.PathConfirm, len(body))
	p.signal(syscall.SIGTERM)
	p.logged("ending")
	for status, body := 200, ""; status != 503; { // the log came first
		if status, body = ready(); status == 0 {
			t.Fatal(body)
		}
	}
	// It is not ready and still serves.
	resp, err := p.client().Get(p.operators + api.PathMachines)
	if err != nil {
		t.Fatalf("in the grace: %v", err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("in the grace: HTTP %d", resp.StatusCode)
	}
	// Then nobody is let in any more, and what is open finishes.
	for {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.nodes, "https://"))
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if errors.Is(err, syscall.ECONNRESET) {
			continue // the listener was closed on it
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if status, _ := ready(); status != 503 {
		t.Errorf("monitoring while requests finish: HTTP %d, want 503", status)
	}
	if _, err := io.WriteString(open, body); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(open), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 403 { // there is no such release
		t.Errorf("the open request: HTTP %d, want 403", answer.StatusCode)
	}
	if code := p.wait(); code != 0 {
		t.Errorf("exit %d\n%s", code, p.text)
	}
}

func TestAPeerThatHangsDoesNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	p := startProcess(t, `limits: {drain: 100ms}`)
	p.held(api.PathEvidence, 1000)
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 || !strings.Contains(p.text.String(), "requests cut at the end of service") {
		t.Errorf("exit %d\n%s", code, p.text)
	}
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		second syscall.Signal
		code   int
	}{{syscall.SIGTERM, 143}, {syscall.SIGINT, 130}} {
		t.Run(tt.second.String(), func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, `limits: {grace: 1h}`)
			p.signal(syscall.SIGTERM)
			p.logged("ending")
			ended := make(chan int)
			go func() { ended <- p.wait() }()
			for {
				p.signal(tt.second)
				select {
				case code := <-ended:
					if code != tt.code {
						t.Errorf("exit %d, want %d\n%s", code, tt.code, p.text)
					}
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
}

func TestMonitoringOverTLSIsForOperators(t *testing.T) {
	t.Parallel()
	s := startService(t, `monitor: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}`)
	url := strings.Replace(s.monitor, "http://", "https://", 1)
	stranger := s.client()
	stranger.Transport.(*http.Transport).TLSClientConfig.Certificates = nil
	for name, tt := range map[string]struct {
		client *http.Client
		path   string
		status int
		want   string
	}{
		"metrics for an operator":    {s.client(), "/metrics", 200, "sealift_build_info"},
		"metrics for a stranger":     {stranger, "/metrics", 403, "no client certificate"},
		"life for a stranger":        {stranger, "/healthz", 200, "ok"},
		"readiness for a stranger":   {stranger, "/readyz", 200, `"ready":true`},
		"the operator API elsewhere": {s.client(), api.PathMachines, 404, ""},
	} {
		resp, err := tt.client.Get(url + tt.path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(b), tt.want) {
			t.Errorf("%s: HTTP %d, %v, want %d with %q:\n%s", name, resp.StatusCode, err, tt.status, tt.want, b)
		}
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

// login is an issuer of tokens on loopback, and a key that it signs with.
type login struct {
	t    *testing.T
	srv  *httptest.Server
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
	down bool // guarded by mu
}

func newLogin(t *testing.T) *login {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &login{t: t, key: key}
	l.srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		down := l.down
		l.mu.Unlock()
		point, err := key.PublicKey.Bytes() // uncompressed: 4, X, Y
		if down || err != nil {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			fmt.Fprintf(w, `{"keys":[{"kty":"EC","crv":"P-256","kid":"k1","use":"sig","alg":"ES256","x":%q,"y":%q}]}`, enc(point[1:33]), enc(point[33:]))
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, l.srv.URL, l.srv.URL+"/keys")
	}))
	t.Cleanup(l.srv.Close)
	return l
}

func enc(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token signs a token (RFC 7515 3, RFC 7518 3.4) for somebody with groups.
func (l *login) token(sub, kid string, groups ...string) string {
	l.t.Helper()
	claims, err := json.Marshal(map[string]any{"iss": l.srv.URL, "aud": "sealift", "sub": sub, "groups": groups, "exp": time.Now().Add(time.Hour).Unix()})
	if err != nil {
		l.t.Fatal(err)
	}
	text := enc([]byte(`{"alg":"ES256","kid":"`+kid+`"}`)) + "." + enc(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, l.key, sum[:])
	if err != nil {
		l.t.Fatal(err)
	}
	return text + "." + enc(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func TestOperatorsUseTokensThroughTheCommandLine(t *testing.T) {
	l := newLogin(t)
	ca := filepath.Join(t.TempDir(), "login-ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startService(t, fmt.Sprintf(`operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"], oidc: {issuer: %q, audience: sealift, ca: %q, groups: {sre: [operator], audit: [auditor]}}}`, l.srv.URL, ca))
	file := func(name, token string, mode os.FileMode) string {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, []byte(token+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sre, audit, none := l.token("u1", "k1", "sre"), l.token("u2", "k1", "audit", "cooks"), l.token("u3", "k1", "cooks")
	serviceCA := filepath.Join(s.identity, identityCA)
	with := func(token string, args ...string) []string {
		return append(args, "--server", s.operators, "--server-ca", serviceCA, "--token-file", token)
	}
	rec, id := newInstall(t, s.tpmCA)
	line, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	records := filepath.Join(s.dir, "records")
	if err := os.WriteFile(records, line, 0o600); err != nil {
		t.Fatal(err)
	}
	sreFile := file("sre", sre, 0o600)
	o := operatorOptions{server: s.operators, serverCA: serviceCA, tokenFile: sreFile}
	c, err := o.client()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Install(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	c.Close()
	mustCLI(t, with(sreFile, "machine", "revoke", id.String(), "--reason", "lost")...)
	log := mustCLI(t, with(file("audit", audit, 0o600), "audit", "export")...)
	if n := strings.Count(log, `"by":"oidc:u1"`); n != 3 { // install, enrolled, revoked
		t.Errorf("the log names oidc:u1 %d times, want 3:\n%s", n, log)
	}
	if strings.Contains(log, sre) || strings.Contains(log, strings.Split(sre, ".")[2]) {
		t.Error("the audit log has a token")
	}
	for _, tt := range []struct {
		claim string
		in    string
		args  []string
		code  int
		want  string
	}{
		{"from standard input", sre, with("-", "machine", "list"), exitOK, ""},
		{"beside an identity, which gives the CA", "", []string{"machine", "list", "--server", s.operators, "--identity", s.identity, "--token-file", sreFile}, exitOK, ""},
		{"a certificate, still", "", []string{"machine", "list", "--server", s.operators, "--identity", s.identity}, exitOK, ""},
		{"without the role", "", with(sreFile, "audit", "export"), exitRefused, "the issuer of the token says who has which role"},
		{"without any role", "", with(file("none", none, 0o600), "machine", "list"), exitRefused, "oidc:u3 does not have the role viewer"},
		{"with another key", "", with(file("other", l.token("u1", "k2", "sre"), 0o600), "machine", "list"), exitRefused, "has no key with its key id"},
		{"that is damaged", "", with(file("damaged", sre[:len(sre)-8]+"AAAAAAAA", 0o600), "machine", "list"), exitRefused, "unauthenticated"},
		{"that is no token", "", with(file("text", "two words", 0o600), "machine", "list"), exitUsage, "no token"},
		{"in an empty file", "", with(file("empty", "", 0o600), "machine", "list"), exitUsage, "is empty"},
		{"that others can read", "", with(file("open", sre, 0o644), "machine", "list"), exitFailed, "others can read it"},
		{"in a file that is not there", "", with("/nope", "machine", "list"), exitFailed, "no such file"},
		{"without the service's CA", "", []string{"machine", "list", "--server", s.operators, "--token-file", sreFile}, exitUsage, "the CA of the service is not known"},
	} {
		t.Run("a token "+tt.claim, func(t *testing.T) {
			code, out, talk := cli(t, tt.in, tt.args...)
			if code != tt.code || !strings.Contains(talk, tt.want) {
				t.Errorf("exit %d, want %d; stdout %q, stderr %q, want %q", code, tt.code, out, talk, tt.want)
			}
			if strings.Contains(talk, sre) {
				t.Errorf("the token is shown: %s", talk)
			}
		})
	}
	t.Run("a token from the environment", func(t *testing.T) {
		t.Setenv("SEALIFT_TOKEN", sre)
		t.Setenv("SEALIFT_SERVER", s.operators)
		t.Setenv("SEALIFT_SERVER_CA", serviceCA)
		mustCLI(t, "machine", "list")
	})
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

func TestAnIssuerThatIsDownLeavesTheCertificates(t *testing.T) {
	t.Parallel()
	l := newLogin(t)
	ca := filepath.Join(t.TempDir(), "login-ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	l.down = true
	s := startService(t, fmt.Sprintf(`operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"], oidc: {issuer: %q, audience: sealift, ca: %q, rolesClaim: groups}}`, l.srv.URL, ca),
		`monitor: {listen: "127.0.0.1:0"}`)
	token := filepath.Join(s.dir, "token")
	if err := os.WriteFile(token, []byte(l.token("u1", "k1", "viewer")), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, talk := cli(t, "", "machine", "list", "--server", s.operators, "--identity", s.identity, "--token-file", token)
	if code != exitFailed || !strings.Contains(talk, "the issuer of tokens is not available") {
		t.Errorf("exit %d: %s", code, talk)
	}
	mustCLI(t, "machine", "list", "--server", s.operators, "--identity", s.identity)
	resp, err := http.Get(s.monitor + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !strings.Contains(string(b), `"oidc":"degraded"`) {
		t.Errorf("HTTP %d, %s, %v", resp.StatusCode, b, err)
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

func TestALostIdentityIsStopped(t *testing.T) {
	t.Parallel()
	s := startService(t)
	ask := []string{"machine", "list", "--server", s.operators, "--identity", s.identity}
	mustCLI(t, ask...)
	keys := filepath.Join(s.dir, "some")
	mustCLI(t, "keys", "issue", "operator", "bob", "--role", "viewer", "--keys", keys, "--out", filepath.Join(s.dir, "bob"))
	mustCLI(t, "keys", "revoke", "operator", "ana", "--keys", keys)
	if code, _, talk := cli(t, "", ask...); code != exitRefused || !strings.Contains(talk, "certificate-revoked") {
		t.Errorf("exit %d: %s", code, talk)
	}
	bob := []string{"machine", "list", "--server", s.operators, "--identity", filepath.Join(s.dir, "bob")}
	mustCLI(t, bob...)
	if err := os.Remove(filepath.Join(keys, "operators.crl")); err != nil {
		t.Fatal(err)
	}
	if code, _, talk := cli(t, "", bob...); code != exitFailed || !strings.Contains(talk, "the list of revoked certificates is not available") {
		t.Errorf("without the list: exit %d: %s", code, talk)
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

func TestServeRefusesSettingsThatCannotBe(t *testing.T) {
	t.Parallel()
	s := newService(t)
	whole, err := os.ReadFile(filepath.Join(s.dir, "serve.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	oidc := func(more string) string {
		return `operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"], oidc: {` + more + `}}`
	}
	for setting, want := range map[string]string{
		`limits: {perAddress: -1s}`:   "limits.perAddress is -1s",
		`limits: {grace: 2h}`:         "limits.grace is 2h0m0s",
		`limits: {connections: -1}`:   "limits.connections is -1",
		`limits: {perAdress: 1s}`:     `unknown field "perAdress"`,
		`limits: {perAddress: often}`: "serve.yaml:",
		`limits: {perAddress: 100}`:   "got a number, want a time such as 50ms",
		`limits: {perAddress: {}}`:    "got a section with settings of its own, want a time",
		`witness: [1]`:                "got a list, want a text",
		`node: {listen: "127.0.0.1:0", hosts: [x], proxies: ["0.0.0.0/0"]}`:  "node.proxies has 0.0.0.0/0",
		`node: {listen: "127.0.0.1:0", hosts: [x], proxies: ["10.0.0.1"]}`:   "serve.yaml:",
		`operator: {listen: "127.0.0.1:0", hosts: [x], proxies: ["::/0"]}`:   "operator.proxies has ::/0",
		`monitor: {listen: "127.0.0.1:0", proxies: ["::ffff:10.0.0.0/104"]}`: "monitor.proxies has ::ffff:10.0.0.0/104",
		`policy: {}`:                "policy.file",
		`policy: {file: p, off: x}`: "policy.file",
		`policy: {off: x, floor: {name: a, version: 1}}`:                               "policy.file",
		`policy: {floor: {version: 1}}`:                                                "policy.floor.name",
		`policy: {file: p, floor: {name: a}}`:                                          "policy.floor.version",
		`monitor: {listen: "0.0.0.0:9464"}`:                                            "which others reach",
		`monitor: {listen: ":9464"}`:                                                   "which others reach",
		`monitor: {listen: "127.0.0.1"}`:                                               "want address:port",
		`monitor: {listen: "10.0.0.1:1", hosts: ["x"], plain: true}`:                   "give one of them",
		oidc(`issuer: "http://x", audience: a, rolesClaim: r`):                         "want an https URL",
		oidc(`issuer: "https://x", rolesClaim: r`):                                     "no audience",
		oidc(`issuer: "https://x", audience: a`):                                       "neither a claim for roles nor groups",
		oidc(`issuer: "https://x", audience: a, rolesClaim: r, algorithms: ["HS256"]`): `algorithm "HS256"`,
		oidc(`issuer: "https://x", audience: a, groups: {g: [root]}`):                  `role "root"`,
		oidc(`issuer: "https://x", audience: a, rolesClaim: r, skew: 1h`):              "skew 1h0m0s",
	} {
		section, _, _ := strings.Cut(setting, ":")
		var config strings.Builder
		for line := range strings.Lines(string(whole)) {
			if !strings.HasPrefix(line, section+":") {
				config.WriteString(line)
			}
		}
		file := filepath.Join(t.TempDir(), "serve.yaml")
		if err := os.WriteFile(file, []byte(config.String()+setting+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readServeConfig(file); err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != exitUsage {
			t.Errorf("%s: %v, want a usage error with %q", setting, err, want)
		}
	}
	if code, _, talk := cli(t, "", "serve", "--config", filepath.Join(s.dir, "serve.yaml"), "--log-format", "xml"); code != exitUsage || !strings.Contains(talk, "want text or json") {
		t.Errorf("exit %d: %s", code, talk)
	}
}

// Every setting of the configuration is in docs/serve.md or docs/operators.md.
func TestTheDocumentationHasEverySetting(t *testing.T) {
	t.Parallel()
	var docs []byte
	for _, file := range []string{"../../docs/serve.md", "../../docs/operators.md"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, b...)
	}
	for _, file := range []string{"config.go", "serveconfig.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range strings.Split(string(b), "`yaml:\"")[1:] {
			name, _, _ := strings.Cut(part, `"`)
			if !bytes.Contains(docs, []byte("`"+name+"`")) && !bytes.Contains(docs, []byte("."+name+"`")) && !bytes.Contains(docs, []byte("`"+name+".")) {
				t.Errorf("%s: the setting %s is not documented", file, name)
			}
		}
	}
}
