package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
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
	log      *slog.Logger
	identity *tpm.Identity // set by identify, nil if that failed
	machine  attest.MachineID
	told     bool // the service has said that it is that machine
	keysCost bool // an attempt of this boot its connection: other keys are not proven
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
	return &service{log: m.log, client: client.Client{URL: m.config.AttestURL, CA: pool, ReleaseKey: key, Patience: patience}}, nil
}

// identify makes the keys by which the service knows this TPM. The attestation
// key is one for this service only; its URL names it.
func (s *service) identify(t *tpm.TPM) (err error) {
	if s.identity, err = t.Identify(s.client.URL); err != nil {
		return err
	}
	return s.identified()
}

// identified notes who the identity is.
func (s *service) identified() (err error) {
	for _, problem := range s.identity.EK.Problems {
		s.log.Warn("what the TPM has of an endorsement certificate is not used", "err", problem)
	}
	s.machine, err = attest.EKMachineID(s.identity.EK.Public)
	return err
}

// reconsider makes the keys of the certificates that were passed over, if evidence was
// refused because nothing vouched for the key that was chosen instead, or because the
// service has no machine of that key: the persistent key that spoke against them may have
// been another's. It does so once.
func (s *service) reconsider(t *tpm.TPM, refusal error) error {
	var r *client.RefusedError
	if s.identity == nil || !s.identity.EK.PassedOver || !errors.As(refusal, &r) || r.Result == nil || !slices.ContainsFunc(r.Result.Findings, func(f attest.Finding) bool {
		return f.Code == attest.CodeEKCertificate || f.Code == attest.CodeMachineUnknown || f.Code == attest.CodeMachinePending
	}) {
		return nil
	}
	s.log.Info("the key of each endorsement certificate of the TPM is made, which may take long")
	identity, err := t.IdentifyByKeys(s.client.URL)
	if err != nil {
		return errors.Join(err, s.identify(t))
	}
	s.identity = identity
	return s.identified()
}

// attest runs the protocol once, over one connection: challenge, evidence,
// release. A verdict against the machine is a *client.RefusedError.
func (s *service) attest(ctx context.Context, e *early, disk attest.Disk) (_ *released, err error) {
	if s.identity == nil { // the TPM failed when it was to be another
		if err := s.identify(e.tpm); err != nil {
			return nil, err
		}
	}
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
			err = errors.Join(err, s.reconsider(e.tpm, err), e.tpm.Rest())
		}
	}()
	challenge, proven, err := s.challenge(ctx, session, e.tpm)
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

		ProveBanks: challenge.ProveBanks,
	})
	if err != nil {
		return nil, err
	}
	release, result, err := session.Evidence(ctx, s.machine, &api.EvidenceRequest{
		ChallengeID:     challenge.ID,
		ActivationProof: attest.ActivationProof(activation, challenge.ID, challenge.Nonce, s.identity.AKPublic),
		Evidence:        *evidence,
		KeysProven:      proven,
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

// challenge asks for the challenge that evidence answers. If the service says that
// it knows this TPM by another of its endorsement keys, that one is used from then
// on. If it asks for the other keys they are proven first; proven says that all were
// that the TPM has.
// A box is not held up by one that cannot be, or that takes longer than the connection
// lasts: the service asks again in the next boot.
func (s *service) challenge(ctx context.Context, session *client.Session, t *tpm.TPM) (_ *api.Challenge, proven bool, err error) {
	challenge, err := s.ask(ctx, session, s.identity.EK.Public, s.identity.EK.Certificates)
	if err != nil {
		return nil, false, err
	}
	if m := challenge.Machine; !m.IsZero() && m != s.machine {
		identity, err := t.IdentifyAs(s.client.URL, m)
		if err != nil {
			// What it is by its own choice the service will refuse, and say why.
			s.log.Warn("the service knows this TPM as a machine that it cannot be", "err", err)
			if err := s.identify(t); err != nil {
				return nil, false, err
			}
			return challenge, false, nil
		}
		s.log.Info("the service knows this TPM by another endorsement key, which is used", "machine", m.Short(), "key", identity.EK.Kind)
		s.identity, s.machine, s.told = identity, m, true
		if challenge, err = s.ask(ctx, session, identity.EK.Public, identity.EK.Certificates); err != nil {
			return nil, false, err
		}
	}
	if !challenge.ProveKeys || s.keysCost {
		return challenge, false, nil
	}
	n, err := t.EachOtherEK(func(ekPublic []byte) error {
		other, err := s.ask(ctx, session, ekPublic, [][]byte{})
		if err != nil {
			return err
		}
		activation, err := t.Activate(other.Credential, other.Secret)
		if err != nil {
			return err
		}
		defer clear(activation)
		return session.ProveKey(ctx, &api.KeyRequest{
			ChallengeID: other.ID, ActivationProof: attest.ActivationProof(activation, other.ID, other.Nonce, s.identity.AKPublic),
		})
	})
	if err != nil {
		s.log.Warn("an endorsement key of the TPM was not proven", "err", err)
	}
	if n == 0 && err == nil {
		return challenge, true, nil
	}
	// A certificate of which the TPM has no key is nothing to prove: it would only
	// cost the time of all keys again in each boot.
	proven = err == nil || errors.As(err, new(*tpm.UnusableKeysError))
	// The connection has one open challenge, and this one may be old by now.
	challenge, err = s.ask(ctx, session, s.identity.EK.Public, s.identity.EK.Certificates)
	s.keysCost = err != nil
	return challenge, proven, err
}

func (s *service) ask(ctx context.Context, session *client.Session, ekPublic []byte, certificates [][]byte) (*api.Challenge, error) {
	return session.Challenge(ctx, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ekPublic, EKCertificates: certificates, AKPublic: s.identity.AKPublic,
	})
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
