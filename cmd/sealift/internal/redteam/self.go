package redteam

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/image/manifest"
)

// Self starts a service with all its parts in this process, on loopback, with
// keys and a database of its own in dir, and returns it as a target. stop ends
// it.
func Self(ctx context.Context, dir string, log *slog.Logger) (_ Target, stop func() error, err error) {
	return self(ctx, dir, log, nil)
}

// self starts a service whose policy also denies images.
func self(ctx context.Context, dir string, log *slog.Logger, denied []attest.DeniedImage) (_ Target, stop func() error, err error) {
	fail := func(err error) (Target, func() error, error) {
		return Target{}, nil, fmt.Errorf("start a service to attack: %w", err)
	}
	now := time.Now()
	if err := keyring.Init(filepath.Join(dir, "keys"), now, rand.Reader); err != nil {
		return fail(err)
	}
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		return fail(err)
	}
	kek, err := ring.DiskKEK()
	if err != nil {
		return fail(err)
	}
	release, err := ring.Release()
	if err != nil {
		return fail(err)
	}
	issuer, err := ring.Issuer(now, rand.Reader)
	if err != nil {
		return fail(err)
	}
	cert, err := issuer.IssueServer([]string{"127.0.0.1"})
	if err != nil {
		return fail(err)
	}
	identity, err := issuer.IssueOperator("redteam", []api.Role{api.RoleOperator})
	if err != nil {
		return fail(err)
	}
	ca, err := CreateCA(filepath.Join(dir, "ek-ca"), now)
	if err != nil {
		return fail(err)
	}
	store, err := sqlstore.Create(ctx, filepath.Join(dir, "sealift.db"))
	if err != nil {
		return fail(err)
	}
	policies := &policies{ca: ca.Root, denied: denied, image: papertpm.Predicted(papertpm.GoodImage(), papertpm.GoodBoot()), strict: map[attest.MachineID]bool{}, by384: map[attest.MachineID]bool{}, exempted: map[attest.MachineID]bool{}}
	standing, err := server.NewOwnStanding(store, audit.ReleaseKeys{Present: &release.PublicKey})
	if err != nil {
		return fail(errors.Join(err, store.Close()))
	}
	service, err := server.New(server.Config{Store: store, Standing: standing, Policy: policies.policy, ProveBanks: func() bool { return true }, KEK: kek, ReleaseKey: release, Log: log, Version: "redteam"})
	if err != nil {
		return fail(errors.Join(err, store.Close()))
	}
	nodes, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fail(errors.Join(err, store.Close()))
	}
	operators, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fail(errors.Join(err, nodes.Close(), store.Close()))
	}
	serving, cancel := context.WithCancel(ctx)
	group, serving := errgroup.WithContext(serving)
	group.Go(func() error { return service.ServeNodes(serving, nodes, cert) })
	group.Go(func() error { return service.ServeOperators(serving, operators, cert, issuer.Pool()) })
	end := func() error {
		cancel()
		return errors.Join(group.Wait(), store.Close())
	}
	owner, err := operator.New(operator.Config{URL: "https://" + operators.Addr().String(), CA: issuer.Pool(), Certificate: identity})
	if err != nil {
		return fail(errors.Join(err, end()))
	}
	return Target{
		Client:    &client.Client{URL: "https://" + nodes.Addr().String(), CA: issuer.Pool(), ReleaseKey: &release.PublicKey},
		TLS:       &tls.Config{RootCAs: issuer.Pool(), MinVersion: tls.VersionTLS13},
		Boot:      papertpm.GoodBoot(),
		CA:        ca,
		Owner:     owner,
		Operators: "https://" + operators.Addr().String(),
		Strict:    policies.demandHardware,
		SHA384:    policies.appraiseBySHA384,
		Exempt:    policies.exempt,
	}, func() error { owner.Close(); return end() }, nil
}

// policies is the policy of the service that is started to be attacked.
type policies struct {
	ca     *x509.Certificate
	denied []attest.DeniedImage
	image  *manifest.Manifest

	mu       sync.Mutex
	strict   map[attest.MachineID]bool // guarded by mu
	by384    map[attest.MachineID]bool // guarded by mu
	exempted map[attest.MachineID]bool // guarded by mu
}

func (p *policies) policy(_ context.Context, id attest.MachineID) (*attest.Policy, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	allowed := attest.TPMSoftware
	if p.strict[id] {
		allowed = attest.TPMHardware
	}
	var without []attest.TPMRule
	if p.by384[id] {
		without = []attest.TPMRule{{Machine: id, Reason: "redteam"}}
	}
	maker, err := attest.ParseTPMVendor(exemptMaker)
	if err != nil {
		return nil, err
	}
	exemptions := []attest.TPMRule{{Vendor: maker, Reason: "redteam"}}
	if p.exempted[id] {
		exemptions = append(exemptions, attest.TPMRule{Machine: id, Reason: "redteam"})
	}
	return &attest.Policy{
		ID: "redteam", Images: []*manifest.Manifest{p.image}, DeniedImages: p.denied,
		Firmware: attest.FirmwarePolicy{References: []attest.FirmwareReference{papertpm.GoodFirmware()}},
		TPM:      attest.TPMPolicy{Roots: []attest.TPMRoot{{Class: attest.TPMSoftware, Certificate: p.ca}}, Allowed: []attest.TPMClass{allowed}, ProveBanks: true, BankExemptions: exemptions, WithoutSHA256: without},
	}, nil
}

func (p *policies) demandHardware(t *papertpm.TPM) error {
	id, err := t.MachineID()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strict[id] = true
	return nil
}

func (p *policies) appraiseBySHA384(t *papertpm.TPM) error {
	id, err := t.MachineID()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.by384[id] = true
	return nil
}

func (p *policies) exempt(t *papertpm.TPM) error {
	id, err := t.MachineID()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exempted[id] = true
	return nil
}
