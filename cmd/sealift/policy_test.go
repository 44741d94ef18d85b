package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/policy"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

const goodPolicy = `policy: 1
name: fleet
version: %d
images: [{name: tiny, minimum: "1"}]
secureBoot: {dbx: {any: true}}
tpm: {allowed: [hardware]}
`

func writePolicy(t *testing.T, file string, version int, more ...string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(fmt.Sprintf(goodPolicy, version)+strings.Join(more, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPoliciesAreSignedAsManifestsAre(t *testing.T) {
	dir := t.TempDir()
	keys, file := filepath.Join(dir, "keys"), filepath.Join(dir, "p.yaml")
	mustCLI(t, "keys", "init", keys)
	mustCLI(t, "keys", "init", filepath.Join(dir, "other"))
	ring, err := keyring.Open(keys)
	if err != nil {
		t.Fatal(err)
	}
	writePolicy(t, file, 1)
	c := &policyConfig{File: file}
	if _, _, err := loadPolicy(c, ring); exitCode(err) != exitRefused || !strings.Contains(err.Error(), "is not signed") || !strings.Contains(hintOf(err), "sealift policy sign") {
		t.Errorf("without a signature: %v, hint %q", err, hintOf(err))
	}
	if d, sig, err := loadPolicy(&policyConfig{File: file, Unsigned: true}, ring); err != nil || sig != nil || d.Version != 1 {
		t.Errorf("without a signature, as configured: %v, %q", err, sig)
	}
	if out := mustCLI(t, "policy", "sign", file, "--keys", keys); out != file+sign.BundleSuffix+"\n" {
		t.Errorf("policy sign: %q", out)
	}
	d, sig, err := loadPolicy(c, ring)
	if err != nil || len(sig) == 0 || d.String() != "fleet version 1" {
		t.Errorf("signed: %v, %q", err, sig)
	}
	if cosign, err := exec.LookPath("openssl"); err == nil {
		// The signature in the bundle is plain ECDSA over the file.
		b, err := os.ReadFile(file + sign.BundleSuffix)
		if err != nil {
			t.Fatal(err)
		}
		var bundle struct {
			MessageSignature struct {
				Signature []byte `json:"signature"`
			} `json:"messageSignature"`
		}
		if err := json.Unmarshal(b, &bundle); err != nil {
			t.Fatal(err)
		}
		sig := filepath.Join(dir, "sig")
		if err := os.WriteFile(sig, bundle.MessageSignature.Signature, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(cosign, "dgst", "-sha256", "-verify", filepath.Join(keys, "image.pub"), "-signature", sig, file).CombinedOutput(); err != nil {
			t.Errorf("openssl: %v: %s", err, out)
		}
	} else if os.Getenv("REQUIRE_TOOLS") != "" {
		t.Error("openssl is not there")
	}
	mustCLI(t, "policy", "sign", file, "--keys", filepath.Join(dir, "other"))
	for _, c := range []*policyConfig{c, {File: file, Unsigned: true}} {
		if _, _, err := loadPolicy(c, ring); exitCode(err) != exitRefused || !strings.Contains(err.Error(), "not by the given key") {
			t.Errorf("signed by another key, unsigned %t: %v", c.Unsigned, err)
		}
	}
	mustCLI(t, "policy", "sign", file, "--keys", keys)
	writePolicy(t, file, 2)
	for _, c := range []*policyConfig{c, {File: file, Unsigned: true}} {
		if _, _, err := loadPolicy(c, ring); exitCode(err) != exitRefused {
			t.Errorf("altered, unsigned %t: %v", c.Unsigned, err)
		}
	}
	writePolicy(t, file, 0)
	if code, _, talk := cli(t, "", "policy", "sign", file, "--keys", keys); code != exitUsage || !strings.Contains(talk, "version: 0 is not between") {
		t.Errorf("a policy with a fault was signed: exit %d: %s", code, talk)
	}
}

func TestAServiceDoesNotGoBackToAnOlderPolicy(t *testing.T) {
	store, err := sqlstore.Create(t.Context(), filepath.Join(t.TempDir(), "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	witness := newWitness(t, store, newReleaseKey(t), "")
	document := func(name string, version int, more string) *policy.Document {
		text := strings.Replace(fmt.Sprintf(goodPolicy, version), "fleet", name, 1) + more
		d, err := policy.Parse("p.yaml", []byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	back := func(to int) *policyConfig {
		return &policyConfig{File: "p.yaml", Rollback: &policyRollback{To: to, Reason: "ticket 4711"}}
	}
	plain := &policyConfig{File: "p.yaml"}
	for _, c := range []struct {
		claim   string
		c       *policyConfig
		d       *policy.Document
		refused string
		entry   string // of the audit log; empty: none
	}{
		{"a service without a policy needs none", nil, nil, "", ""},
		{"the first", plain, document("fleet", 2, ""), "", "fleet 2 from  0 rollback false"},
		{"the same again", plain, document("fleet", 2, ""), "", ""},
		{"a newer one", plain, document("fleet", 4, ""), "", "fleet 4 from fleet 2 rollback false"},
		{"an older one", plain, document("fleet", 2, ""), "is older than version 4", ""},
		{"one in between that never was", plain, document("fleet", 3, ""), "is older than version 4", ""},
		{"the same version with another content", plain, document("fleet", 4, "notAfter: \"2030-01-01\"\n"), "was enabled with another content", ""},
		{"none", nil, nil, "the configuration names none", ""},
		{"a rollback to another version than the file's", back(3), document("fleet", 2, ""), "is older than version 4", ""},
		{"a rollback", back(2), document("fleet", 2, ""), "", "fleet 2 from fleet 4 rollback true"},
		{"the next start", back(2), document("fleet", 2, ""), "", ""},
		{"the next start without the rollback in the configuration", plain, document("fleet", 2, ""), "", ""},
		{"forward again", plain, document("fleet", 4, ""), "", "fleet 4 from fleet 2 rollback false"},
		{"a rollback to a version with another content than it had", back(2), document("fleet", 2, "notAfter: \"2030-01-01\"\n"), "was enabled with another content", ""},
		{"another name", plain, document("other", 9, ""), "goes by policy fleet version 4", ""},
		{"another name as configured", back(9), document("other", 9, ""), "", "other 9 from fleet 4 rollback true"},
		{"none as configured", &policyConfig{Off: "moved"}, nil, "", " 0 from other 9 rollback false"},
		{"none again", nil, nil, "", ""},
		{"an old one after none", plain, document("fleet", 2, ""), "is older than version 4", ""},
		{"the last one after none", plain, document("fleet", 4, ""), "", "fleet 4 from  0 rollback false"},
	} {
		n, before := len(policyEntries(t, store)), len(alarmsIn(t, store))
		err := enablePolicy(t.Context(), witness, c.c, c.d, nil, nil, nil, time.Now(), slog.New(slog.DiscardHandler))
		if (err == nil) != (c.refused == "") || err != nil && (!strings.Contains(err.Error(), c.refused) || exitCode(err) != exitRefused || hintOf(err) == "") {
			t.Errorf("%s: %v, want %q", c.claim, err, c.refused)
		}
		var alarms []audit.Alarm
		for _, p := range policyEntries(t, store)[n:] {
			if p.Rollback || p.Name == "" {
				to, from := policyHead{Name: p.Name, Version: p.Version}, policyHead{Name: p.FromName, Version: p.FromVersion}
				alarms = append(alarms, audit.Alarm{
					Name: audit.AlarmPolicyBack, Peer: byConfiguration, What: fmt.Sprintf("the service goes by policy %s after %s: %s", to, from, p.Reason),
				})
			}
		}
		if got := alarmsIn(t, store)[before:]; !slices.Equal(got, alarms) {
			t.Errorf("%s: alarms %+v, want %+v", c.claim, got, alarms)
		}
		got := ""
		for _, p := range policyEntries(t, store)[n:] {
			got += fmt.Sprintf("%s %d from %s %d rollback %t", p.Name, p.Version, p.FromName, p.FromVersion, p.Rollback)
			if p.Name != "" && p.Digest != c.d.Digest {
				t.Errorf("%s: digest %s", c.claim, p.Digest)
			}
			if (p.Rollback || p.Name == "") && p.Reason == "" {
				t.Errorf("%s: no reason", c.claim)
			}
		}
		if got != c.entry {
			t.Errorf("%s: the audit log says %q, want %q", c.claim, got, c.entry)
		}
	}
	all, err := store.Documents(t.Context(), policyVersionKind, "", 0)
	if err != nil || len(all) != 3 {
		t.Errorf("%d versions are kept, want 3 (fleet 2 and 4, other 9): %v", len(all), err)
	}
	for _, d := range all {
		var v policyVersion
		if err := json.Unmarshal(d.Body, &v); err != nil || sha256.Sum256(v.Text) != v.Digest || d.Name != fmt.Sprintf("%s@%010d", v.Name, v.Version) {
			t.Errorf("%s: %+v, %v", d.Name, v.policyHead, err)
		}
	}
}

func policyEntries(t *testing.T, store server.Store) []audit.Policy {
	t.Helper()
	var out []audit.Policy
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindPolicy {
			var p audit.Policy
			if err := json.Unmarshal(e.Data, &p); err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
	}
	return out
}

// alarmsIn returns the alarms in a store's audit log.
func alarmsIn(t *testing.T, store server.Store) []audit.Alarm {
	t.Helper()
	var out []audit.Alarm
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindAlarm {
			var a audit.Alarm
			if err := json.Unmarshal(e.Data, &a); err != nil {
				t.Fatal(err)
			}
			out = append(out, a)
		}
	}
	return out
}

func TestLintFailsAsBadAsItIsTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.yaml")
	writePolicy(t, file, 1)
	for _, c := range []struct {
		args []string
		code int
	}{
		{nil, exitOK}, {[]string{"--fail-on", "warning"}, exitRefused}, {[]string{"--fail-on", "notice"}, exitRefused},
		{[]string{"--fail-on", "never"}, exitOK}, {[]string{"--fail-on", "x"}, exitUsage},
	} {
		code, out, talk := cli(t, "", append([]string{"policy", "lint", file}, c.args...)...)
		if code != c.code || code != exitUsage && !strings.Contains(out, "warning  dbx.any  secureBoot.dbx: any dbx is allowed") {
			t.Errorf("%q: exit %d, want %d: %s%s", c.args, code, c.code, out, talk)
		}
	}
	// A server in the environment is asked only where it is known who asks.
	t.Setenv("SEALIFT_SERVER", "https://127.0.0.1:1")
	if code, _, talk := cli(t, "", "policy", "lint", file); code != exitOK {
		t.Errorf("with a server in the environment alone: exit %d: %s", code, talk)
	}
	if code, _, talk := cli(t, "", "policy", "lint", file, "--server", "https://127.0.0.1:1"); code != exitUsage || !strings.Contains(talk, "has to know who asks") {
		t.Errorf("with --server alone: exit %d: %s", code, talk)
	}
	_, out, _ := cli(t, "", "policy", "lint", file, "--json")
	for line := range strings.Lines(out) {
		var i policy.Issue
		if err := json.Unmarshal([]byte(line), &i); err != nil || i.Code == "" || i.Remedy == "" {
			t.Errorf("%v: %s", err, line)
		}
	}
	writePolicy(t, file, 1, "imgaes: []\n")
	if code, _, talk := cli(t, "", "policy", "lint", file); code != exitUsage || !strings.Contains(talk, "p.yaml:7:1: imgaes: unknown field; did you mean images?") {
		t.Errorf("exit %d: %s", code, talk)
	}
}

// refusedBox has a machine that is enrolled ask a service once, and be refused:
// it booted another image than the service has.
func refusedBox(t *testing.T, s *service) attest.MachineID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	box, err := papertpm.New(key)
	if err != nil {
		t.Fatal(err)
	}
	box.EKCertificates = [][]byte{s.tpmCA.Certify(t, key.Public()).Raw, s.tpmCA.Issuer.Raw}
	boot, err := papertpm.GoodBoot().OnDisk("6d0f0b6e-3f0c-4a57-9f6d-8d6b6f3f2a12", false)
	if err != nil {
		t.Fatal(err)
	}
	id, err := box.MachineID()
	if err != nil {
		t.Fatal(err)
	}
	ek, ak := tpm2.Marshal(box.EKPublic), tpm2.Marshal(box.AKPublic)
	o := operatorOptions{server: s.operators, identity: s.identity}
	if err := o.do(func(c *operator.Client) error {
		_, err := c.Install(t.Context(), &api.InstallRecord{EKPublic: ek, EKCertificates: box.EKCertificates, DiskGUID: boot.Disk.GUID, Serial: "S1", MAC: "52:54:00:00:00:02", Image: "tiny 1"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	pool, _, err := readIdentity(s.identity)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(filepath.Join(s.dir, "some"))
	if err != nil {
		t.Fatal(err)
	}
	release, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	c := &client.Client{URL: s.nodes, CA: pool, ReleaseKey: &release.PublicKey}
	session, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	ch, err := session.Challenge(t.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: box.EKCertificates, AKPublic: ak})
	if err != nil {
		t.Fatal(err)
	}
	boot.Measure(box)
	ev, err := box.Evidence(boot, attest.PurposeUnlock, ch.Nonce, session.Exporter())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := box.Activate(ch.Credential, ch.Secret)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = session.Evidence(t.Context(), id, &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: *ev, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak)})
	if !errors.As(err, new(*client.RefusedError)) {
		t.Fatalf("the machine was not refused: %v", err)
	}
	return id
}

func TestARefusalIsExplainedOnTheCommandLine(t *testing.T) {
	s := startService(t)
	id := refusedBox(t, s)
	ask := func(args ...string) []string {
		return append(args, "--server", s.operators, "--identity", s.identity)
	}
	out := mustCLI(t, ask("attest", "explain", id.String())...)
	for _, want := range []string{"refused", "image.unknown: PCR 4", "[digest]", "command: sealift policy enable FILE --images DIR --reason TEXT", "no accepted evidence of this machine", "fact  tpm.class  hardware  [recorded]"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain does not say %q:\n%s", want, out)
		}
	}
	var x explained
	if err := json.Unmarshal([]byte(mustCLI(t, ask("attest", "explain", id.String(), "--json")...)), &x); err != nil || x.Machine != id || len(x.Refusals) == 0 || len(x.Facts) == 0 {
		t.Fatalf("%+v, %v", x, err)
	}
	if again := mustCLI(t, ask("attest", "explain", x.Evidence.String())...); again != out {
		t.Errorf("by digest it is another explanation:\n%s", again)
	}
	var m struct {
		LastEvidence manifest.SHA256     `json:"lastEvidence"`
		Refusal      *attest.Explanation `json:"refusal"`
	}
	if err := json.Unmarshal([]byte(mustCLI(t, ask("machine", "show", id.String(), "--json")...)), &m); err != nil || m.Refusal == nil || len(m.Refusal.Refusals) != len(x.Refusals) || m.LastEvidence != x.Evidence {
		t.Errorf("machine show: %+v, %v", m, err)
	}
	mustCLI(t, ask("machine", "quarantine", id.String(), "--reason", "looks odd")...)
	for _, want := range []string{"since then: the machine is quarantined: looks odd [recorded]", "command: sealift machine reinstate " + id.String() + " --reason TEXT"} {
		if later := mustCLI(t, ask("attest", "explain", id.String())...); !strings.HasPrefix(later, out) || !strings.Contains(later[len(out):], want) {
			t.Errorf("of a machine that was quarantined since, explain does not say %q:\n%s", want, later)
		}
	}
	mustCLI(t, ask("machine", "reinstate", id.String(), "--reason", "looked at")...)
	log := filepath.Join(s.dir, "log.bin")
	mustCLI(t, ask("attest", "explain", id.String(), "--write-log", log)...)
	if out := mustCLI(t, "attest", "log", log); !strings.Contains(out, "crypto-agile event log") {
		t.Errorf("attest log: %s", out)
	}

	// The same from a file, with the service's configuration.
	saved := filepath.Join(s.dir, "saved")
	if err := os.Mkdir(saved, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(saved, "e.json")
	o := operatorOptions{server: s.operators, identity: s.identity}
	if err := o.do(func(c *operator.Client) error {
		b, err := c.Evidence(t.Context(), x.Evidence)
		return errors.Join(err, os.WriteFile(file, b, 0o600))
	}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.dir, "serve.yaml")
	if offline := mustCLI(t, "attest", "explain", file, "--config", config); offline != out {
		t.Errorf("from a file it is another explanation:\n%s\nwant\n%s", offline, out)
	}
	if code, _, talk := cli(t, "", "attest", "explain", file); code != exitUsage || !strings.Contains(talk, "--config serve.yaml") {
		t.Errorf("without a configuration: exit %d: %s", code, talk)
	}
	if code, _, talk := cli(t, "", ask("attest", "explain", strings.Repeat("ab", 32))...); code != exitFailed || !strings.Contains(talk, "there is no evidence") {
		t.Errorf("an unknown id: exit %d: %s", code, talk)
	}

	if code, _, talk := cli(t, "", "attest", "explain", log, "--config", config); code != exitFailed || !strings.Contains(talk, "sealift attest log "+log) {
		t.Errorf("an event log: exit %d: %s", code, talk)
	}

	// A policy is tried with the service and without it, to the same end.
	p := filepath.Join(s.dir, "p.yaml")
	writePolicy(t, p, 1, "firmware: {models: [{vendor: Paper, minimum: [{version: \"2\"}]}]}\n")
	for _, args := range [][]string{ask("policy", "whatif", p, "--all"), {"policy", "whatif", p, "--all", "--config", config, "--evidence", saved}} {
		out := mustCLI(t, args...)
		if !strings.Contains(out, "still refused  "+id.String()) || !strings.Contains(out, "policy fleet version 1, 1 machines: 1 stay refused") {
			t.Errorf("%q:\n%s", args, out)
		}
	}
	if out := mustCLI(t, ask("attest", "explain", id.String(), "--policy", p)...); !strings.Contains(out, "image.unknown") {
		t.Errorf("under another policy:\n%s", out)
	}
	if code, _, talk := cli(t, "", ask("policy", "show")...); code != exitFailed || !strings.Contains(talk, "goes by no policy file") {
		t.Errorf("policy show: exit %d: %s", code, talk)
	}
	if code, _, talk := cli(t, "", "policy", "whatif", p, "--config", config, "--evidence", saved+"x"); code != exitFailed || !strings.Contains(talk, "no such file or directory") {
		t.Errorf("a directory that is not there: exit %d: %s", code, talk)
	}
	if code, _, talk := cli(t, "", "policy", "whatif", p, "--config", config); code != exitUsage || !strings.Contains(talk, "go together") {
		t.Errorf("half of the offline form: exit %d: %s", code, talk)
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("serve ended with %d", code)
	}

}

// serveUntil runs serve until it logs a message, and then ends it.
func serveUntil(t *testing.T, config, message string, also func(line map[string]any)) (code int, talk string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	logs, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := run(ctx, env{in: strings.NewReader(""), out: io.Discard, err: w}, []string{"serve", "--json", "--config", config})
		w.Close()
		ended <- code
	}()
	lines := make(chan map[string]any)
	go func() {
		defer close(lines)
		for d := json.NewDecoder(logs); ; {
			var line map[string]any
			if err := d.Decode(&line); err != nil {
				return
			}
			if line["event"] == "error" {
				talk = fmt.Sprint(line["text"], " ", line["hint"])
			}
			if line["msg"] == message {
				lines <- line
			}
		}
	}()
	for line := range lines {
		also(line) // while the log is read on
		cancel()
	}
	return <-ended, talk
}

func TestServeGoesByASignedPolicyOnly(t *testing.T) {
	s := startService(t)
	if code := s.stop(); code != exitOK {
		t.Fatalf("serve ended with %d", code)
	}
	at := func(name string) string { return filepath.Join(s.dir, name) }
	config, err := os.ReadFile(at("serve.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("policed.yaml"), append(config, "policy: {file: p.yaml}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(at("some/image.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("keys/image.pub"), pub, 0o600); err != nil {
		t.Fatal(err)
	}
	never := func(map[string]any) { t.Error("it serves") }
	writePolicy(t, at("p.yaml"), 7)
	if code, talk := serveUntil(t, at("policed.yaml"), "serving", never); code != exitRefused || !strings.Contains(talk, "is not signed") {
		t.Errorf("an unsigned policy: exit %d: %s", code, talk)
	}
	mustCLI(t, "policy", "sign", at("p.yaml"), "--keys", at("keys"))
	shown := ""
	if code, talk := serveUntil(t, at("policed.yaml"), "serving", func(line map[string]any) {
		shown = mustCLI(t, "policy", "show", "--server", fmt.Sprintf("https://%s", line["operators"]), "--identity", s.identity)
	}); code != exitOK {
		t.Errorf("a signed policy: exit %d: %s", code, talk)
	}
	if want := fmt.Sprintf(goodPolicy, 7); shown != want {
		t.Errorf("policy show: %q, want %q", shown, want)
	}
	writePolicy(t, at("p.yaml"), 8)
	if code, talk := serveUntil(t, at("policed.yaml"), "serving", never); code != exitRefused || !strings.Contains(talk, "altered after it was signed") {
		t.Errorf("an altered policy: exit %d: %s", code, talk)
	}
	// A running service gets another, and shows it.
	writePolicy(t, at("p.yaml"), 7)
	mustCLI(t, "policy", "sign", at("p.yaml"), "--keys", at("keys"))
	if err := os.WriteFile(at("monitored.yaml"), append(config, "policy: {file: p.yaml}\nmonitor: {listen: \"127.0.0.1:0\"}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, talk := serveUntil(t, at("monitored.yaml"), "serving", func(line map[string]any) {
		ask := []string{"--server", fmt.Sprintf("https://%s", line["operators"]), "--identity", s.identity}
		writePolicy(t, at("q.yaml"), 9)
		mustCLI(t, "policy", "sign", at("q.yaml"), "--keys", at("keys"))
		mustCLI(t, append([]string{"policy", "enable", at("q.yaml"), "--reason", "x"}, ask...)...)
		if out := mustCLI(t, append([]string{"policy", "status"}, ask...)...); !strings.Contains(out, "policy: fleet version 9,") || !strings.Contains(out, fmt.Sprint(line["nodes"])) {
			t.Errorf("policy status: %s", out)
		}
		for path, want := range map[string]string{"/metrics": `,name="fleet",version="9"} 1`, "/readyz": `"policy":"ok"`} {
			resp, err := http.Get(fmt.Sprintf("http://%s%s", line["monitor"], path))
			if err != nil {
				t.Error(err)
				continue
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !strings.Contains(string(b), want) || strings.Contains(string(b), `,version="7"}`) {
				t.Errorf("%s does not say %s, %v:\n%s", path, want, err, b)
			}
		}
	}); code != exitOK {
		t.Errorf("with another policy: exit %d: %s", code, talk)
	}
	// An older file, and none, take nothing back: what is enabled counts.
	writePolicy(t, at("p.yaml"), 6)
	mustCLI(t, "policy", "sign", at("p.yaml"), "--keys", at("keys"))
	for _, file := range []string{"policed.yaml", "serve.yaml"} {
		shown = ""
		if code, talk := serveUntil(t, at(file), "serving", func(line map[string]any) {
			shown = mustCLI(t, "policy", "show", "--server", fmt.Sprintf("https://%s", line["operators"]), "--identity", s.identity)
		}); code != exitOK || shown != fmt.Sprintf(goodPolicy, 9) {
			t.Errorf("%s: exit %d: %s; policy show: %q", file, code, talk, shown)
		}
	}
}
