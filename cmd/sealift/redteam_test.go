package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/cmd/sealift/internal/redteam"
)

func TestRedteamAttacksAServiceByItsURL(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	target, stop, err := redteam.Self(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	mustCLI(t, "keys", "issue", "operator", "ana", "--role", "operator,auditor", "--keys", at("keys"), "--out", at("ana"))
	boot := papertpm.GoodBoot()
	stored, err := json.Marshal(&api.StoredEvidence{Version: api.Version, Evidence: attest.Evidence{EventLog: boot.Log(), SMBIOS: boot.SMBIOS, Disk: boot.Disk}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("good.json"), stored, 0o600); err != nil {
		t.Fatal(err)
	}
	lab := []string{
		"attest", "redteam", target.Client.URL, "--release-key", at("keys/release.pub"), "--evidence", at("good.json"),
		"--server", target.Operators, "--identity", at("ana"), "--ek-ca", at("ek-ca"),
	}
	production := []string{"attest", "redteam", target.Client.URL, "--release-key", at("keys/release.pub"), "--service-ca", at("keys/service-ca.crt"), "--evidence", at("good.json")}

	// The policy of this service takes software TPMs, which is the one thing
	// that cannot be tried then.
	code, out, talk := cli(t, "", lab...)
	if code != exitRefused || !strings.Contains(talk, "89 of 90 attacks refused") || !strings.Contains(talk, "--partial") || strings.Contains(talk, "give --ek-ca") || !strings.Contains(out, "not run   software-tpm") {
		t.Errorf("exit %d\n%s%s", code, out, talk)
	}
	if code, out, talk = cli(t, "", append(lab, "--partial")...); code != exitOK {
		t.Errorf("exit %d\n%s%s", code, out, talk)
	}
	// Its machines are gone afterwards, and one of them can be imitated.
	accepted := ""
	for line := range strings.Lines(mustCLI(t, "machine", "list", "--json", "--server", target.Operators, "--identity", at("ana"))) {
		var m api.Machine
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m.State != attest.StateRevoked && m.State != attest.StatePending {
			t.Errorf("machine %s was left %s", m.ID, m.State)
		}
		if m.LastAllowed {
			accepted = m.ID.String()
		}
	}
	code, out, talk = cli(t, "", "attest", "redteam", target.Client.URL, "--release-key", at("keys/release.pub"), "--machine", accepted,
		"--server", target.Operators, "--identity", at("ana"), "--partial", "--json")
	if code != exitOK || !strings.Contains(out, `"attack":"quote-replayed","verdict":"refused"`) {
		t.Errorf("exit %d\n%s%s", code, out, talk)
	}
	if code, out, talk = cli(t, "", append(production, "--only", "relayed,old-image")...); code != exitOK || strings.Count(out, "\n") != 3 {
		t.Errorf("exit %d\n%s%s", code, out, talk)
	}

	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"an attack that is not there":       {append(production, "--only", "smile"), exitUsage, `there is no attack "smile"`},
		"nothing to attack":                 {[]string{"attest", "redteam"}, exitUsage, "either the URL of a node API or --self"},
		"no evidence":                       {production[:7], exitUsage, "either --evidence or --machine"},
		"an authority that is not there":    {append(lab, "--ek-ca", at("none")), exitFailed, "--new-ek-ca"},
		"a certificate as release key":      {append(production, "--release-key", at("keys/service-ca.crt")), exitUsage, "is no PEM public key"},
		"a service of another CA":           {append(production, "--service-ca", at("keys/db.crt")), exitFailed, "certificate signed by unknown authority"},
		"evidence that is none":             {append(production, "--evidence", at("keys/release.pub")), exitUsage, "none that a service stored"},
		"a machine that was never accepted": {append(lab[:5:5], "--server", target.Operators, "--identity", at("ana"), "--machine", strings.Repeat("ab", 32)), exitFailed, "was never accepted"},
	} {
		if code, _, talk := cli(t, "", tt.args...); code != tt.code || !strings.Contains(talk, tt.want) {
			t.Errorf("%s: exit %d, want %d with %q: %s", name, code, tt.code, tt.want, talk)
		}
	}
}

func TestRedteamMakesAnAuthorityOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	if out := mustCLI(t, "attest", "redteam", "--new-ek-ca", dir); !strings.Contains(out, "class: software") {
		t.Errorf("got %s", out)
	}
	before, err := os.ReadFile(filepath.Join(dir, "ek-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if code, _, talk := cli(t, "", "attest", "redteam", "--new-ek-ca", dir); code != exitFailed {
		t.Errorf("exit %d: %s", code, talk)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "ek-ca.key")); err != nil || string(after) != string(before) {
		t.Error("the authority's key was written over")
	}
	if _, err := redteam.OpenCA(dir); err != nil {
		t.Error(err)
	}
	// A certificate of one authority and the key of another are none.
	other := filepath.Join(t.TempDir(), "other")
	mustCLI(t, "attest", "redteam", "--new-ek-ca", other)
	if err := os.Rename(filepath.Join(other, "ek-ca.crt"), filepath.Join(dir, "ek-ca.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := redteam.OpenCA(dir); err == nil {
		t.Error("a key was taken for another certificate's")
	}
}
