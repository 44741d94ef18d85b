package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// putEvidence stores n pieces of evidence of one machine, from so many days ago
// and a minute apart, and returns them.
func putEvidence(t *testing.T, store server.Store, n, days int) (all [][]byte) {
	t.Helper()
	log := make([]byte, 40_000)
	for i := range log {
		log[i] = byte(rand.Uint32())
	}
	m := &server.Machine{Machine: api.Machine{ID: attest.MachineIDOf(log), State: attest.StateEnrolled, NodeName: fmt.Sprintf("box-%x", log[:8])}}
	for i := range n {
		b, err := json.Marshal(&api.StoredEvidence{
			Version: api.Version, Received: time.Now().AddDate(0, 0, -days).Add(time.Duration(i) * time.Minute), Address: "10.0.0.1", Machine: m.ID,
			Evidence: attest.Evidence{EventLog: append(log[:len(log):len(log)], byte(i))},
		})
		if err != nil {
			t.Fatal(err)
		}
		m.LastEvidence = sha256.Sum256(b)
		if err := store.Commit(t.Context(), &server.Change{Machine: m, Evidence: b}); err != nil {
			t.Fatal(err)
		}
		m.Revision++
		all = append(all, b)
	}
	return all
}

func TestAServicePrunesItsStore(t *testing.T) {
	s := startService(t)
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	file := filepath.Join(s.dir, "s.db")
	store, err := openStore(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	old, young := putEvidence(t, store, 30, 500), putEvidence(t, store, 5, 300)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	ask := func(args ...string) []string { return append(args, "--server", s.operators, "--identity", s.identity) }
	if out := mustCLI(t, ask("store", "status")...); !strings.Contains(out, "evidence       35  ") || !strings.Contains(out, "none: evidence is kept for ever") || strings.Contains(out, "would prune") {
		t.Errorf("status is\n%s", out)
	}
	if out := mustCLI(t, ask("store", "prune", "--evidence-older-than", "400d", "--dry-run")...); !strings.Contains(out, "would prune 29 pieces") || !strings.Contains(out, "kept 1: the last") {
		t.Errorf("got\n%s", out)
	}
	out := mustCLI(t, ask("store", "prune", "--evidence-older-than", "400d", "--reason", "ticket 4711")...)
	if !strings.Contains(out, "pruned 29 pieces of evidence") || !strings.Contains(out, "kept 1: the last") {
		t.Errorf("got\n%s", out)
	}
	if out := mustCLI(t, ask("store", "status", "--evidence-older-than", "200d")...); !strings.Contains(out, "would prune 4 pieces") || !strings.Contains(out, "pruned         29 ") {
		t.Errorf("status is\n%s", out)
	}
	gone := digestOfBytes(old[0])
	for _, args := range [][]string{{"attest", "explain", gone.String()}, {"attest", "explain", gone.String(), "--write-log", filepath.Join(s.dir, "log")}} {
		code, _, talk := cli(t, "", ask(args...)...)
		if code != exitFailed || !strings.Contains(talk, "was pruned on "+time.Now().UTC().Format("2006-01-02")) || !strings.Contains(talk, "hint: the audit log has its verdict") || strings.Contains(talk, "altered") {
			t.Errorf("%v: exit %d, %s", args, code, talk)
		}
	}
	for _, bad := range []string{"1h", "400", "-5d", "99999999d", ""} {
		if code, _, talk := cli(t, "", ask("store", "prune", "--evidence-older-than", bad)...); code != exitUsage {
			t.Errorf("%q: exit %d, %s", bad, code, talk)
		}
	}
	config := filepath.Join(s.dir, "serve.yaml")
	// By a clock that is far ahead of what was noted last nothing goes.
	other, err := openStore(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	d, err := other.Document(t.Context(), "prune-clock", "last")
	if err != nil {
		t.Fatal(err)
	}
	d.Body = fmt.Appendf(nil, `{"time":%q}`, time.Now().Add(-30*24*time.Hour).UTC().Format(time.RFC3339))
	if err := errors.Join(other.Commit(t.Context(), &server.Change{Documents: []*server.Document{d}}), other.Close()); err != nil {
		t.Fatal(err)
	}
	prune := []string{"store", "prune", "--evidence-older-than", "200d"}
	for claim, args := range map[string][]string{"the service": ask(prune...), "its store": append(slices.Clone(prune), "--config", config)} {
		if code, out, talk := cli(t, "", args...); code != exitFailed || out != "" || !strings.Contains(talk, "nothing is pruned: the clock says") || !strings.Contains(talk, "--clock-is-right") {
			t.Errorf("%s: exit %d, %s%s", claim, code, out, talk)
		}
		if code, _, talk := cli(t, "", append(args, "--dry-run")...); code != exitOK {
			t.Errorf("%s, without doing it: exit %d, %s", claim, code, talk)
		}
	}
	mustCLI(t, ask("store", "prune", "--evidence-older-than", "4000d", "--clock-is-right", "--reason", "it was off")...)
	// Here it is as safe while the service runs.
	if out := mustCLI(t, "store", "prune", "--config", config, "--evidence-older-than", "200d"); !strings.Contains(out, "pruned 4 pieces") {
		t.Errorf("got\n%s", out)
	}
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	size := func() (n int64) {
		for _, name := range []string{file, file + "-wal"} {
			if st, err := os.Stat(name); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	was := size()
	mustCLI(t, "store", "prune", "--config", config, "--evidence-older-than", "200d", "--vacuum")
	if now := size(); now >= was-50_000 {
		t.Errorf("the files have %d bytes, had %d", now, was)
	}
	if out := mustCLI(t, "store", "status", "--config", config, "--json"); !strings.Contains(out, `"pruned":33`) || !strings.Contains(out, `"evidence":{"count":2,`) {
		t.Errorf("status is\n%s", out)
	}
	store, err = openStore(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, kept := range [][]byte{old[len(old)-1], young[len(young)-1]} {
		if b, err := store.Evidence(t.Context(), digestOfBytes(kept)); err != nil || string(b) != string(kept) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
}

func TestAPostgreSQLStoreIsPrunedByItsConfiguration(t *testing.T) {
	dsn := pgtest.Start(t).Database(t)
	dir, config, _ := backedUp(t, dsn)
	store, err := openStore(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	putEvidence(t, store, 10, 500)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if out := mustCLI(t, "store", "status", "--config", config, "--evidence-older-than", "400d"); !strings.Contains(out, "PostgreSQL ") || !strings.Contains(out, "would prune 9 pieces") {
		t.Errorf("status is\n%s", out)
	}
	if out := mustCLI(t, "store", "prune", "--config", config, "--evidence-older-than", "400d"); !strings.Contains(out, "pruned 9 pieces") {
		t.Errorf("got\n%s", out)
	}
	if code, _, talk := cli(t, "", "store", "prune", "--config", config, "--evidence-older-than", "400d", "--vacuum"); code != exitUsage || !strings.Contains(talk, "for SQLite") {
		t.Errorf("exit %d, %s", code, talk)
	}
	// A backup knows what was pruned.
	file := filepath.Join(dir, "backup")
	if out := mustCLI(t, "backup", "--config", config, "--out", file, "--json"); !strings.Contains(out, `"pruned":9`) {
		t.Errorf("got %s", out)
	}
}

func TestARetentionIsAnAge(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"400d": 400 * 24 * time.Hour, "1d": 24 * time.Hour, "36h": 36 * time.Hour, "24h0m1s": 24*time.Hour + time.Second,
		"0d": 0, "23h": 0, "d": 0, "-1d": 0, "1.5d": 0, "": 0, "400": 0, "99999d": 0, "24h0m0.5s": 0, "400d ": 0,
	} {
		a, err := parseAge(text)
		if time.Duration(a) != want || (err == nil) != (want > 0) {
			t.Errorf("%q is %v, %v; want %v", text, time.Duration(a), err, want)
		}
	}
	dir := t.TempDir()
	file := writeConfig(t, dir, "serve.yaml", "s.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]time.Duration{"400d": 400 * 24 * time.Hour, `"36h"`: 36 * time.Hour, "1h": 0, "5": 0} {
		if err := os.WriteFile(file, fmt.Appendf(b[:len(b):len(b)], "retention: {evidence: %s}\n", text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := readServeConfig(file)
		if (err == nil) != (want > 0) || err == nil && time.Duration(c.Retention.Evidence) != want || err != nil && (!strings.Contains(err.Error(), "want a number of days") || exitCode(err) != exitUsage) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
