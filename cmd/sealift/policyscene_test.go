package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	"github.com/sealift/sealift/cmd/sealift/internal/monitor"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
	"github.com/sealift/sealift/firmware"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sign"
)

// policyScene is a store that replicas share, with what they have in common.
type policyScene struct {
	*testing.T
	keys   string // directory
	ana    string // identity of an operator with all roles
	ring   *keyring.Keyring
	signer *sign.Signer
	ca     *papertpm.CA
	images [2]loadedImage // demo 1 and demo 2
	sent   [2]api.SignedManifest

	mu  sync.Mutex
	at  time.Time // guarded by mu: on the replicas' clock
	box int       // guarded by mu
}

func newPolicyScene(t *testing.T) *policyScene {
	t.Helper()
	dir, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	s := &policyScene{T: t, keys: filepath.Join(t.TempDir(), "keys"), ana: filepath.Join(dir, "ana"), at: time.Now()}
	// A service has some of them, who signs has the others; here it is one.
	if err := os.Mkdir(s.keys, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"keys", "some"} {
		files, err := os.ReadDir(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(filepath.Join(dir, from, file.Name()))
			if err == nil {
				err = os.WriteFile(filepath.Join(s.keys, file.Name()), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.ring, err = keyring.Open(s.keys); err != nil {
		t.Fatal(err)
	}
	key, err := s.ring.Image()
	if err != nil {
		t.Fatal(err)
	}
	if s.signer, err = sign.FromKey(key); err != nil {
		t.Fatal(err)
	}
	if s.ca, err = papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for i := range s.images {
		m := papertpm.GoodImage()
		m.Artifacts = []manifest.Artifact{{Kind: manifest.KindDisk, Name: image.FileDisk, Size: 1}, {Kind: manifest.KindUKI, Name: image.FileUKI, Size: 1}}
		for k := range m.Artifacts {
			m.Artifacts[k].SHA256 = sha256.Sum256([]byte(m.Artifacts[k].Name))
		}
		if i == 1 {
			m.Version, m.UKI.Authenticode = "2", sha256.Sum256([]byte("uki 2"))
		}
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.images[i] = loadedImage{dir: fmt.Sprint("image-", i+1), manifest: m, digest: sha256.Sum256(b)}
		s.sent[i] = api.SignedManifest{Manifest: b, Bundle: s.sign(b)}
	}
	return s
}

func (s *policyScene) sign(b []byte) []byte {
	s.Helper()
	sig, err := s.signer.Sign(context.Background(), b)
	if err != nil {
		s.Fatal(err)
	}
	return sig
}

func (s *policyScene) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *policyScene) later(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(d)
}

// text is a policy that wants an image of at least a version.
func policyText(version int, minimum string) []byte {
	return fmt.Appendf(nil, "policy: 1\nname: fleet\nversion: %d\nimages: [{name: demo, minimum: %q}]\nsecureBoot: {dbx: {any: true}}\ntpm: {allowed: [software]}\n", version, minimum)
}

func (s *policyScene) request(version int, minimum string) *api.PolicyEnable {
	text := policyText(version, minimum)
	return &api.PolicyEnable{Policy: text, Bundle: s.sign(text), Reason: "ticket"}
}

// replica is one replica of the service.
type replica struct {
	*policyScene
	live      *livePolicy
	service   *server.Server
	nodes     *client.Client
	operators string
	log       *eventLog
	mon       *monitor.Monitor
	deaf      bool // its machines give no proof of their banks, though they are asked
}

// eventLog passes on the messages that are logged.
type eventLog struct {
	slog.Handler
	messages chan string
}

func (l *eventLog) Handle(_ context.Context, r slog.Record) error {
	select {
	case l.messages <- r.Message:
	default:
	}
	return nil
}
func (l *eventLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *eventLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *eventLog) WithGroup(string) slog.Handler            { return l }

// await waits until a message is logged.
func (r *replica) await(message string) {
	r.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case m := <-r.log.messages:
			if m == message {
				return
			}
		case <-timeout:
			r.Fatalf("%q was not logged", message)
		}
	}
}

// start starts a replica on a store, with the images and the policy file of its
// configuration. looks is what its livePolicy reads through.
func (s *policyScene) start(store, looks server.Store, images []loadedImage, file []byte, change func(*livePolicy)) *replica {
	s.Helper()
	log := &eventLog{messages: make(chan string, 4096)}
	r := &replica{policyScene: s, log: log, mon: monitor.New(monitor.Config{Log: slog.New(slog.DiscardHandler), Clock: s.now})}
	r.live = &livePolicy{
		store: looks, ring: s.ring, catalogue: &firmware.Catalogue{}, mon: r.mon, log: slog.New(log),
		local: &policySource{
			images: images, clock: s.now,
			tpm: attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: s.ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
			references: func(context.Context, attest.MachineID) (attest.FirmwarePolicy, error) {
				return attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}}, nil
			},
		},
	}
	if teller, ok := store.(server.Teller); ok {
		// Replicas that share one store in these tests take it from each other: those
		// before read what is written from now on.
		r.live.own = new(ownWord)
		r.live.tail = r.live.own.tail()
		teller.Tell(r.live.tail)
	}
	var signature []byte
	if file != nil {
		d, err := policy.Parse("p.yaml", file, nil)
		if err != nil {
			s.Fatal(err)
		}
		r.live.config, r.live.file, signature = &policyConfig{File: "p.yaml"}, d, s.sign(file)
	}
	if change != nil {
		change(r.live)
	}
	kek, err := s.ring.DiskKEK()
	if err != nil {
		s.Fatal(err)
	}
	key, err := s.ring.Release()
	if err != nil {
		s.Fatal(err)
	}
	if r.service, err = server.New(server.Config{
		Store: store, KEK: kek, ReleaseKey: key, Log: slog.New(slog.DiscardHandler), Policy: r.live.policy, PolicyHolds: r.live.holds, ProveBanks: r.live.proveBanks,
		EnablePolicy: r.live.enable, PolicyState: r.live.state, Propose: r.live.proposer, Standing: firsthand{judge{r.live}},
		Limits: server.Limits{PerAddress: 1, AddressBurst: 1 << 30, PerEK: 1, EKBurst: 1 << 30, Refusal: 1, Unproven: 1, OperatorPerAddress: 1, OperatorAddressBurst: 1 << 30},
	}); err != nil {
		s.Fatal(err)
	}
	issuer, err := s.ring.Issuer(time.Now(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	cert, err := issuer.IssueServer([]string{"127.0.0.1"})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	serve := func(f func(net.Listener) error) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.Fatal(err)
		}
		wg.Go(func() {
			if err := f(ln); err != nil {
				s.Error(err)
			}
		})
		return "https://" + ln.Addr().String()
	}
	nodes := serve(func(ln net.Listener) error { return r.service.ServeNodes(ctx, ln, cert) })
	r.operators = serve(func(ln net.Listener) error { return r.service.ServeOperators(ctx, ln, cert, issuer.Pool()) })
	s.Cleanup(func() { cancel(); wg.Wait() })
	r.nodes = &client.Client{URL: nodes, CA: issuer.Pool(), ReleaseKey: &key.PublicKey}
	r.live.named(nodes)
	if err := r.service.Start(s.Context()); err != nil {
		s.Fatal(err)
	}
	if err := r.live.begin(s.Context(), signature); err != nil {
		s.Fatal(err)
	}
	if err := r.live.tell(s.Context()); err != nil {
		s.Fatal(err)
	}
	return r
}

