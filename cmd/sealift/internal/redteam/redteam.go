// Package redteam attacks an attestation service as its node API can be
// attacked, with TPMs on paper that sign whatever a TPM never would. Attacks
// lists them, Run runs them against a Target and says of each whether it was
// refused, and by which finding. SelfTarget is a service in this process.
//
// An attack is a good attestation with one thing wrong. Its machine's
// endorsement key is certified by an authority that the target trusts for the
// class "software", or else by one that it does not trust; then every attempt
// has the finding ek.untrusted too, and what needs an accepted boot is not run.
package redteam

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/papertpm"
)

// Target is a service under attack.
type Target struct {
	Client *client.Client // of the node API
	// TLS is a configuration with which the node API can be dialled by HTTP.
	TLS *tls.Config
	// Boot is a boot that the service accepts of a machine; the attacks
	// imitate it, each on a disk of its own.
	Boot *papertpm.Boot
	// CA certifies endorsement keys, and the service trusts it for the class
	// "software". Optional; see the package.
	CA *papertpm.CA
	// Owner is what an operator of the service does for the attacks. Optional;
	// without it nothing that needs an enrolled machine is run.
	Owner Owner
	// Operators is the URL of the operator API, https://host:port. Optional.
	Operators string
	// Strict returns a machine for which the policy demands a hardware TPM, and
	// whose endorsement key CA certifies. Optional; without it the attack with
	// a software TPM is an endorsement key of an authority of its own.
	Strict func(*papertpm.TPM) error
	// SHA384 has the policy appraise a machine by SHA-384. Optional; without it
	// the machines that have no SHA-256 are refused for that, too.
	SHA384 func(*papertpm.TPM) error
	// Exempt has the policy exempt a machine from the proof of its banks. Optional;
	// without it the machines that misuse an exemption have none.
	Exempt func(*papertpm.TPM) error
}

// Owner enrols and revokes the machines of the attacks.
type Owner interface {
	Install(ctx context.Context, rec *api.InstallRecord) (*api.Machine, error)
	Revoke(ctx context.Context, id attest.MachineID, reason string) (*api.Machine, error)
}

// Verdicts on an attack.
const (
	Refused  = "refused"  // by one of the findings that are its own
	Wrong    = "wrong"    // refused, but not by its own finding
	Accepted = "accepted" // it succeeded
	NotRun   = "not run"  // the target does not allow to try it
	Failed   = "failed"   // it could not be tried: whether it is refused is not known
)

// Report is what became of one attack.
type Report struct {
	Attack  string   `json:"attack"`
	Verdict string   `json:"verdict"`
	Codes   []string `json:"codes"` // of all findings, or of the error that answered
	Want    []string `json:"want"`  // one of these is its own
	Detail  string   `json:"detail,omitempty"`
}

// errNotRun is wrapped by the errors of attacks that the target does not allow
// to try.
var errNotRun = errors.New("not run")

func notRun(why string) error { return fmt.Errorf("%w: %s", errNotRun, why) }

// lab is a run.
type lab struct {
	Target
	ca       *papertpm.CA // Target.CA, or one that is not trusted
	accepted bool         // the target accepts the lab's own machines
	machines []attest.MachineID
}

// reason is what the target's audit log says of the lab's machines.
const reason = "machine of sealift attest redteam"

// Run runs the attacks one after the other and tells report of each. It ends
// with an error if ctx does, or if the target cannot be attacked at all: it
// does not answer, or does not accept a good machine that it should. The
// machines that were enrolled are revoked at the end.
func Run(ctx context.Context, t Target, attacks []Attack, report func(Report)) (err error) {
	l := &lab{Target: t, ca: t.CA}
	if l.ca == nil {
		if l.ca, err = papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)); err != nil {
			return err
		}
	}
	// The imitated machine may be on record there, with its serial number: another's
	// endorsement key with that would be refused before what the attacks are about.
	boot := *t.Boot
	boot.SMBIOS = withSerial(boot.SMBIOS, "redteam-"+newGUID())
	l.Boot = &boot
	defer func() { err = errors.Join(err, l.clean(context.WithoutCancel(ctx))) }()
	if err := l.good(ctx); err != nil {
		return err
	}
	for _, a := range attacks {
		report(l.run(ctx, a))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	// None of it may have hurt the service.
	if err := l.good(ctx); err != nil {
		return fmt.Errorf("after the attacks: %w", err)
	}
	return nil
}

