package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
)

func newReleaseKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newWitness returns one as a service that starts has it.
func newWitness(t *testing.T, store server.Store, key *ecdsa.PrivateKey, file string) *logWitness {
	t.Helper()
	w, err := openWitness(t.Context(), store, key, file, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// signEnabled enables what the service would not, with its key.
func signEnabled(t *testing.T, store server.Store, ring *keyring.Keyring, head policyHead) {
	t.Helper()
	key, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	w := newWitness(t, store, key, "")
	proven, err := provePolicy(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	entry := audit.Policy{Name: head.Name, Version: head.Version, Digest: head.Digest, By: "somebody"}
	pointer, err := w.signPointer(proven, head, nil, &entry)
	if err == nil {
		err = commitPolicy(t.Context(), store, entry, time.Now(), proven.document, pointer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// verifyAsAuditor follows docs/audit.md: openssl and Python say that an export is what
// the service wrote, and not so of one that was altered.
func verifyAsAuditor(t *testing.T, export, key string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, ok := strings.Cut(string(text), "\n```"+language+"\n")
		code, _, end := strings.Cut(rest, "\n```\n")
		if !ok || !end {
			t.Fatalf("docs/audit.md has no block of %s", language)
		}
		return code
	}
	tpmtest.Tool(t, "openssl")
	shell, python := tpmtest.Tool(t, "sh"), tpmtest.Tool(t, "python3")
	try := func(change func([]byte) []byte) (out string, signature, chain error) {
		dir := t.TempDir()
		for name, from := range map[string]string{"audit.jsonl": export, "release.pub": key} {
			b, err := os.ReadFile(from)
			if err == nil {
				if name == "audit.jsonl" {
					b = change(b)
				}
				err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		run := func(program, code string) error {
			// As a person would: what fails shows in what is printed.
			cmd := exec.Command(program, "-c", code)
			cmd.Dir = dir
			b, err := cmd.CombinedOutput()
			out += string(b)
			return err
		}
		signature = run(shell, block("sh"))
		if !strings.Contains(out, "Verified OK") {
			signature = errors.New("not verified")
		}
		chain = run(python, block("python"))
		return out, signature, chain
	}
	same := func(b []byte) []byte { return b }
	if out, signature, chain := try(same); signature != nil || chain != nil {
		t.Errorf("the export: %v, %v: %s", signature, chain, out)
	}
	if out, signature, _ := try(func(b []byte) []byte {
		// That of the head: entries have some, too.
		i := bytes.LastIndex(b, []byte(`"payload":"ey`))
		return slices.Concat(b[:i], []byte(`"payload":"eX`), b[i+len(`"payload":"ey`):])
	}); signature == nil {
		t.Errorf("another payload: openssl takes it: %s", out)
	}
	lines := func(b []byte) [][]byte { return bytes.SplitAfter(b, []byte("\n")) }
	for name, change := range map[string]func([]byte) []byte{
		"an entry altered":  func(b []byte) []byte { return bytes.Replace(b, []byte("stolen"), []byte("broken"), 1) },
		"an entry left out": func(b []byte) []byte { l := lines(b); return bytes.Join(append(l[:1:1], l[2:]...), nil) },
		"cut short": func(b []byte) []byte {
			l := lines(b)
			return bytes.Join(append(l[:len(l)-3:len(l)-3], l[len(l)-2:]...), nil)
		},
	} {
		if out, _, chain := try(change); chain == nil {
			t.Errorf("%s: Python takes it: %s", name, out)
		}
	}
}

// A database that was put back from a copy is told by a replica with a witness.
func TestAServiceSeesThatItsDatabaseWasPutBack(t *testing.T) {
	t.Parallel()
	s := newService(t, `witness: witness.json`, `monitor: {listen: "127.0.0.1:0"}`)
	at := func(name string) string { return filepath.Join(s.dir, name) }
	ready := func() (code int, policy string) {
		t.Helper()
		resp, err := http.Get(s.monitor + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct{ Checks map[string]string }
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer.Checks["policy"]
	}
	runs := func(want int, policy string) {
		t.Helper()
		s.start(t)
		if code, got := ready(); code != want || got != policy {
			t.Errorf("/readyz says %d, policy %s; want %d, %s", code, got, want, policy)
		}
	}
	end := func() {
		t.Helper()
		if code := s.stop(); code != exitOK {
			t.Errorf("it ended with %d", code)
		}
	}
	runs(http.StatusOK, "ok")
	end()
	old, err := os.ReadFile(at("s.db"))
	if err != nil {
		t.Fatal(err)
	}
	runs(http.StatusOK, "ok")
	export := []string{"audit", "export", "--server", s.operators, "--identity", s.identity}
	mustCLI(t, append(export, "--out", at("good.jsonl"))...)
	end()
	if err := os.WriteFile(at("s.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	runs(http.StatusServiceUnavailable, "failed")
	// It does not sign this log.
	export[3] = s.operators
	if code, _, talk := cli(t, "", append(export, "--out", at("bad.jsonl"))...); code != exitRefused || !strings.Contains(talk, errAltered.Error()) || !strings.Contains(talk, "hint: ") {
		t.Errorf("export: exit %d, %s", code, talk)
	}
	if _, err := os.Stat(at("bad.jsonl")); err == nil {
		t.Error("there is an export all the same")
	}
	end()
	// With the file gone, somebody has said that this is meant.
	if err := os.Remove(at("witness.json")); err != nil {
		t.Fatal(err)
	}
	runs(http.StatusOK, "ok")
	export[3] = s.operators
	mustCLI(t, append(export, "--out", at("next.jsonl"))...)
	end()
	if out := mustCLI(t, "audit", "verify", at("next.jsonl"), "--key", at("keys/release.pub")); !strings.Contains(out, "signed by the service") {
		t.Errorf("verify: %s", out)
	}
	log, err := os.ReadFile(at("next.jsonl"))
	if err != nil || strings.Count(string(log), `"name":"audit.altered"`) != 1 {
		t.Errorf("the log has no alarm, or several: %v", err)
	}
	if st, err := os.Stat(at("witness.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the witness: %v, %v", st, err)
	}
	// It is written no more, and the service says so.
	if err := os.Remove(at("witness.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at("witness.json/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if code, _, talk := cli(t, "", "serve", "--config", at("serve.yaml")); code != exitFailed || !strings.Contains(talk, "read the witness") {
		t.Errorf("with a witness that cannot be read: exit %d, %s", code, talk)
	}
}

// What is not kept is told, and a clock that was set back keeps nothing from being kept.
func TestAWitnessThatCannotBeKeptIsTold(t *testing.T) {
	t.Parallel()
	memory := new(storetest.Memory)
	file := filepath.Join(t.TempDir(), "gone", "witness.json")
	now := time.Now()
	w := newWitness(t, memory, newReleaseKey(t), file)
	w.clock = func() time.Time { return now }
	step := func(saved, kept bool) {
		t.Helper()
		if err := memory.Commit(t.Context(), &server.Change{Events: []audit.Event{{Time: now, Kind: audit.KindStart, Data: audit.Start{}}}}); err != nil {
			t.Fatal(err)
		}
		if err := w.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.save(t.Context(), false); (err == nil) != saved || (w.kept() == nil) != kept {
			t.Errorf("saved: %v, kept: %v; want %t, %t", err, w.kept(), saved, kept)
		}
	}
	step(false, false)
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	step(true, false) // it is not due
	now = now.Add(-time.Hour)
	step(true, true)
	if next := newWitness(t, memory, w.key, file); next.chain.Head().Seq != 3 {
		t.Errorf("the file has entry %d, want 3", next.chain.Head().Seq)
	}
}

// BenchmarkAWitnessReads measures what a start without a signed head reads a second.
func BenchmarkAWitnessReads(b *testing.B) {
	store, err := openStore(b.Context(), filepath.Join(b.TempDir(), "s.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	const entries = 20_000
	data := audit.Verdict{ChallengeID: strings.Repeat("c", 1800), Address: "192.0.2.1"} // as long as a usual entry
	for range entries / 100 {
		var events []audit.Event
		for range 100 {
			events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindVerdict, Data: data})
		}
		if err := store.Commit(b.Context(), &server.Change{Events: events}); err != nil {
			b.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w, err := openWitness(b.Context(), store, key, "", time.Now, slog.New(slog.DiscardHandler))
		if err == nil {
			err = w.catchUp(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(entries*b.N)/b.Elapsed().Seconds(), "entries/s")
}
