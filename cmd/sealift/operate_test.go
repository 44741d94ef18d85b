package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/provisioner"
	provisionapi "github.com/sealift/sealift/provisioner/api"
)

// cli runs one command line and returns what it wrote.
func cli(t *testing.T, in string, args ...string) (code int, out, talk string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), env{in: strings.NewReader(in), out: &stdout, err: &stderr}, args)
	return code, stdout.String(), stderr.String()
}

func mustCLI(t *testing.T, args ...string) string {
	t.Helper()
	code, out, talk := cli(t, "", args...)
	if code != exitOK {
		t.Fatalf("sealift %s: exit %d: %s", strings.Join(args, " "), code, talk)
	}
	return out
}

// service is a running `sealift serve`.
type service struct {
	t                *testing.T
	dir              string
	nodes, operators string // https URLs
	monitor          string // http URL, if there is one
	identity         string
	tpmCA            *tpmtest.CA // that its policy trusts
	stop             func() int  // ends it and returns its exit code
}

// startService runs serve in this process, see newService.
func startService(t *testing.T, settings ...string) *service {
	t.Helper()
	s := newService(t, settings...)
	s.start(t)
	return s
}

// start runs serve in this process with the configuration, until it serves.
func (s *service) start(t *testing.T) {
	t.Helper()
	logs, rest := s.launch(t)
	s.await(logs)
	go io.Copy(io.Discard, rest)
}

// launch runs serve in this process, and returns its log, decoded and as it is.
func (s *service) launch(t *testing.T) (*json.Decoder, io.Reader) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	logs, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, env{in: strings.NewReader(""), out: io.Discard, err: w}, []string{"serve", "--json", "--config", filepath.Join(s.dir, "serve.yaml")})
		w.Close()
		ended <- code
	}()
	s.stop = func() int { cancel(); return <-ended }
	t.Cleanup(cancel)
	return json.NewDecoder(logs), logs
}

// await reads the log until the service serves.
func (s *service) await(logs *json.Decoder) {
	s.t.Helper()
	for {
		var line map[string]any
		if err := logs.Decode(&line); err != nil {
			s.t.Fatalf("serve ended before it served: %v, exit %d", err, s.stop())
		}
		if line["msg"] == "serving" {
			s.nodes, s.operators, s.monitor = fmt.Sprintf("https://%s", line["nodes"]), fmt.Sprintf("https://%s", line["operators"]), fmt.Sprintf("http://%s", line["monitor"])
			return
		} else if line["event"] == "error" {
			s.t.Fatal(line["text"])
		}
	}
}

// newService makes keys, an image and a configuration for a service with only
// the keys that its help says it needs, and what may be beside them. settings
// are added to the configuration; each replaces the line of its section.
func newService(t *testing.T, settings ...string) *service {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	shared, err := shared()
	if err == nil {
		err = os.CopyFS(dir, os.DirFS(shared))
	}
	if err == nil {
		// CopyFS makes what others can read.
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return errors.Join(err, os.Chmod(path, 0o600))
			}
			return os.Chmod(path, 0o700)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	config := `keys: some
kek: {file: some/disk-kek.key}
store: s.db
images: [img]
node: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
tpm: {allowed: [hardware], roots: [{class: hardware, file: tpm.crt}]}
firmware: {catalogue: c.yaml}
`
	for _, one := range settings {
		section, _, _ := strings.Cut(one, ":")
		var kept strings.Builder
		for line := range strings.Lines(config) {
			if !strings.HasPrefix(line, section+":") {
				kept.WriteString(line)
			}
		}
		config = kept.String() + one + "\n"
	}
	ca := tpmtest.NewCA(t)
	for name, content := range map[string]string{
		"c.yaml":     "models: []\n",
		"tpm.crt":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw})),
		"serve.yaml": config,
	} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &service{t: t, dir: dir, identity: at("ana"), tpmCA: ca}
}

// sharedDir holds what shared makes. TestMain removes it.
var sharedDir string

// shared makes keys, an operator and an image once for all tests: RSA keys take
// seconds under the race detector.
var shared = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sealift-test-")
	if err != nil {
		return "", err
	}
	sharedDir = dir
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"keys", "init", at("keys")},
		{"keys", "issue", "operator", "ana", "--role", "operator,approver,auditor", "--keys", at("keys"), "--out", at("ana")},
	} {
		var talk bytes.Buffer
		if code := run(context.Background(), env{in: strings.NewReader(""), out: io.Discard, err: &talk}, args); code != exitOK {
			return "", fmt.Errorf("sealift %s: exit %d: %s", strings.Join(args, " "), code, talk.String())
		}
	}
	if err := makeImage(at("keys"), at("img")); err != nil {
		return "", err
	}
	if err := os.Mkdir(at("some"), 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"service-ca.key", "service-ca.crt", "release.key", "disk-kek.key", "image.pub", "operators.jsonl"} {
		if err := os.Rename(at("keys/"+name), at("some/"+name)); err != nil {
			return "", err
		}
	}
	return dir, nil
})

