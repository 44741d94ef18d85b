package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
	"github.com/sealift/sealift/image/manifest"
)

// killVictim is set in the process that TestServiceKilled kills: its directory
// and its store.
const killVictim = "SEALIFT_TEST_KILL_VICTIM"

// killBox is a machine that boots and asks for its secrets again and again.
type killBox struct {
	tpm  *papertpm.TPM
	boot *papertpm.Boot
	id   attest.MachineID

	mu      sync.Mutex
	given   map[string]string      // release by boot, of those that were answered
	sent    []*api.EvidenceRequest // since the service was started
	unheard int                    // answers that the kill cut off
	refused int                    // in a boot that had its release
}

// TestServiceKilled kills the whole service at any point of its work, with
// several replicas where the store allows it, and starts it again. No decision
// that was answered may be missing, no boot may have two releases, and evidence
// from before a kill is of no use after it, whether it was answered or not.
func TestServiceKilled(t *testing.T) {
	if v := os.Getenv(killVictim); v != "" {
		dir, store, _ := strings.Cut(v, "|")
		fmt.Fprintln(os.Stderr, serveVictim(dir, store))
		os.Exit(1)
	}
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		killService(t, filepath.Join(t.TempDir(), "s.db"), 1)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		pg := pgtest.Start(t)
		killService(t, pg.Database(t), 2)
	})
}

// victimService is the service with the paper fleet's policy.
func victimService(dir string, store server.Store) (*server.Server, *keyring.Keyring, error) {
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		return nil, nil, err
	}
	kek, err := ring.DiskKEK()
	if err != nil {
		return nil, nil, err
	}
	key, err := ring.Release()
	if err != nil {
		return nil, nil, err
	}
	root, err := os.ReadFile(filepath.Join(dir, "root.der"))
	if err != nil {
		return nil, nil, err
	}
	crt, err := x509.ParseCertificate(root)
	if err != nil {
		return nil, nil, err
	}
	policy := &attest.Policy{
		ID: "paper", Images: []*manifest.Manifest{papertpm.GoodImage()}, Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
		TPM: attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: crt}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}
	standing, err := server.NewOwnStanding(store, audit.ReleaseKeys{Present: &key.PublicKey})
	if err != nil {
		return nil, nil, err
	}
	s, err := server.New(server.Config{
		Store: store, Standing: standing, KEK: kek, ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return policy, nil },
		Limits: server.Limits{PerAddress: 1, PerEK: 1, Refusal: 1, Unproven: 1},
	})
	return s, ring, err
}