// good has the target answer, and accept a good machine if it should.
func (l *lab) good(ctx context.Context) error {
	b, err := l.box(ctx)
	if err != nil {
		return fmt.Errorf("a good machine: %w", err)
	}
	a, err := b.attest(ctx, nil)
	if err != nil {
		return fmt.Errorf("a good machine: %w", err)
	}
	l.accepted = a.release != nil
	switch trusted := l.CA != nil && l.Owner != nil; {
	case trusted && !l.accepted:
		return fmt.Errorf("a good machine is refused: %s", a.text)
	case !trusted && l.accepted:
		return errors.New("a machine was given a release although nobody vouches for its TPM or enrolled it")
	}
	return nil
}

// clean revokes the lab's machines.
func (l *lab) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	for _, id := range l.machines {
		if _, err := l.Owner.Revoke(ctx, id, reason); err != nil {
			errs = append(errs, fmt.Errorf("revoke the lab's machine %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// run runs one attack.
func (l *lab) run(ctx context.Context, a Attack) Report {
	r := Report{Attack: a.Name, Codes: []string{}, Want: a.Want}
	if a.Accepted && !l.accepted {
		r.Verdict, r.Detail = NotRun, "it needs a machine that the service accepts: give --ek-ca and --identity"
		return r
	}
	got, err := a.run(ctx, l)
	switch {
	case errors.Is(err, errNotRun):
		r.Verdict, r.Detail = NotRun, err.Error()
		return r
	case err != nil:
		r.Verdict, r.Detail = Failed, err.Error()
		return r
	}
	r.Codes, r.Detail = got.codes, got.text
	switch own := slices.ContainsFunc(got.codes, func(c string) bool { return slices.Contains(a.Want, c) }); {
	case got.release != nil:
		r.Verdict = Accepted
	case own:
		r.Verdict = Refused
	default:
		r.Verdict = Wrong
	}
	return r
}

// box is one of the lab's machines.
type box struct {
	l    *lab
	tpm  *papertpm.TPM
	boot *papertpm.Boot
}

// box makes a machine with a new TPM and a new disk, which boots as the target
// accepts, and enrols it where that can be done.
func (l *lab) box(ctx context.Context) (*box, error) {
	b, err := l.stranger()
	if err != nil || l.Owner == nil || l.CA == nil {
		return b, err
	}
	return b, b.enrol(ctx)
}

// stranger makes a machine that is not enrolled.
func (l *lab) stranger() (*box, error) {
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := papertpm.New(ek)
	if err != nil {
		return nil, err
	}
	if err := l.ca.Equip(t); err != nil {
		return nil, err
	}
	boot, err := l.Boot.OnDisk(newGUID(), false)
	if err != nil {
		return nil, err
	}
	return &box{l: l, tpm: t, boot: boot}, nil
}

func (b *box) enrol(ctx context.Context) error {
	id, err := b.tpm.MachineID()
	if err != nil {
		return err
	}
	_, err = b.l.Owner.Install(ctx, &api.InstallRecord{
		EKPublic: tpm2.Marshal(b.tpm.EKPublic), EKCertificates: b.tpm.EKCertificates, DiskGUID: b.boot.Disk.GUID,
		Serial: "redteam-" + id.Short(), Image: reason, Finished: time.Now().UTC(),
	})
	if err != nil {
		return fmt.Errorf("enrol the lab's machine: %w", err)
	}
	b.l.machines = append(b.l.machines, id)
	return nil
}

// newGUID returns a random GUID (RFC 9562, version 4).
func newGUID() string {
	var g [16]byte
	// crypto/rand.Read never fails.
	_, _ = rand.Read(g[:])
	g[6], g[8] = g[6]&0x0f|0x40, g[8]&0x3f|0x80
	h := hex.EncodeToString(g[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// exchange is one attestation before its evidence is sent.
type exchange struct {
	session   *client.Session
	challenge *api.Challenge
	request   *api.EvidenceRequest
	machine   attest.MachineID // whose release is expected
}

// answer is the service's.
type answer struct {
	codes   []string     // of the findings, or the code of an error
	text    string       // of the first
	release *api.Release // nil if it was refused
}

// attest makes one attestation: connection, challenge, activation, boot and
// evidence. bend, if it is not nil, changes what is sent, after everything was
// signed.
func (b *box) attest(ctx context.Context, bend func(*exchange) error) (_ *answer, err error) {
	x, err := b.prepare(ctx)
	if refusal := new(answer); refusal.of(err) {
		return refusal, nil
	}
	if err != nil {
		return nil, err
	}
	// The answer is what counts, not how the connection ends.
	defer func() { _ = x.session.Close() }()
	if bend != nil {
		if err := bend(x); err != nil {
			return nil, err
		}
	}
	return x.send(ctx)
}

// prepare does everything but sending the evidence.
func (b *box) prepare(ctx context.Context) (_ *exchange, err error) {
	s, err := b.l.Client.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	return b.answer(ctx, s)
}

// answer asks for a challenge over a connection and makes the evidence for it.
func (b *box) answer(ctx context.Context, s *client.Session) (*exchange, error) {
	ek, ak := tpm2.Marshal(b.tpm.EKPublic), tpm2.Marshal(b.tpm.AKPublic)
	ch, err := s.Challenge(ctx, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: ek, EKCertificates: b.tpm.EKCertificates, AKPublic: ak,
	})
	if err != nil {
		return nil, err
	}
	b.tpm.Prove = b.tpm.Prove || ch.ProveBanks
	b.boot.Measure(b.tpm)
	ev, err := b.tpm.Evidence(b.boot, attest.PurposeUnlock, ch.Nonce, s.Exporter())
	if err != nil {
		return nil, err
	}
	secret, err := b.tpm.Activate(ch.Credential, ch.Secret)
	if err != nil {
		// A TPM without the endorsement key cannot: it guesses.
		secret = make(attest.Secret, 32)
	}
	machine, err := b.tpm.MachineID()
	if err != nil {
		return nil, err
	}
	return &exchange{session: s, challenge: ch, machine: machine, request: &api.EvidenceRequest{
		ChallengeID: ch.ID, Evidence: *ev, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak),
	}}, nil
}

func (x *exchange) send(ctx context.Context) (*answer, error) {
	r, _, err := x.session.Evidence(ctx, x.machine, x.request)
	if refusal := new(answer); refusal.of(err) {
		return refusal, nil
	}
	if err != nil {
		return nil, err
	}
	return &answer{codes: []string{}, text: "the service released its secrets: " + r.ID, release: r}, nil
}

// of reports whether err is a refusal, and takes it.
func (a *answer) of(err error) bool {
	var verdict *client.RefusedError
	var failure *client.ServiceError
	switch {
	case errors.As(err, &verdict):
		for _, f := range verdict.Result.Findings {
			if !slices.Contains(a.codes, string(f.Code)) {
				a.codes = append(a.codes, string(f.Code))
			}
		}
		a.text = verdict.Error()
	case errors.As(err, &failure) && failure.Status < 500 && failure.RetryAfter == 0:
		a.codes, a.text = []string{failure.Answer.Code}, failure.Error()
	default:
		return false
	}
	return true
}
