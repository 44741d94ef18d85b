package unlock

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
	"github.com/sealift/sealift/image/manifest"
)

// site is an attestation service on loopback and a machine whose TPM is on
// paper. What the service verifies is real.
type site struct {
	*testing.T
	store  *storetest.Memory
	mu     sync.Mutex
	fail   func() (error, bool) // guarded by mu; of the store's writes
	client client.Client
	owner  *operator.Client
	tpm    *papertpm.TPM
	id     attest.MachineID
	disk   string
}

func newSite(t *testing.T, disk string) *site {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	s := &site{T: t, store: new(storetest.Memory), disk: disk}
	ca, err := papertpm.NewCA(now.Add(-time.Hour), now.Add(time.Hour))
	must(err)
	s.tpm, err = papertpm.FromSeed([]byte("rotation"))
	must(err)
	must(ca.Equip(s.tpm))
	s.id, err = s.tpm.MachineID()
	must(err)
	kek := make(attest.Secret, server.KEKSize)
	rand.Read(kek)
	release, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	srv, err := server.New(server.Config{
		Standing: storetest.Standing(t, s.store, release),
		Store: &storetest.Faulty{Store: s.store, Fail: func(string) (error, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.fail == nil {
				return nil, false
			}
			return s.fail()
		}},
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) {
			return &attest.Policy{
				ID: "p", Images: []*manifest.Manifest{papertpm.GoodImage()},
				Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
				TPM:      attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: ca.Root}}, Allowed: []attest.TPMClass{attest.TPMSoftware}},
			}, nil
		},
		KEK: kek, ReleaseKey: release, Log: slog.New(slog.DiscardHandler), Limits: server.Limits{EKBurst: 1000},
	})
	must(err)
	must(srv.Start(t.Context()))

	// One certificate for both sides of both APIs.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		Subject:     pkix.Name{CommonName: "ana", Organization: []string{api.OperatorOrganization}, OrganizationalUnit: []string{string(api.RoleOperator)}},
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(err)
	root, err := x509.ParseCertificate(der)
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	nodes, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	operators, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, serve := range []func() error{
		func() error { return srv.ServeNodes(ctx, nodes, cert) },
		func() error { return srv.ServeOperators(ctx, operators, cert, pool) },
	} {
		wg.Go(func() {
			if err := serve(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	s.client = client.Client{URL: "https://" + nodes.Addr().String(), CA: pool, ReleaseKey: &release.PublicKey}
	s.owner, err = operator.New(operator.Config{URL: "https://" + operators.Addr().String(), CA: pool, Certificate: cert})
	must(err)
	t.Cleanup(s.owner.Close)
	_, err = s.owner.Install(t.Context(), &api.InstallRecord{
		EKPublic: tpm2.Marshal(s.tpm.EKPublic), EKCertificates: s.tpm.EKCertificates, DiskGUID: disk, Serial: "S1", Image: "demo 1", Finished: now,
	})
	must(err)
	return s
}

// boot starts the machine anew and attests, and returns what it was released.
func (s *site) boot(stateExists bool) (*api.Release, *api.Secrets, attest.Secret) {
	s.Helper()
	b, err := papertpm.GoodBoot().OnDisk(s.disk, stateExists)
	if err != nil {
		s.Fatal(err)
	}
	s.tpm.Reset()
	b.Measure(s.tpm)
	session, err := s.client.Connect(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	defer session.Close()
	ek, ak := tpm2.Marshal(s.tpm.EKPublic), tpm2.Marshal(s.tpm.AKPublic)
	ch, err := session.Challenge(s.Context(), &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: s.tpm.EKCertificates, AKPublic: ak,
	})
	if err != nil {
		s.Fatal(err)
	}
	ev, err := s.tpm.Evidence(b, attest.PurposeUnlock, ch.Nonce, session.Exporter())
	if err != nil {
		s.Fatal(err)
	}
	secret, err := s.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		s.Fatal(err)
	}
	r, result, err := session.Evidence(s.Context(), s.id, &api.EvidenceRequest{
		ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak), Evidence: *ev,
	})
	if err != nil {
		s.Fatalf("%v: %+v", err, result)
	}
	transport, err := s.tpm.Unwrap(r.Key)
	if err != nil {
		s.Fatal(err)
	}
	secrets, err := api.OpenSecrets(transport, r)
	if err != nil {
		s.Fatal(err)
	}
	return r, secrets, transport
}

// The service, its verifier, the client and the volume together: whichever
// message of a rotation is lost, wherever the power is cut, the next boot opens
// the disk, and in the end only the next key does.
func TestARotationEndsWhicheverMessageIsLost(t *testing.T) {
	t.Parallel()
	disk, table, node := fakeDisk(t, Label)
	s := newSite(t, table.Disk.String())
	r, first, transport := s.boot(false)
	format(t, node, s.disk, half(1), first.DiskKey, goodToken())
	if err := s.client.Confirm(t.Context(), transport, r.ID, api.OutcomeUnlocked); err != nil {
		t.Fatal(err)
	}
	dev, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	d := memory(dev)
	open := func(d luks2.Device, secrets *api.Secrets) *Opened {
		t.Helper()
		headers := make([]byte, 32<<10)
		if _, err := d.ReadAt(headers, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(node, headers, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := boot(t, disk, table, d, Keys{TPM: &fakeTPM{}, ServiceHalf: secrets.DiskKey, NextHalf: secrets.NextDiskKey})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	outcome := func(o *Opened) string {
		if o.Rekeyed {
			return api.OutcomeRekeyed
		}
		return api.OutcomeNotRekeyed(o.RekeyErr)
	}
	present := bytes.Clone(first.DiskKey)
	for name, tt := range map[string]struct {
		lost  bool                 // the release
		cut   int                  // the write during which the power goes; 0: none
		fail  func() (error, bool) // of the store when the confirmation comes
		quiet bool                 // no confirmation is sent
	}{
		"nothing is lost":                       {},
		"the release is lost":                   {lost: true},
		"the confirmation is not sent":          {quiet: true},
		"the confirmation is not stored":        {fail: func() (error, bool) { return errors.New("disk full"), false }},
		"the answer to the confirmation is not": {fail: func() (error, bool) { return errors.New("disk full"), true }},
		"the power goes before the new area":    {cut: 1, quiet: true},
		"the power goes between the headers":    {cut: 5, quiet: true},
		"the power goes while it is wiped":      {cut: 7, quiet: true},
		"the disk fails and that is said":       {cut: 3},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.owner.RotateKey(t.Context(), s.id, name); err != nil {
				t.Fatal(err)
			}
			r, secrets, transport := s.boot(true)
			if !bytes.Equal(secrets.DiskKey, present) || secrets.NextDiskKey == nil {
				t.Fatal("the present half is another, or the next is missing")
			}
			next := bytes.Clone(secrets.NextDiskKey)
			if !tt.lost {
				var o *Opened
				if tt.cut > 0 {
					o = open(&powered{Device: d, at: tt.cut}, secrets)
				} else {
					o = open(d, secrets)
				}
				s.mu.Lock()
				s.fail = tt.fail
				s.mu.Unlock()
				if !tt.quiet {
					if err := s.client.Confirm(t.Context(), transport, r.ID, outcome(o)); err == nil != (tt.fail == nil) {
						t.Errorf("confirm: %v", err)
					}
				}
				s.mu.Lock()
				s.fail = nil
				s.mu.Unlock()
			}
			// The next boot.
			r, secrets, transport = s.boot(true)
			o := open(d, secrets)
			switch {
			case secrets.NextDiskKey == nil:
				if !bytes.Equal(secrets.DiskKey, next) {
					t.Error("the next half did not become the present one")
				}
			case !o.Rekeyed || !bytes.Equal(secrets.NextDiskKey, next):
				t.Errorf("got %+v, or another next half", o)
			default:
				if err := s.client.Confirm(t.Context(), transport, r.ID, outcome(o)); err != nil {
					t.Error(err)
				}
			}
			// And all that follow.
			_, secrets, _ = s.boot(true)
			if !bytes.Equal(secrets.DiskKey, next) || secrets.NextDiskKey != nil {
				t.Fatal("the rotation did not end")
			}
			open(d, secrets)
			old, err := DiskKey(half(1), present, s.disk)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := luks2.Open(d, int64(len(d)), old); !errors.Is(err, luks2.ErrWrongKey) {
				t.Errorf("the old key: %v", err)
			}
			present = next
		})
	}
	m, err := s.store.Machine(t.Context(), s.id)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := json.Marshal(m)
	if err != nil || bytes.Contains(kept, []byte("nextKey")) {
		t.Errorf("something of a rotation is left: %s, %v", kept, err)
	}
}
