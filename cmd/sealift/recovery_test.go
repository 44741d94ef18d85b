package main

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/recovery"
)

// recoveryAPI is the service as far as recoveries go; attest/server has the
// tests of the real one.
type recoveryAPI struct {
	mu    sync.Mutex
	now   api.Recovery
	asked int // times that it was looked at
	code  attest.Secret
}

func (a *recoveryAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := func(v any) { json.NewEncoder(w).Encode(v) }
	switch {
	case r.Method == "GET":
		if a.asked++; a.asked > 1 {
			a.now.Approvals = []api.RecoveryApproval{{By: "ana", Reason: "a"}, {By: "bo\x1bb", Reason: "b"}}
		}
		answer(a.now)
	case strings.HasSuffix(r.URL.Path, api.PathRecoveryCode):
		a.now.Given = time.Now()
		answer(api.RecoveryCode{Code: a.code, Recovery: a.now})
	default:
		answer(a.now)
	}
}

func TestARecoveryKeyIsPrintedAsItIsTyped(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mustCLI(t, "keys", "init", at("keys"))
	mustCLI(t, "keys", "issue", "operator", "ana", "--role", "operator,approver", "--keys", at("keys"), "--out", at("ana"))
	const disk = "6d0f0b6e-3f0c-4a57-9f6d-8d6b6f3f2a11"
	id := attest.MachineIDOf([]byte("box"))
	boot, err := recovery.NewBootKey(id, disk)
	if err != nil {
		t.Fatal(err)
	}
	request := strings.Join(boot.Request(), " ")
	key, err := recovery.ParseRequest(request, id, disk)
	if err != nil {
		t.Fatal(err)
	}
	expires := time.Now().Add(time.Hour)
	fake := &recoveryAPI{now: api.Recovery{ID: "5e1f", Machine: id, NodeName: api.NodeName(id, 10), BootKey: key, DiskGUID: disk, By: "ana", Reason: "line down", Opened: time.Now(), Expires: expires}}
	if fake.code, err = recovery.Seal(key, id, disk, &recovery.Secrets{DiskKey: make(attest.Secret, 32), NameDigits: 10}, expires); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewTLSServer(fake)
	defer srv.Close()
	if err := os.WriteFile(at("ana/"+identityCA), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) []string { return append(args, "--server", srv.URL, "--identity", at("ana")) }

	out := mustCLI(t, ask("machine", "recovery-key", id.String(), "--request", request, "--reason", "line down")...)
	for _, want := range append(boot.Request(), "recovery-approve "+id.String()+" 5e1f", "needs 2 more", "by ana: line down") {
		if !strings.Contains(out, want) {
			t.Errorf("opened: %q is not in %s", want, out)
		}
	}
	code, out, talk := cli(t, strings.Join(boot.Request(), "\n"), ask("machine", "recovery-key", id.String(), "--request", "-", "--reason", "line down", "--wait")...)
	if code != exitOK || !strings.Contains(talk, "0 of 2 approvals") || !strings.Contains(talk, "type these lines at box-") {
		t.Fatalf("exit %d: %s", code, talk)
	}
	reader := boot.Reader()
	var got *recovery.Secrets
	for l := range strings.Lines(out) {
		if _, got, err = reader.Line(l, time.Now()); err != nil {
			t.Fatalf("line %q: %v", l, err)
		}
	}
	if got == nil || got.NameDigits != 10 {
		t.Errorf("what is printed does not open: %s", out)
	}
	if out := mustCLI(t, ask("machine", "recovery-show", id.String())...); !strings.Contains(out, "given ") || strings.Contains(out, "\x1b") {
		t.Errorf("shown: %q", out)
	}
	fake.now.Given = time.Time{}
	if out := mustCLI(t, ask("machine", "recovery-key", id.String(), "--request", request, "--reason", "x", "--json")...); !strings.Contains(out, `"lines":["`) || strings.Count(out, "\n") != 1 {
		t.Errorf("json: %s", out)
	}
	if out := mustCLI(t, ask("machine", "recovery-approve", id.String(), "5e1f", "--reason", "x")...); !strings.Contains(out, "APPROVED") {
		t.Errorf("approve: %s", out)
	}
}

func TestRecoveriesAreRefusedByTheService(t *testing.T) {
	s := startService(t)
	rec, id := newInstall(t, s.tpmCA)
	o := operatorOptions{server: s.operators, identity: s.identity}
	client, err := o.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Install(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) []string { return append(args, "--server", s.operators, "--identity", s.identity) }
	for claim, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a machine that has no key yet": {ask("machine", "recovery-key", id.String(), "--request", "x", "--reason", "x"), exitFailed, "nothing to recover"},
		"no recovery to show":           {ask("machine", "recovery-show", id.String()), exitFailed, "has no recovery"},
		"no recovery to approve":        {ask("machine", "recovery-approve", id.String(), "x", "--reason", "x"), exitFailed, "nothing to recover"},
		"no reason":                     {ask("machine", "recovery-approve", id.String(), "x"), exitUsage, "--reason"},
		"an endless request":            {ask("machine", "recovery-key", id.String(), "--request", strings.Repeat("0", 2000), "--reason", "x"), exitUsage, "more than 1024 bytes"},
	} {
		if code, out, talk := cli(t, "", c.args...); code != c.code || out != "" || !strings.Contains(talk, c.want) {
			t.Errorf("%s: exit %d, want %d: %s%s", claim, code, c.code, out, talk)
		}
	}
}