// serveVictim serves nodes until it is killed, and prints its address first.
func serveVictim(dir, name string) error {
	store, err := openStore(context.Background(), name)
	if err != nil {
		return err
	}
	s, ring, err := victimService(dir, store)
	if err != nil {
		return err
	}
	issuer, err := ring.Issuer(time.Now(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := issuer.IssueServer([]string{"127.0.0.1"})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return s.ServeNodes(context.Background(), ln, cert)
}

func killService(t *testing.T, store string, replicas int) {
	const boxes, rounds = 8, 4
	dir := t.TempDir()
	mustCLI(t, "keys", "init", filepath.Join(dir, "keys"))
	ca, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.der"), ca.Root.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	fleet := enrolFleet(t, dir, store, ca, boxes)
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ring.Issuer(time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stale := 0
	for round := range rounds {
		var victims []*exec.Cmd
		var nodes []*client.Client
		for range replicas {
			cmd := exec.Command(os.Args[0], "-test.run=^TestServiceKilled$")
			cmd.Env = append(os.Environ(), killVictim+"="+dir+"|"+store)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			victims = append(victims, cmd)
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				_ = cmd.Wait()
				t.Fatalf("round %d: the service did not start: %v", round, err)
			}
			nodes = append(nodes, &client.Client{URL: "https://" + strings.TrimSpace(line), CA: issuer.Pool(), ReleaseKey: &key.PublicKey})
		}
		stale += replayOld(t, fleet, nodes)
		// Killed after so many answers, and a moment that is anywhere in the
		// work on the next.
		answers := make(chan struct{}, 1024)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i, b := range fleet {
			wg.Go(func() { b.run(ctx, nodes[i%replicas], nodes[(i+1)%replicas], answers) })
		}
		for range 10 + mathrand.IntN(20) {
			select {
			case <-answers:
			case <-time.After(time.Minute):
				t.Fatal("the service answers nothing")
			}
		}
		busyFor(time.Duration(mathrand.IntN(5000)) * time.Microsecond)
		for _, cmd := range victims {
			if err := cmd.Process.Kill(); err != nil { // SIGKILL
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
		}
		cancel()
		wg.Wait()
		checkAfterKill(t, store, fleet)
	}
	answered, unheard, refused := 0, 0, 0
	for _, b := range fleet {
		answered, unheard, refused = answered+len(b.given), unheard+b.unheard, refused+b.refused
	}
	t.Logf("%d releases answered, %d requests cut off by a kill, %d second requests refused, %d from before a kill refused", answered, unheard, refused, stale)
	if answered == 0 || unheard == 0 || refused == 0 || stale == 0 {
		t.Error("nothing was proven")
	}
}

// busyFor lets a moment pass that is no wait for anything.
func busyFor(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// enrolFleet makes machines and enrols them in an empty store.
func enrolFleet(t *testing.T, dir, name string, ca *papertpm.CA, n int) []*killBox {
	t.Helper()
	store, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s, _, err := victimService(dir, store)
	if err != nil {
		t.Fatal(err)
	}
	var fleet []*killBox
	for i := range n {
		b := &killBox{given: map[string]string{}}
		if b.tpm, err = papertpm.FromSeed(fmt.Append(nil, "kill ", i)); err == nil {
			err = ca.Equip(b.tpm)
		}
		if err == nil {
			b.boot, err = papertpm.GoodBoot().OnDisk(fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", i+1), true)
		}
		if err == nil {
			b.id, err = b.tpm.MachineID()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Enrol(t.Context(), "line", &api.InstallRecord{
			EKPublic: tpm2.Marshal(b.tpm.EKPublic), EKCertificates: b.tpm.EKCertificates, DiskGUID: b.boot.Disk.GUID,
		}); err != nil {
			t.Fatal(err)
		}
		fleet = append(fleet, b)
	}
	return fleet
}

// run asks until ctx ends or the service is gone: in each boot twice, the second
// time at another replica if there is one. A boot whose answer was cut off is
// gone on with: it may have its release or not.
func (b *killBox) run(ctx context.Context, first, second *client.Client, answers chan<- struct{}) {
	for ctx.Err() == nil {
		for _, c := range []*client.Client{first, second} {
			if !b.ask(ctx, c) {
				return
			}
			select {
			case answers <- struct{}{}:
			default:
			}
		}
		b.tpm.Reset()
	}
}

// bootName names the boot that the machine is in.
func (b *killBox) bootName() string {
	return fmt.Sprintf("%d.%d", b.tpm.Clock.ResetCount, b.tpm.Clock.RestartCount)
}

// ask runs the protocol once and reports whether the service answered.
func (b *killBox) ask(ctx context.Context, c *client.Client) bool {
	b.boot.Measure(b.tpm)
	session, err := c.Connect(ctx)
	if err != nil {
		return false
	}
	defer session.Close()
	ch, err := session.Challenge(ctx, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock,
		EKPublic: tpm2.Marshal(b.tpm.EKPublic), AKPublic: tpm2.Marshal(b.tpm.AKPublic), EKCertificates: b.tpm.EKCertificates,
	})
	if err != nil {
		return false
	}
	secret, err := b.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		panic(err)
	}
	ev, err := b.tpm.Evidence(b.boot, attest.PurposeUnlock, ch.Nonce, session.Exporter())
	if err != nil {
		panic(err)
	}
	req := &api.EvidenceRequest{
		ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, tpm2.Marshal(b.tpm.AKPublic)), Evidence: *ev,
	}
	rel, _, err := session.Evidence(ctx, b.id, req)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sent = append(b.sent, req)
	var refused *client.RefusedError
	switch {
	case err == nil:
		if old := b.given[b.bootName()]; old != "" {
			panic(fmt.Sprintf("boot %s of machine %s was given releases %s and %s", b.bootName(), b.id.Short(), old, rel.ID))
		}
		b.given[b.bootName()] = rel.ID
	case errors.As(err, &refused):
		for _, f := range refused.Result.Findings {
			if f.Code != attest.CodeReleaseRepeated {
				panic(fmt.Sprintf("machine %s: %v", b.id.Short(), err))
			}
		}
		b.refused++
	default:
		var answer *client.ServiceError
		if errors.As(err, &answer) && answer.Status != http.StatusServiceUnavailable {
			panic(err)
		}
		b.unheard++
		return false
	}
	if rel != nil {
		transport, err := b.tpm.Unwrap(rel.Key)
		if err != nil {
			panic(err)
		}
		_ = c.Confirm(ctx, transport, rel.ID, api.OutcomeUnlocked) // may be cut off
	}
	return true
}

// replayOld sends all evidence from before the kill again, to each replica, and
// returns how often. The challenges are not open any more.
func replayOld(t *testing.T, fleet []*killBox, nodes []*client.Client) (n int) {
	t.Helper()
	for _, b := range fleet {
		for i, req := range b.sent {
			session, err := nodes[i%len(nodes)].Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = session.Evidence(t.Context(), b.id, req)
			var refused *client.RefusedError
			if !errors.As(err, &refused) || len(refused.Result.Findings) != 1 || refused.Result.Findings[0].Code != attest.CodeChallenge {
				t.Errorf("machine %s: evidence for challenge %s, from before the kill: got %v, want it refused with %s", b.id.Short(), req.ChallengeID, err, attest.CodeChallenge)
			}
			if err := session.Close(); err != nil {
				t.Error(err)
			}
			n++
		}
		b.sent = nil
	}
	return n
}

// checkAfterKill holds the store against what the machines were told.
func checkAfterKill(t *testing.T, name string, fleet []*killBox) {
	t.Helper()
	store, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var chain audit.Verifier
	logged, boots, decided := map[string]bool{}, map[string]string{}, map[string]int64{}
	for e, err := range store.Audit(t.Context(), 1) {
		if err == nil {
			err = chain.Add(e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == audit.KindVerdict {
			var d audit.Verdict
			if err := json.Unmarshal(e.Data, &d); err != nil {
				t.Fatal(err)
			}
			if old := decided[d.ChallengeID]; old != 0 {
				t.Errorf("challenge %s was answered twice: entries %d and %d", d.ChallengeID, old, e.Seq)
			}
			decided[d.ChallengeID] = e.Seq
		}
		if e.Kind != audit.KindRelease {
			continue
		}
		var d audit.Release
		if err := json.Unmarshal(e.Data, &d); err != nil {
			t.Fatal(err)
		}
		logged[d.ID] = true
		boot := fmt.Sprintf("%s %d.%d", e.Machine, d.ResetCount, d.RestartCount)
		if old := boots[boot]; old != "" {
			t.Errorf("boot %s has releases %s and %s", boot, old, d.ID)
		}
		boots[boot] = d.ID
		if _, err := store.Release(t.Context(), d.ID); err != nil {
			t.Errorf("release %s is in the log alone: %v", d.ID, err)
		}
	}
	for _, b := range fleet {
		for boot, id := range b.given {
			if _, err := store.Release(t.Context(), id); err != nil || !logged[id] {
				t.Errorf("release %s of boot %s was answered, and the store has lost it: %v, in the log: %t", id, boot, err, logged[id])
			}
		}
		m, err := store.Machine(t.Context(), b.id)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.given) > 0 && (!m.Released || m.DiskKey == nil) {
			t.Errorf("machine %s: the record does not know of its releases", b.id.Short())
		}
	}
}