// boot has a new machine boot an image, 1 or 2, and ask the replica. It returns
// what came of it: "released", finding codes, or the service's error code.
func (r *replica) boot(version int) string {
	r.Helper()
	r.mu.Lock()
	r.box++
	n := r.box
	r.mu.Unlock()
	tpm, err := papertpm.FromSeed(fmt.Append(nil, r.Name(), n))
	if err == nil {
		err = r.ca.Equip(tpm)
	}
	if err != nil {
		r.Error(err)
		return ""
	}
	boot, err := papertpm.GoodBoot().OnDisk(fmt.Sprintf("6a0d1e0c-3b1f-4a56-9d0e-%012d", n), false)
	if err != nil {
		r.Error(err)
		return ""
	}
	if version == 2 {
		boot.Measured = slices.Clone(boot.Measured)
		for i := range boot.Measured {
			if string(boot.Measured[i].Measured) == "uki" {
				boot.Measured[i].Measured, boot.Measured[i].Digests = []byte("uki 2"), nil
			}
		}
	}
	id, err := tpm.MachineID()
	if err != nil {
		r.Error(err)
		return ""
	}
	// The machine is enrolled whatever the replica goes by.
	if err := r.enrol(r.live.store, &server.Machine{Machine: api.Machine{ID: id, NodeName: api.NodeName(id, 10), DiskGUID: boot.Disk.GUID}}); err != nil {
		r.Error(err)
		return ""
	}
	return r.ask(tpm, boot)
}

