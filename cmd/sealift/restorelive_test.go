package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/api"
)

// A service runs on a store that was restored with nothing after the backup; its
// operator accepts and settles it from the command line.
func TestARestoredServiceIsAcceptedAndSettled(t *testing.T) {
	s := startService(t)
	ask := func(args ...string) []string {
		return append(args, "--server", s.operators, "--identity", s.identity)
	}
	wantFailed := func(want string, args ...string) {
		t.Helper()
		if code, _, talk := cli(t, "", ask(args...)...); code != exitFailed || !strings.Contains(talk, want) {
			t.Errorf("%v: exit %d, want %d with %q: %s", args, code, exitFailed, want, talk)
		}
	}
	if out := mustCLI(t, ask("restore", "status")...); !strings.Contains(out, "never restored") {
		t.Errorf("got %s", out)
	}
	for _, verb := range []string{"accept", "settle"} {
		wantFailed("never restored", "restore", verb, "--reason", "r")
		if code, _, talk := cli(t, "", ask("restore", verb)...); code != exitUsage || !strings.Contains(talk, "--reason") {
			t.Errorf("%s without a reason: exit %d, %s", verb, code, talk)
		}
	}
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	config, file := filepath.Join(s.dir, "serve.yaml"), filepath.Join(s.dir, "backup")
	mustCLI(t, "backup", "--config", config, "--out", file)
	if err := os.Remove(filepath.Join(s.dir, "s.db")); err != nil {
		t.Fatal(err)
	}
	if out := mustCLI(t, "restore", file, "--config", config, "--reason", "the disk died"); !strings.Contains(out, "held: ") || !strings.Contains(out, "unsettled: ") {
		t.Errorf("got %s", out)
	}
	s.start(t)
	status := func() (st api.RestoreStatus) {
		t.Helper()
		if err := json.Unmarshal([]byte(mustCLI(t, ask("--json", "restore", "status")...)), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(); !st.Held || !st.Unsettled || st.Reason != "the disk died" {
		t.Errorf("got %+v", st)
	}
	wantFailed("hint: sealift restore accept --reason TEXT", "restore", "settle", "--reason", "r")
	if st := status(); !st.Held || !st.Unsettled {
		t.Errorf("settled before it was accepted: %+v", st)
	}
	if out := mustCLI(t, ask("restore", "accept", "--reason", "compared")...); !strings.Contains(out, ", accepted ") || !strings.Contains(out, "until 'sealift restore settle'") {
		t.Errorf("got %s", out)
	}
	for range 2 { // again is no error
		if out := mustCLI(t, ask("restore", "settle", "--reason", "power was cut")...); !strings.Contains(out, "settled ") || strings.Contains(out, "must start once more") {
			t.Errorf("got %s", out)
		}
	}
	// It is so for good.
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	s.start(t)
	if st := status(); st.Held || st.Unsettled || st.SettledBy == "" || st.SettledBy != st.AcceptedBy || st.Settled.Before(st.Accepted) {
		t.Errorf("got %+v", st)
	}
	log := mustCLI(t, ask("audit", "export")...)
	if n := strings.Count(log, `"kind":"store.accept"`); n != 2 || !strings.Contains(log, `"power was cut"`) || !strings.Contains(log, `"settled":true`) {
		t.Errorf("%d entries tell of it, want 2:\n%s", n, log)
	}
}

func TestRestoreStatusNamesWhatCouldNotBeRepeated(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	err := printRestore(&env{out: &out}, &api.RestoreStatus{
		Held: true, Unsettled: true, Restored: at, Taken: at, By: "root", Reason: "disk", NotReplayed: map[string]int64{"policy": 2},
		Missing: []api.RestoreMissing{{What: "policy fleet version 7, enabled after the backup", Mend: "sealift policy enable FILE --reason TEXT"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"2 of \"policy\" could not be repeated\n",
		"missing: policy fleet version 7, enabled after the backup\n  mend: sealift policy enable FILE --reason TEXT",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q in\n%s", want, out.String())
		}
	}
}
