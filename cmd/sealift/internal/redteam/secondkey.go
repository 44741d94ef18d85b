package redteam

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/papertpm"
)

// secondKeyAttacks show another certified endorsement key of a TPM that is a machine
// already.
func secondKeyAttacks() []Attack {
	taken := want(attest.CodeTPMTaken)
	const credentialProtection = "TPM 2.0 Library Part 1, Credential Protection"
	return []Attack{
		{
			Name: "second-key-of-a-revoked-machine", What: "a revoked machine comes back with another certified endorsement key of its TPM", Reference: credentialProtection, Want: taken, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.revoked(ctx)
				if err != nil {
					return nil, err
				}
				second, err := b.secondKey()
				if err != nil {
					return nil, err
				}
				return second.attest(ctx, nil)
			},
		},
		{
			Name: "second-key-of-a-revoked-machine-installed", What: "a revoked machine is installed again, with another certified endorsement key of its TPM", Reference: credentialProtection, Want: taken, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.revoked(ctx)
				if err != nil {
					return nil, err
				}
				return b.installSecondKey(ctx)
			},
		},
		{
			Name: "two-machines-in-one-box", What: "an enrolled machine is installed as another one, with another certified endorsement key of its TPM", Reference: credentialProtection, Want: taken, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Reset()
				return b.installSecondKey(ctx)
			},
		},
		{
			Name: "second-key-beside-another-attestation-key", What: "a revoked machine comes back with another certified endorsement key, which it had proven, and with another attestation key",
			Reference: credentialProtection, Want: taken, Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				second, err := b.secondKey()
				if err != nil {
					return nil, err
				}
				id, err := b.proveAndRelease(ctx, second)
				if err != nil {
					return nil, err
				}
				if _, err := l.Owner.Revoke(ctx, id, reason); err != nil {
					return nil, err
				}
				ak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				if err != nil {
					return nil, err
				}
				second.tpm.AK = ak
				if second.tpm.AKPublic, err = papertpm.AKArea(&ak.PublicKey); err != nil {
					return nil, err
				}
				second.tpm.Reset()
				return second.attest(ctx, nil)
			},
		},
	}
}

// secondKey is the same TPM with another certified endorsement key, and another disk.
func (b *box) secondKey() (*box, error) {
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t, err := b.tpm.WithEK(ek)
	if err != nil {
		return nil, err
	}
	if err := b.l.ca.Equip(t); err != nil {
		return nil, err
	}
	boot, err := b.l.Boot.OnDisk(newGUID(), false)
	if err != nil {
		return nil, err
	}
	return &box{l: b.l, tpm: t, boot: boot}, nil
}

// installSecondKey has the second key enrolled by an install record, if the service
// takes it, and gives evidence.
func (b *box) installSecondKey(ctx context.Context) (*answer, error) {
	second, err := b.secondKey()
	if err != nil {
		return nil, err
	}
	if err := second.enrol(ctx); err != nil {
		return nil, err
	}
	return second.attest(ctx, nil)
}

// proveAndRelease proves another endorsement key and makes a good attestation that
// must be accepted, over one connection.
func (b *box) proveAndRelease(ctx context.Context, other *box) (id attest.MachineID, err error) {
	a, err := b.attest(ctx, func(x *exchange) error {
		ak := tpm2.Marshal(b.tpm.AKPublic)
		ch, err := x.session.Challenge(ctx, &api.ChallengeRequest{
			Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: tpm2.Marshal(other.tpm.EKPublic), EKCertificates: other.tpm.EKCertificates, AKPublic: ak,
		})
		if err != nil {
			return err
		}
		secret, err := other.tpm.Activate(ch.Credential, ch.Secret)
		if err != nil {
			return err
		}
		err = x.session.ProveKey(ctx, &api.KeyRequest{ChallengeID: ch.ID, ActivationProof: attest.ActivationProof(secret, ch.ID, ch.Nonce, ak)})
		if err != nil {
			return err
		}
		// The connection has one challenge at a time.
		again, err := b.answer(ctx, x.session)
		if err != nil {
			return err
		}
		again.request.KeysProven = true
		*x, id = *again, again.machine
		return nil
	})
	if err == nil && a.release == nil {
		err = notAccepted(a)
	}
	return id, err
}
