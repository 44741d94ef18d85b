package imagetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
	"github.com/sealift/sealift/image/manifest"
)

// observed is what a box sent, and what the verifier says of it.
type observed struct {
	evidence attest.Evidence
	result   *attest.Result
}

// witness is a Store that shows the first piece of evidence that the service
// has decided on.
type witness struct {
	server.Store
	seen chan *observed // has room for one
}

// Commit implements server.Store.
func (w *witness) Commit(ctx context.Context, c *server.Change) error {
	if err := w.Store.Commit(ctx, c); err != nil || c.Evidence == nil {
		return err
	}
	var stored api.StoredEvidence
	if err := json.Unmarshal(c.Evidence, &stored); err != nil {
		return fmt.Errorf("read back the evidence: %w", err)
	}
	o := &observed{evidence: stored.Evidence}
	for _, e := range c.Events {
		if v, ok := e.Data.(audit.Verdict); ok {
			o.result = v.Result
		}
	}
	select {
	case w.seen <- o:
	default: // the box asks again; the first answer is enough
	}
	return nil
}

// service is the attestation service of one test: the real one, with a policy
// that allows this image and knows no machine.
type service struct {
	witness *witness
	store   *sqlstore.Store
	server  *server.Server
}

func newService(ctx context.Context, dir string, m *manifest.Manifest, ca vm.TPMCA, log *slog.Logger) (*service, error) {
	roots, err := tpmRoots(ca)
	if err != nil {
		return nil, err
	}
	// Nothing is ever released, so these keys are used for nothing.
	kek := make(attest.Secret, server.KEKSize)
	if _, err := rand.Read(kek); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	release, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	store, err := sqlstore.Create(ctx, filepath.Join(dir, "service.db"))
	if err != nil {
		return nil, err
	}
	s := &service{store: store, witness: &witness{Store: store, seen: make(chan *observed, 1)}}
	policy := &attest.Policy{
		ID: "image test", Images: []*manifest.Manifest{m},
		TPM: attest.TPMPolicy{Roots: roots, Allowed: []attest.TPMClass{attest.TPMSoftware}},
	}
	standing, err := server.NewOwnStanding(store, audit.ReleaseKeys{Present: &release.PublicKey})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	s.server, err = server.New(server.Config{
		Store: s.witness, Standing: standing, KEK: kek, ReleaseKey: release, Log: log,
		// The box is switched off in the middle of its connection.
		Limits: server.Limits{Drain: time.Second},
		Policy: func(context.Context, attest.MachineID) (*attest.Policy, error) { return policy, nil },
	})
	if err == nil {
		err = s.server.Start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return s, nil
}

// serve answers until ctx ends.
func (s *service) serve(ctx context.Context, ln net.Listener, cert tls.Certificate) error {
	return s.server.ServeNodes(ctx, ln, cert)
}

// tpmRoots are the certificates that the software TPM's own is issued by.
func tpmRoots(ca vm.TPMCA) ([]attest.TPMRoot, error) {
	var roots []attest.TPMRoot
	for i, file := range []string{ca.RootFile(), ca.IssuerFile()} {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("the software TPM's authority: %w", err)
		}
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("the software TPM's authority: %s holds no certificate", file)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the software TPM's authority: %s: %w", file, err)
		}
		roots = append(roots, attest.TPMRoot{Class: attest.TPMSoftware, Certificate: c, Intermediate: i == 1})
	}
	return roots, nil
}