// install hands over an install record.
func install(t *testing.T, s *service, rec *api.InstallRecord) {
	t.Helper()
	o := operatorOptions{server: s.operators, identity: s.identity}
	if err := o.do(func(c *operator.Client) error { _, err := c.Install(t.Context(), rec); return err }); err != nil {
		t.Fatal(err)
	}
}

// newInstall returns the install record of a machine that does not exist.
func newInstall(t *testing.T, ca *tpmtest.CA) (*api.InstallRecord, attest.MachineID) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // uncompressed: 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	ek := tpm2.ECCEKTemplate
	ek.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	rec := &api.InstallRecord{
		EKPublic: tpm2.Marshal(ek), EKCertificates: [][]byte{ca.Certify(t, key.Public()).Raw, ca.Issuer.Raw}, DiskGUID: "6d0f0b6e-3f0c-4a57-9f6d-8d6b6f3f2a11", Serial: "S1", MAC: "52:54:00:00:00:01",
		Image: "tiny 1", SecureBoot: "enrolled", Finished: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC),
	}
	id, err := attest.EKMachineID(rec.EKPublic)
	if err != nil {
		t.Fatal(err)
	}
	rec.Serial = "S-" + id.Short()
	return rec, id
}

func TestOperatorsReachTheServiceThroughTheCommandLine(t *testing.T) {
	s := startService(t)
	ask := func(args ...string) []string {
		return append(args, "--server", s.operators, "--identity", s.identity)
	}
	if out := mustCLI(t, ask("machine", "list", "--json")...); out != "" {
		t.Errorf("an empty fleet has machines: %s", out)
	}
	rec, id := newInstall(t, s.tpmCA)
	for range 2 { // as an answer that was lost makes it
		install(t, s, rec)
	}
	var m api.Machine
	if err := json.Unmarshal([]byte(mustCLI(t, ask("machine", "list", "--state", "enrolled", "--json")...)), &m); err != nil || m.ID != id {
		t.Fatalf("machine list: %+v, %v", m, err)
	}
	if out := mustCLI(t, ask("machine", "show", id.String(), "--json")...); strings.Count(out, "\n") != 1 {
		t.Errorf("machine show --json is not one line: %s", out)
	}
	if out := mustCLI(t, ask("machine", "rejoin", id.String(), "--reason", "certificate lost")...); !strings.Contains(out, "enrolled") {
		t.Errorf("machine rejoin: %s", out)
	}
	if out := mustCLI(t, ask("machine", "revoke", id.String(), "--reason", "stolen")...); !strings.Contains(out, "revoked") {
		t.Errorf("machine revoke: %s", out)
	}
	if out := mustCLI(t, ask("firmware", "campaign", "list", "--json")...); out != "" {
		t.Errorf("campaign list: %s", out)
	}

	other := strings.Repeat("ab", 32)
	campaign := func(product, machine string) []string {
		return ask("firmware", "campaign", "create", "c1", "--vendor", "V", "--product", product, "--from", "1", "--to", "2", "--machine", machine)
	}
	for _, c := range []struct {
		claim string
		args  []string
		code  int
		want  string
	}{
		{"a model that the catalogue lacks", campaign("no", id.String()), exitUsage, `the catalogue has no build 1 for "V" "no"`},
		{"a machine id that is none", campaign("no", "6f0c"), exitUsage, "want 64 hex digits"},
		{"an unknown machine is not shown", ask("machine", "show", other), exitFailed, "there is no machine " + other},
		{"an unknown machine cannot be approved", ask("machine", "approve", other, "--reason", "x"), exitFailed, "there is no machine"},
		{"an unknown campaign", ask("firmware", "campaign", "show", "c1"), exitFailed, "there is no campaign c1"},
		{"a report on an unknown machine", ask("report", "attestation", "--machine", other, "--out", filepath.Join(s.dir, "no")), exitFailed, "the audit log tells nothing of machine"},
		{"a report on one, of a log that is not the service's", ask("report", "attestation", "--machine", other, "--head", other, "--out", filepath.Join(s.dir, "no")), exitRefused, "and nothing shows that the service wrote it: it has no entry with the hash"},
		{"a service that is not there", []string{"machine", "list", "--server", "https://127.0.0.1:1", "--identity", s.identity}, exitFailed, "hint: is `sealift serve` running"},
		{"a URL that is none", []string{"machine", "list", "--server", "127.0.0.1", "--identity", s.identity}, exitUsage, "want https://host[:port]"},
		{"an identity that is not there", []string{"machine", "list", "--server", s.operators, "--identity", "/nope"}, exitFailed, "hint: sealift keys issue operator"},
		{"an operator at the node API", []string{"machine", "list", "--server", s.nodes, "--identity", s.identity}, exitFailed, "wrong-listener"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			code, out, talk := cli(t, "", c.args...)
			if code != c.code || out != "" || !strings.HasPrefix(talk, "sealift: error: ") || !strings.Contains(talk, c.want) {
				t.Errorf("exit %d, want %d; stdout %q, stderr %q, want %q", code, c.code, out, talk, c.want)
			}
		})
	}

	log := mustCLI(t, ask("audit", "export")...)
	key := filepath.Join(s.dir, "keys", "release.pub")
	if code, out, talk := cli(t, log, "audit", "verify", "-", "--key", key); code != exitOK || !strings.HasPrefix(out, "5 entries intact") { // start, install, enrolled, revoked, asked at the node API
		t.Errorf("audit verify: exit %d, %s%s\n%s", code, out, talk, log)
	}
	if code, _, _ := cli(t, strings.Replace(log, "stolen", "broken", 1), "audit", "verify", "-", "--key", key); code != exitRefused {
		t.Errorf("audit verify of an altered log: exit %d", code)
	}
	file := filepath.Join(s.dir, "audit.jsonl")
	mustCLI(t, ask("audit", "export", "--out", file)...)
	// But for the signed head, which is made anew.
	b, err := os.ReadFile(file)
	if entries, _, _ := strings.Cut(log, `{"payloadType"`); err != nil || !strings.HasPrefix(string(b), entries) || strings.Count(string(b), "\n") != strings.Count(log, "\n") {
		t.Errorf("audit export --out differs from standard output: %v", err)
	}
	if out := mustCLI(t, "audit", "verify", file, "--key", key); !strings.HasPrefix(out, "5 entries intact") || !strings.Contains(out, "signed by the service at ") {
		t.Errorf("audit verify: %s", out)
	}
	verifyAsAuditor(t, file, key)
	part := filepath.Join(s.dir, "part.jsonl")
	mustCLI(t, ask("audit", "export", "--from", "3", "--out", part)...)
	if out := mustCLI(t, "audit", "verify", part, "--key", key, "--from", "3"); !strings.HasPrefix(out, "3 entries intact") {
		t.Errorf("audit verify of a part: %s", out)
	}
	if code, _, talk := cli(t, "", ask("audit", "export", "--from", "99")...); code != exitUsage || !strings.Contains(talk, "the log ends with entry 5") {
		t.Errorf("audit export from beyond the end: exit %d, %s", code, talk)
	}
	report := filepath.Join(s.dir, "report")
	reportWith := func(args ...string) []string {
		return ask(append([]string{"report", "attestation", "--machine", id.String(), "--out", report, "--json"}, args...)...)
	}
	if out := mustCLI(t, reportWith("--key", key)...); !strings.Contains(out, `"verified":true,"intact":true,"entries":5`) || !strings.Contains(out, `"signed":{`) {
		t.Errorf("report: %s", out)
	}
	if out := mustCLI(t, reportWith("--chain-only")...); !strings.Contains(out, `"verified":false,"intact":true`) || strings.Contains(out, `"signed":{`) {
		t.Errorf("report of the chain alone: %s", out)
	}
	otherKey := filepath.Join(t.TempDir(), "other.pub")
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&stranger.PublicKey)
	if err == nil {
		err = os.WriteFile(otherKey, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	hash := regexp.MustCompile(`"seq":2,.*"hash":"([0-9a-f]{64})"`).FindStringSubmatch(log)
	if hash == nil {
		t.Fatalf("no entry 2 in %s", log)
	}
	for claim, c := range map[string]struct {
		args []string
		code int
		out  string // with --json
		talk string
	}{
		"without a key":           {nil, exitRefused, `"verified":false`, "give the service's public release key"},
		"with another key":        {[]string{"--key", otherKey}, exitRefused, `"verified":false`, "signed by another key"},
		"with a hash":             {[]string{"--head", hash[1]}, exitOK, `"kept":{"seq":2`, ""},
		"with another's hash":     {[]string{"--head", strings.Repeat("ab", 32)}, exitRefused, `"verified":false`, "cut short or written anew"},
		"with a hash of none":     {[]string{"--head", "xyz"}, exitUsage, "", "--head"},
		"with a key of none":      {[]string{"--key", "/nope"}, exitFailed, "", "/nope"},
		"of nothing and a key":    {[]string{"--chain-only", "--key", key}, exitUsage, "", "--chain-only"},
		"with the key, as a text": {[]string{"--key", key, "--json=false"}, exitOK, "signed by the service at ", ""},
	} {
		t.Run("a report "+claim, func(t *testing.T) {
			code, out, talk := cli(t, "", reportWith(c.args...)...)
			if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(talk, c.talk) {
				t.Errorf("exit %d, want %d; %s%s", code, c.code, out, talk)
			}
			if b, err := os.ReadFile(filepath.Join(report, "report.html")); code == exitRefused && (err != nil || !strings.Contains(string(b), "Not verified")) {
				t.Errorf("the page of a log that is not verified does not say so: %v", err)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(report, "report.html")); err != nil || !strings.Contains(string(b), "stolen") {
		t.Errorf("report.html does not tell of the revocation: %v", err)
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

func TestStrangersAreRefusedByTheOperatorAPI(t *testing.T) {
	s := startService(t)
	mustCLI(t, "keys", "init", filepath.Join(s.dir, "other"))
	stranger := filepath.Join(s.dir, "stranger")
	mustCLI(t, "keys", "issue", "operator", "eve", "--role", "operator", "--keys", filepath.Join(s.dir, "other"), "--out", stranger)

	code, _, talk := cli(t, "", "machine", "list", "--server", s.operators, "--identity", stranger)
	if code != exitRefused || !strings.Contains(talk, "is not of the CA in") {
		t.Errorf("a service of another CA: exit %d: %s", code, talk)
	}
	// Eve knows the service's CA, but it did not issue her certificate.
	ca, err := os.ReadFile(filepath.Join(s.identity, identityCA))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stranger, identityCA), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, talk = cli(t, "", "machine", "list", "--server", s.operators, "--identity", stranger)
	if code != exitRefused || !strings.Contains(talk, "hint: the service does not take this identity") {
		t.Errorf("an identity of another CA: exit %d: %s", code, talk)
	}

	// The node API is not on the operators' listener, even for an operator.
	pool, crt, err := readIdentity(s.identity)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{crt}}}}
	defer client.CloseIdleConnections()
	for _, path := range []string{api.PathChallenge, api.PathEvidence, api.PathConfirm} {
		resp, err := client.Post(s.operators+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s on the operator API: status %d, want 404", path, resp.StatusCode)
		}
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}
}

// newServer returns a service on a new store, without listeners, and the
// authority whose TPMs it trusts.
func newServer(t *testing.T) (*server.Server, *sqlstore.Store, *tpmtest.CA) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	mustCLI(t, "keys", "init", dir)
	ring, err := keyring.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := ring.DiskKEK()
	if err != nil {
		t.Fatal(err)
	}
	release, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.Create(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	ca := tpmtest.NewCA(t)
	policy := &attest.Policy{TPM: attest.TPMPolicy{
		Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware},
	}}
	s, err := server.New(server.Config{
		Store: store, Standing: storetest.Standing(t, store, release), KEK: kek, ReleaseKey: release, Log: slog.New(slog.DiscardHandler),
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return policy, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, store, ca
}

func TestInstallRecordsMayComeAgain(t *testing.T) {
	s, store, ca := newServer(t)
	rec, _ := newInstall(t, ca)
	body, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	sink := installs{s}
	for i := range 3 {
		if err := sink.Record(t.Context(), provisionapi.Record{Host: provisionapi.HostKey{MAC: rec.MAC}, Record: body}); err != nil {
			t.Fatalf("delivery %d: %v", i, err)
		}
	}
	n := 0
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindInstall {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the log tells of %d installs, want 1", n)
	}
	for _, bad := range []string{`{`, `{}`, `[]`, `{"ekPublic":"AAAA"}`} {
		if err := sink.Record(t.Context(), provisionapi.Record{Record: json.RawMessage(bad)}); !errors.Is(err, provisioner.ErrRecordRefused) {
			t.Errorf("record %s: %v, want a refusal that is final", bad, err)
		}
	}
}
