package redteam

import (
	"context"
	"fmt"
	"slices"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/papertpm"
)

// Codes of defences that are no findings of the verifier. docs/attacks.md
// explains them.
const (
	codeNoUnseal   = "tpm.no-unseal"    // the TPM does not open what was released
	codeNoRoute    = "http.no-route"    // the listener does not know the path
	codeNoIdentity = "http.no-identity" // the listener takes nobody without an identity
)

// Attack is one way to get secrets from a service, or to make it fail.
type Attack struct {
	Name      string   `json:"name"` // stable
	What      string   `json:"what"`
	Reference string   `json:"reference"` // where it was seen or described, or what it is about
	Want      []string `json:"want"`      // codes, one of which refuses it
	// Accepted: it begins with a machine that the service accepts.
	Accepted bool `json:"accepted"`

	run func(context.Context, *lab) (*answer, error)
}

// want lists finding codes.
func want(codes ...attest.Code) []string {
	var out []string
	for _, c := range codes {
		out = append(out, string(c))
	}
	return out
}

// Attacks returns all attacks in the order in which they are best run.
func Attacks() []Attack {
	return slices.Concat(messageAttacks(), quoteAttacks(), bankAttacks(), identityAttacks(), secondKeyAttacks(), logAttacks(), bootAttacks(), stateAttacks(), serviceAttacks())
}

// sent is an attack by a machine that change bends before it attests, and whose
// exchange bend bends before it is sent. Either may be nil.
func sent(change func(*box) error, bend func(*exchange) error) func(context.Context, *lab) (*answer, error) {
	return func(ctx context.Context, l *lab) (*answer, error) {
		b, err := l.box(ctx)
		if err != nil {
			return nil, err
		}
		if change != nil {
			if err := change(b); err != nil {
				return nil, err
			}
		}
		return b.attest(ctx, bend)
	}
}

// released returns a machine that was just given its secrets, and its release.
func (l *lab) released(ctx context.Context) (*box, *api.Release, error) {
	b, err := l.box(ctx)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.release(ctx)
	return b, r, err
}

// release makes a good attestation that must be accepted.
func (b *box) release(ctx context.Context) (*api.Release, error) {
	a, err := b.attest(ctx, nil)
	if err != nil {
		return nil, err
	}
	if a.release == nil {
		return nil, notAccepted(a)
	}
	return a.release, nil
}

func notAccepted(a *answer) error {
	return fmt.Errorf("the attack's own machine is refused: %s", a.text)
}

// unsealed is the answer of a TPM that is given a release which it must not
// open.
func unsealed(t *papertpm.TPM, r *api.Release) (*answer, error) {
	if _, err := t.Unwrap(r.Key); err != nil {
		return &answer{codes: []string{codeNoUnseal}, text: err.Error()}, nil
	}
	return &answer{codes: []string{}, text: "the TPM opened the release", release: r}, nil
}

// messageAttacks send again, or elsewhere, what was sent before.
func messageAttacks() []Attack {
	return []Attack{
		{
			Name: "quote-replayed", What: "the evidence for an earlier challenge answers a new one",
			Reference: "kairos-io/kairos#4828; RFC 9334, 10",
			Want:      want(attest.CodeQuoteChallenge),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				old, err := b.prepare(ctx)
				if err != nil {
					return nil, err
				}
				defer func() { _ = old.session.Close() }()
				return b.attest(ctx, func(x *exchange) error {
					x.request.Evidence = old.request.Evidence
					return nil
				})
			},
		},
		{
			Name: "challenge-answered-twice", What: "the same evidence is sent twice",
			Reference: "CWE-294; RFC 9334, 10",
			Want:      want(attest.CodeChallenge),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					_, err := x.send(ctx) // whatever it is answered with
					return err
				})
			},
		},
		{
			Name: "challenge-of-another-machine", What: "a machine answers the challenge that another was given",
			Reference: "CWE-639; CVE-2023-38201 (a registrar's challenge that is bypassed)",
			Want:      want(attest.CodeChallenge),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				victim, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				theirs, err := victim.prepare(ctx)
				if err != nil {
					return nil, err
				}
				defer func() { _ = theirs.session.Close() }()
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					x.request.ChallengeID = theirs.challenge.ID
					return b.tpm.QuoteAll(&x.request.Evidence, attest.PurposeUnlock, theirs.challenge.Nonce, x.session.Exporter())
				})
			},
		},
		{
			Name: "relayed", What: "a machine in between passes another's evidence on over its own connection",
			Reference: "Parno, Bootstrapping Trust in a Trusted Platform, HotSec 2008; Goldman et al., Linking Remote Attestation to Secure Tunnel Endpoints, STC 2006",
			Want:      want(attest.CodeQuoteConnection),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				// The machine's own connection, which ends in between.
				own, err := l.Client.Connect(ctx)
				if err != nil {
					return nil, err
				}
				defer func() { _ = own.Close() }()
				return b.attest(ctx, func(x *exchange) error {
					ev, err := b.tpm.Evidence(b.boot, attest.PurposeUnlock, x.challenge.Nonce, own.Exporter())
					if err != nil {
						return err
					}
					x.request.Evidence = *ev
					return nil
				})
			},
		},
		{
			Name: "release-replayed-after-reboot", What: "a recorded release is given to the machine again after a restart",
			Reference: "CWE-294; TPM 2.0 Library Part 1: the NULL hierarchy gets another seed with each TPM reset",
			Want:      []string{codeNoUnseal}, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, r, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Reset()
				b.boot.Measure(b.tpm)
				if _, err := b.tpm.MakeTransport(make([]byte, 32), make([]byte, 32)); err != nil {
					return nil, err
				}
				return unsealed(b.tpm, r)
			},
		},
		{
			Name: "release-opened-after-the-cap", What: "the running system has the TPM open its boot's release again",
			Reference: "oddlama, Bypassing disk encryption on systems with automatic TPM2 unlock, 2025; TPM 2.0 Library Part 3, 23.7",
			Want:      []string{codeNoUnseal}, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, r, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				if _, err := b.tpm.Unwrap(r.Key); err != nil {
					return nil, fmt.Errorf("before the cap: %w", err)
				}
				b.tpm.Extend(15, []byte("volume key"))
				return unsealed(b.tpm, r)
			},
		},
		{
			Name: "release-of-another-machine", What: "a release is given to another machine in the same state",
			Reference: "Parno, Bootstrapping Trust in a Trusted Platform, HotSec 2008; TPM 2.0 Library Part 3, 13.3",
			Want:      []string{codeNoUnseal}, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				_, r, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				other, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				return unsealed(other.tpm, r)
			},
		},
	}
}
