package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/image/sign/bundle"
)

// patience is for how long evidence that the service has no room for is kept
// and sent again: a challenge does not last much longer, and the screen should
// say something.
const patience = 30 * time.Second

// service is the attestation service, and who this machine is to it.
type service struct {
	client   client.Client
	identity *tpm.Identity // set by identify
	machine  attest.MachineID
}

// released is what the service gave this boot.
type released struct {
	id        string
	image     string        // of the verdict, for people
	issued    time.Time     // by the service's clock, signed
	transport attest.Secret // proves the confirmation
	secrets   *api.Secrets
	// session is the connection that it came over, for the confirmation.
	session *client.Session
	// reportAfter is how often the service wants reports, seconds; 0: never.
	reportAfter int
	recovered   bool // people typed the secrets: nothing of the above is set, and there is nothing to confirm
}

// newService makes a client from the measured configuration.
func (m *machine) newService() (*service, error) {
	const hint = "the image was built with broken attestation settings: build it again"
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(m.config.AttestCA)) {
		return nil, advise(errors.New("the attestation CA in the configuration is no certificate"), hint)
	}
	key, err := bundle.PublicKey([]byte(m.config.ReleaseKey))
	if err != nil {
		return nil, advise(fmt.Errorf("the release key in the configuration: %w", err), hint)
	}
	return &service{client: client.Client{URL: m.config.AttestURL, CA: pool, ReleaseKey: key, Patience: patience}}, nil
}

// identify makes the keys by which the service knows this TPM. The attestation
// key is one for this service only; its URL names it.
func (s *service) identify(t *tpm.TPM) (err error) {
	if s.identity, err = t.Identify(s.client.URL); err != nil {
		return err
	}
	s.machine, err = attest.EKMachineID(s.identity.EK.Public)
	return err
}

// attest runs the protocol once, over one connection: challenge, evidence,
// release. A verdict against the machine is a *client.RefusedError.
func (s *service) attest(ctx context.Context, e *early, disk attest.Disk) (_ *released, err error) {
	session, err := s.client.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// What was received counts, not how the connection ends.
			_ = session.Close()
		}
	}()
	// A box that is refused is switched off sooner or later, and a TPM must
	// not take that for an attack.
	defer func() {
		if err != nil {
			err = errors.Join(err, e.tpm.Rest())
		}
	}()
	challenge, err := session.Challenge(ctx, &api.ChallengeRequest{
		Version:        api.Version,
		Purpose:        attest.PurposeUnlock,
		EKPublic:       s.identity.EK.Public,
		EKCertificates: s.identity.EK.Certificates,
		AKPublic:       s.identity.AKPublic,
	})
	if err != nil {
		return nil, err
	}
	activation, err := e.tpm.Activate(challenge.Credential, challenge.Secret)
	if err != nil {
		return nil, err
	}
	defer clear(activation)
	evidence, err := e.tpm.Collect(ctx, tpm.CollectInput{
		Purpose:  attest.PurposeUnlock,
		Nonce:    challenge.Nonce,
		Exporter: session.Exporter(),
		EventLog: e.eventLog,
		SMBIOS:   e.smbios,
		Disk:     disk,
	})
	if err != nil {
		return nil, err
	}
	release, result, err := session.Evidence(ctx, s.machine, &api.EvidenceRequest{
		ChallengeID:     challenge.ID,
		ActivationProof: attest.ActivationProof(activation, challenge.ID, challenge.Nonce, s.identity.AKPublic),
		Evidence:        *evidence,
	})
	if err != nil {
		return nil, err
	}
	transport, err := e.tpm.Unwrap(release.Key)
	if err != nil {
		return nil, err
	}
	secrets, err := api.OpenSecrets(transport, release)
	if err != nil {
		return nil, err
	}
	r := &released{id: release.ID, issued: release.Issued, transport: transport, secrets: secrets, session: session, reportAfter: release.ReportAfter}
	if result != nil {
		r.image = result.Image
	}
	return r, nil
}

// confirm tells the service how the release ended. It does not hold up a boot
// for long: the next boot's evidence tells the same.
func (m *machine) confirm(ctx context.Context, r *released, outcome string) {
	ctx, cancel := context.WithTimeout(ctx, confirmLimit)
	defer cancel()
	if err := r.session.Confirm(ctx, r.transport, r.id, outcome); err != nil {
		m.log.Warn("the service does not know yet how the boot went on", "outcome", outcome, "err", err)
	}
	clear(r.transport)
	// The answer is what counts, not how the connection ends.
	_ = r.session.Close()
}