// ask has a machine that starts, or started again, ask the replica.
func (r *replica) ask(tpm *papertpm.TPM, boot *papertpm.Boot) string {
	r.Helper()
	id, err := tpm.MachineID()
	if err != nil {
		r.Error(err)
		return ""
	}
	ek, ak := tpm2.Marshal(tpm.EKPublic), tpm2.Marshal(tpm.AKPublic)
	session, err := r.nodes.Connect(r.Context())
	if err != nil {
		r.Error(err)
		return ""
	}
	defer session.Close()
	ch, err := session.Challenge(r.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: tpm.EKCertificates, AKPublic: ak})
	if err != nil {
		r.Error(err)
		return ""
	}
	boot.Measure(tpm)
	tpm.Prove = ch.ProveBanks && !r.deaf
	ev, err := tpm.Evidence(boot, attest.PurposeUnlock, ch.Nonce, session.Exporter())
	if err != nil {
		r.Error(err)
		return ""
	}
	secret, err := tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		r.Error(err)
		return ""
	}
	_, _, err = session.Evidence(r.Context(), id, &api.EvidenceRequest{ChallengeID: ch.ID, Evidence: *ev, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak)})
	var no *client.RefusedError
	switch {
	case err == nil:
		return "released"
	case errors.As(err, &no):
		var codes []string
		for _, f := range no.Result.Findings {
			codes = append(codes, string(f.Code))
		}
		return strings.Join(codes, " ")
	}
	return err.Error()
}

// enrol enrols a machine as the service does.
func (s *policyScene) enrol(store server.Store, m *server.Machine) error {
	key, err := s.ring.Release()
	if err != nil {
		return err
	}
	ev, err := audit.SignTrust(key, audit.Event{Time: s.now(), Kind: audit.KindState, Machine: m.ID, Data: audit.StateChange{From: m.State, To: attest.StateEnrolled, By: "ana"}}, s.now())
	if err != nil {
		return err
	}
	m.State = attest.StateEnrolled
	return store.Commit(context.Background(), &server.Change{Machine: m, Events: []audit.Event{ev}})
}

func (r *replica) wants(claim string, version int, want string) {
	r.Helper()
	if got := r.boot(version); got != want && !(want == "unavailable" && strings.Contains(got, "the policy is not available")) {
		r.Errorf("%s: image %d: %q, want %q", claim, version, got, want)
	}
}

// enable enables a policy over the operator API.
func (r *replica) enable(req *api.PolicyEnable) (state *api.PolicyState, err error) {
	r.Helper()
	o := operatorOptions{server: r.operators, identity: r.ana}
	err = o.do(func(c *operator.Client) error {
		state, err = c.EnablePolicy(r.Context(), req)
		return err
	})
	return state, err
}

func (r *replica) look() {
	r.Helper()
	if err := r.live.look(r.Context()); err != nil {
		r.Error(err)
	}
	if err := r.live.tell(r.Context()); err != nil {
		r.Error(err)
	}
}

const denied = string(attest.CodeImageDenied)

// onBothStores runs a test on SQLite in one process, and on PostgreSQL with a
// connection of each replica's own.
func onBothStores(t *testing.T, test func(t *testing.T, open func() server.Store)) {
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		store, err := openStore(t.Context(), filepath.Join(t.TempDir(), "s.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		test(t, func() server.Store { return store })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		dsn := pgtest.Start(t).Database(t)
		test(t, func() server.Store {
			store, err := openStore(t.Context(), dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { store.Close() })
			return store
		})
	})
}
