package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/kek"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
)

// sealed is a disk key as the service stored it before it named volumes.
func sealed(t *testing.T, key attest.Secret, id attest.MachineID, disk string) *server.SealedKey {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce, half := make([]byte, aead.NonceSize()), make([]byte, 32)
	for _, b := range [][]byte{nonce, half} {
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	additional := fmt.Appendf(nil, "sealift sealed key v1|4:disk|64:%s|36:%s", id, disk)
	return &server.SealedKey{KEK: server.KEKID(key), Box: aead.Seal(nonce, nonce, half, additional)}
}

// putMachines puts n enrolled machines with disk keys under that key into a
// database.
func putMachines(t *testing.T, store *sqlstore.Store, key attest.Secret, n int) {
	t.Helper()
	for i := range n {
		m := &server.Machine{Machine: api.Machine{
			State: attest.StateEnrolled, NodeName: fmt.Sprintf("box-%d", i), DiskGUID: fmt.Sprintf("%08x-3b1f-4a56-9d0e-0123456789ab", i+1),
		}}
		m.ID[0], m.ID[1], m.ID[2] = 1, byte(i>>8), byte(i)
		m.DiskKey = sealed(t, key, m.ID, m.DiskGUID)
		if err := store.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheKeyEncryptionKeyIsChangedByConfiguration(t *testing.T) {
	s := startService(t)
	at := func(name string) string { return filepath.Join(s.dir, name) }
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	first, err := kek.ReadFile(at("some/disk-kek.key"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.Open(t.Context(), at("s.db"))
	if err != nil {
		t.Fatal(err)
	}
	putMachines(t, store, first, 20)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mustCLI(t, "keys", "kek", "init", at("second.key"))
	second, err := kek.ReadFile(at("second.key"))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(at("serve.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	configure := func(text string) {
		t.Helper()
		c := strings.Replace(string(config), "kek: {file: some/disk-kek.key}", "kek: "+text, 1)
		if err := os.WriteFile(at("serve.yaml"), []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Without the old one the service does not start: it would serve nobody.
	configure("{file: second.key}")
	if code, _, talk := cli(t, "", "serve", "--config", at("serve.yaml")); code != exitFailed || !strings.Contains(talk, "20 under key "+`"`+server.KEKID(first)) || !strings.Contains(talk, "kek.former") {
		t.Errorf("exit %d, %s", code, talk)
	}
	configure("{file: second.key, former: [{file: some/disk-kek.key}]}")
	s.start(t)
	ask := func(args ...string) []string { return append(args, "--server", s.operators, "--identity", s.identity) }
	// It began by itself; this one waits for the end.
	mustCLI(t, ask("keys", "kek", "rewrap", "--reason", "wait for it")...)
	var st api.KEKStatus
	if err := json.Unmarshal([]byte(mustCLI(t, ask("keys", "kek", "status", "--json")...)), &st); err != nil {
		t.Fatal(err)
	}
	for _, u := range st.Uses {
		want := map[string]api.KEKUse{
			server.KEKID(first):  {KEK: server.KEKID(first), Role: api.KEKFormer},
			server.KEKID(second): {KEK: server.KEKID(second), Role: api.KEKPresent, DiskKeys: 20},
		}[u.KEK]
		if u != want {
			t.Errorf("got %+v, want %+v", u, want)
		}
	}
	if out := mustCLI(t, ask("keys", "kek", "status")...); !strings.Contains(out, server.KEKID(second)+"  present  20") || !strings.Contains(out, "finished 20") {
		t.Errorf("status is\n%s", out)
	}

	// Every machine that has a disk key is to get another, also if asked twice.
	rec, id := newInstall(t, s.tpmCA)
	install(t, s, rec)
	for _, want := range []int{20, 0} {
		if out := mustCLI(t, ask("machine", "rotate-key", "--all", "--reason", "yearly")...); strings.Count(out, "enrolled") != want {
			t.Errorf("want %d machines, got\n%s", want, out)
		}
	}
	if code, _, talk := cli(t, "", ask("machine", "rotate-key", id.String(), "--reason", "x")...); code != exitFailed || !strings.Contains(talk, "has no disk key yet") || !strings.Contains(talk, "its first release makes one") {
		t.Errorf("exit %d, %s", code, talk)
	}
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	// The old one can go.
	configure("{file: second.key}")
	s.start(t)
	log := mustCLI(t, "audit", "export", "--server", s.operators, "--identity", s.identity)
	if n := strings.Count(log, `"kek.rewrap"`); n != 2 {
		t.Errorf("%d entries of the rewrap, want 2", n)
	}
	if n := strings.Count(log, `"machine.disk-key"`); n != 20 {
		t.Errorf("%d entries of rotations, want 20", n)
	}
	out := at("report")
	mustCLI(t, "report", "attestation", "--chain-only", "--server", s.operators, "--identity", s.identity, "--out", out)
	var report strings.Builder
	err = filepath.WalkDir(out, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		report.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(report.String(), "disk keys went from key-encryption key "+server.KEKID(first)) || !strings.Contains(report.String(), "is to get another key, by ana") {
		t.Error("the report does not tell of the changes")
	}
	s.stop()
	// One that is lost is given up by name.
	store, err = sqlstore.Open(t.Context(), at("s.db"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := store.Machine(t.Context(), attest.MachineID{1})
	if err != nil {
		t.Fatal(err)
	}
	m.DiskKey.KEK = "00112233445566aa"
	if err := store.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if code, _, talk := cli(t, "", "serve", "--config", at("serve.yaml")); code != exitFailed || !strings.Contains(talk, "00112233445566aa") {
		t.Errorf("exit %d, %s", code, talk)
	}
	configure(`{file: second.key, lost: ["00112233445566aa"]}`)
	s.start(t)
	if out := mustCLI(t, "keys", "kek", "status", "--server", s.operators, "--identity", s.identity); !strings.Contains(out, "00112233445566aa  lost") {
		t.Errorf("status is\n%s", out)
	}
}
