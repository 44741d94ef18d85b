package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

// startService serves the node API on loopback.
func startService(t *testing.T) (*storetest.Memory, client.Client) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "service"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	root, err := x509.ParseCertificate(der)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	store := new(storetest.Memory)
	srv, err := server.New(server.Config{
		Store: store, Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return &attest.Policy{}, nil },
		Standing: storetest.Standing(t, store, key),
		KEK:      bytes.Repeat([]byte{1}, server.KEKSize), ReleaseKey: key, Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.ServeNodes(ctx, ln, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return store, client.Client{URL: "https://" + ln.Addr().String(), CA: pool, ReleaseKey: &key.PublicKey}
}

// A TPM whose firmware was updated has one certificate more, of a kind that comes
// before. The machine stays who it is, and its other keys are proven.
func TestAMachineStaysWhoItIsWhenItsTPMHasANewCertificate(t *testing.T) {
	for name, tt := range map[string]struct {
		known  bool // the service knows the TPM by its RSA key
		asks   bool // for the other keys
		absent bool // and says that it is a machine which it cannot be
		kind   string
	}{
		"known by its RSA key":             {known: true, asks: true, kind: "RSA-2048"},
		"not known":                        {kind: "ECC P-256"},
		"known as another, which it isn't": {absent: true, kind: "ECC P-256"},
	} {
		t.Run(name, func(t *testing.T) {
			store, c := startService(t)
			d := tpmtest.Config{P256Certificate: true}.Open(t)
			dev := tpm.New(d)
			var log bytes.Buffer
			s := &service{client: c, log: slog.New(slog.NewTextHandler(&log, nil))}
			if err := s.identify(dev); err != nil {
				t.Fatal(err)
			}
			if s.identity.EK.Kind != "ECC P-256" {
				t.Fatal(s.identity.EK.Kind)
			}
			before := s.machine
			owner := attest.MachineID{1}
			if tt.known {
				if _, err := dev.EachOtherEK(func(public []byte) error {
					if p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public); err != nil || p.Type != tpm2.TPMAlgRSA {
						return err
					}
					var err error
					owner, err = attest.EKMachineID(public)
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
			know := func(keysProven bool) {
				t.Helper()
				name := "ak-" + hex.EncodeToString(s.identity.AKName)
				body, err := json.Marshal(map[string]any{"machine": owner, "keysProven": keysProven})
				if err != nil {
					t.Fatal(err)
				}
				m := &server.Machine{Machine: api.Machine{ID: owner, State: attest.StateEnrolled, NodeName: "box"}}
				if err := store.Commit(t.Context(), &server.Change{Machine: m, Documents: []*server.Document{{Kind: "tpm", Name: name, Body: body}}}); err != nil {
					t.Fatal(err)
				}
			}
			if tt.known || tt.absent {
				know(false)
			}
			for round := range 2 {
				session, err := s.client.Connect(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer session.Close()
				ch, proven, err := s.challenge(t.Context(), session, dev)
				if err != nil {
					t.Fatal(err)
				}
				if s.identity.EK.Kind != tt.kind || (s.machine != before) != tt.known || tt.known && s.machine != owner {
					t.Errorf("round %d: identified by %s as machine %s", round, s.identity.EK.Kind, s.machine.Short())
				}
				if proven != tt.asks {
					t.Errorf("round %d: proven %t, want %t", round, proven, tt.asks)
				}
				// The challenge that is left open is the machine's own.
				activation, err := dev.Activate(ch.Credential, ch.Secret)
				if err != nil {
					t.Fatal(err)
				}
				err = session.ProveKey(t.Context(), &api.KeyRequest{
					ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(activation, ch.ID, ch.Nonce, s.identity.AKPublic),
				})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			if n := strings.Count(log.String(), "machine that it cannot be"); tt.absent != (n > 0) {
				t.Errorf("the log says %s", log.String())
			}
			if err := dev.Close(); err != nil {
				t.Error(err)
			}
			if n := d.Objects(); n != 0 {
				t.Errorf("%d objects are left in the TPM", n)
			}
		})
	}
}

// mortal is a connection that dies when it has sent so much more.
type mortal struct {
	net.Conn
	writes atomic.Int64 // that are left
}

func (m *mortal) Write(p []byte) (int, error) {
	if m.writes.Add(-1) < 0 {
		return 0, errors.Join(errors.New("the connection has died"), m.Close())
	}
	return m.Conn.Write(p)
}

// A chip may take longer for an RSA key than a load balancer or the service keeps a
// silent connection. That must not be so in each attempt.
func TestABoxIsNotHeldUpByKeysForWhichItsConnectionDoesNotLast(t *testing.T) {
	store, c := startService(t)
	dev := tpm.New(tpmtest.Config{P256Certificate: true}.Open(t))
	var last *mortal
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		last = &mortal{Conn: conn}
		last.writes.Store(1000)
		return last, err
	}
	s := &service{client: c, log: slog.New(slog.DiscardHandler)}
	if err := s.identify(dev); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"machine": s.machine})
	if err != nil {
		t.Fatal(err)
	}
	m := &server.Machine{Machine: api.Machine{ID: s.machine, State: attest.StateEnrolled, NodeName: "box"}}
	d := &server.Document{Kind: "tpm", Name: "ak-" + hex.EncodeToString(s.identity.AKName), Body: body}
	if err := store.Commit(t.Context(), &server.Change{Machine: m, Documents: []*server.Document{d}}); err != nil {
		t.Fatal(err)
	}
	for attempt := range 2 {
		session, err := s.client.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		last.writes.Store(1) // for the first challenge
		ch, proven, err := s.challenge(t.Context(), session, dev)
		switch {
		case attempt == 0 && err == nil:
			t.Fatal("the connection did not die")
		case attempt == 1 && (err != nil || proven || !ch.ProveKeys):
			t.Errorf("challenge %+v, proven %t: %v", ch, proven, err)
		}
	}
}

// A certificate of which the TPM has no key would otherwise have the service ask for
// all keys again in each boot, and a chip make them.
func TestACertificateWithoutAKeyLeavesNothingToProve(t *testing.T) {
	store, c := startService(t)
	d := tpmtest.Config{P256Certificate: true}.Open(t)
	d.DefineNV(0x01c00014, d.CA.Issuer.Raw)
	dev := tpm.New(d)
	var log bytes.Buffer
	s := &service{client: c, log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := s.identify(dev); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"machine": s.machine})
	if err != nil {
		t.Fatal(err)
	}
	m := &server.Machine{Machine: api.Machine{ID: s.machine, State: attest.StateEnrolled, NodeName: "box"}}
	doc := &server.Document{Kind: "tpm", Name: "ak-" + hex.EncodeToString(s.identity.AKName), Body: body}
	if err := store.Commit(t.Context(), &server.Change{Machine: m, Documents: []*server.Document{doc}}); err != nil {
		t.Fatal(err)
	}
	session, err := s.client.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	ch, proven, err := s.challenge(t.Context(), session, dev)
	if err != nil || !proven || !ch.ProveKeys {
		t.Errorf("challenge %+v, proven %t: %v", ch, proven, err)
	}
	if !strings.Contains(log.String(), "0x1c00014") {
		t.Errorf("the log does not tell of it: %s", log.String())
	}
}
