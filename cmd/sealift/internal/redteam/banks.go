package redteam

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
)

// bankAttacks are of machines whose firmware measures into one bank alone. Whatever
// it booted filled another, which is active, too, with a good boot, and keeps the
// firmware's back: SHA-256, of which it says that it is off, or a bank beside it.
func bankAttacks() []Attack {
	const carteBlanche = "CVE-2021-42299 (TPM Carte Blanche)"
	return []Attack{
		{
			Name: "bank-hidden", What: "the bank that firmware measures into is said to be off, with the TPM's own list of its banks",
			Reference: carteBlanche,
			Want:      want(attest.CodeBankHidden),
			run:       sent(hideSHA256, nil),
		},
		{
			Name: "bank-hidden-without-proof", What: "the bank that firmware measures into is said to be off, with nothing but a quote of it that covers no PCR",
			Reference: carteBlanche,
			Want:      want(attest.CodeBankUnproven),
			run: sent(hideSHA256, func(x *exchange) error {
				x.request.Evidence.Banks = nil
				return nil
			}),
		},
		{
			Name: "bank-list-altered", What: "a bank is taken out of the TPM's list of its banks",
			Reference: carteBlanche + "; TPM 2.0 Library Part 3, 18.5",
			Want:      want(attest.CodeBankUnproven),
			run: sent(hideSHA256, func(x *exchange) error {
				l, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](x.request.Evidence.Banks.List)
				if err != nil {
					return err
				}
				listed(l, tpm2.TPMAlgSHA256, 0)
				x.request.Evidence.Banks.List = tpm2.Marshal(l)
				return nil
			}),
		},
		{
			Name: "bank-list-of-another-machine", What: "the list of a TPM on which SHA-256 is off, for the same challenge",
			Reference: "Parno, Bootstrapping Trust in a Trusted Platform, HotSec 2008",
			Want:      want(attest.CodeQuoteSignature),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				if err := hideSHA256(b); err != nil {
					return nil, err
				}
				other, err := l.stranger()
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					other.tpm.PCRs = b.tpm.PCRs
					theirs := x.request.Evidence
					if err := other.tpm.QuoteAll(&theirs, attest.PurposeUnlock, x.challenge.Nonce, x.session.Exporter()); err != nil {
						return err
					}
					x.request.Evidence.Banks = theirs.Banks
					return nil
				})
			},
		},
		{
			Name: "bank-list-replayed", What: "the TPM's list for an earlier challenge, when SHA-256 was off",
			Reference: carteBlanche + "; RFC 9334, 10",
			Want:      want(attest.CodeQuoteChallenge),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				if err := b.bySHA384(); err != nil {
					return nil, err
				}
				old, err := b.prepare(ctx)
				if err != nil {
					return nil, err
				}
				defer func() { _ = old.session.Close() }()
				b.tpm.Reset()
				if err := hideSHA256(b); err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					x.request.Evidence.Banks = old.request.Evidence.Banks
					return nil
				})
			},
		},
		{
			Name: "bank-list-from-before-the-reset", What: "the TPM's list from before a reset, when SHA-256 was off",
			Reference: carteBlanche + "; TPM 2.0 Library Part 2, 10.11.1",
			Want:      want(attest.CodeClock),
			run: sent(func(b *box) error {
				b.tpm.OnTime = func(now *tpm2.TPMSTimeInfo) { now.ClockInfo.ResetCount-- }
				b.tpm.OnBanks = func(a *tpm2.TPMSAttest) { a.ClockInfo.ResetCount-- }
				return b.bySHA384()
			}, nil),
		},
		{
			Name: "bank-list-from-before-a-restart", What: "the TPM's list from before a restart, which a saved audit session outlives, signed after it",
			Reference: "CVE-2018-6622 (Han et al., A Bad Dream: Subverting Trusted Platform Module While You Are Sleeping, USENIX Security 2018)",
			Want:      want(attest.CodeClock),
			run: sent(func(b *box) error {
				b.tpm.OnTime = func(now *tpm2.TPMSTimeInfo) { now.ClockInfo.RestartCount-- }
				return b.bySHA384()
			}, nil),
		},
		{
			Name: "bank-turned-off", What: "SHA-256 is turned off, between two boots, on a machine whose firmware measures into nothing else",
			Reference: carteBlanche,
			Want:      want(attest.CodeBankTurnedOff), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Reset()
				if err := b.bySHA384(); err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "bank-kept-back", What: "a bank that firmware measures into is kept back beside SHA-256, with the TPM's own list of its banks",
			Reference: carteBlanche,
			Want:      want(attest.CodeBankHidden),
			run:       sent(keepSHA384, nil),
		},
		{
			Name: "bank-kept-back-without-proof", What: "a bank that firmware measures into is kept back beside SHA-256, with nothing, where the policy wants the TPM's list of its banks",
			Reference: carteBlanche,
			Want:      want(attest.CodeBankUnproven),
			run: sent(keepSHA384, func(x *exchange) error {
				if !x.challenge.ProveBanks {
					return notRun("the policy of the service does not want the proof: set tpm.proveBanks")
				}
				x.request.Evidence.Banks = nil
				return nil
			}),
		},
		{
			Name: "bank-exemption-claimed", What: "a bank is kept back, and the machine says that its TPM cannot sign the list, as if it were one that the policy exempts",
			Reference: carteBlanche, Want: want(attest.CodeBankUnproven),
			run: sent(keepSHA384, claimUnable),
		},
		{
			Name: "bank-exemption-of-another-maker", What: "the same, with a certificate that names a maker whose TPMs the policy exempts, of an authority that is not there for that maker", Reference: "TCG EK Credential Profile", Want: want(attest.CodeBankUnproven, attest.CodeTPMVendor),
			run: sent(func(b *box) error {
				if err := b.ofMaker(exemptMaker); err != nil {
					return err
				}
				return keepSHA384(b)
			}, claimUnable),
		},
		{
			Name: "bank-exemption-after-a-proof", What: "a machine that the policy exempts, and whose TPM gave the list in an earlier boot, keeps a bank back and says that it cannot", Reference: carteBlanche, Want: want(attest.CodeBankUnproven), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				if err := b.exempt(); err != nil {
					return nil, err
				}
				b.tpm.Reset()
				if err := keepSHA384(b); err != nil {
					return nil, err
				}
				return b.attest(ctx, claimUnable)
			},
		},
		{
			Name: "bank-exemption-without-sha256", What: "a machine that the policy exempts says that SHA-256 is off, and that its TPM cannot prove it", Reference: carteBlanche, Want: want(attest.CodeBankUnproven),
			run: sent(func(b *box) error {
				if err := b.exempt(); err != nil {
					return err
				}
				return b.bySHA384()
			}, func(x *exchange) error {
				x.request.Evidence.Banks, x.request.Evidence.NoBanks = nil, unable
				return nil
			}),
		},
	}
}

// exemptMaker is a TPM maker whose TPMs the service in this process exempts from the
// proof of their banks: TCG Vendor ID Registry, Infineon.
const exemptMaker = "id:49465800"

// unable is what a machine says whose TPM cannot sign the list of its banks.
const unable = "it has no TPM2_GetSessionAuditDigest"

// claimUnable takes the TPM's list out and says that there is none.
func claimUnable(x *exchange) error {
	if !x.challenge.ProveBanks {
		return notRun("the policy of the service does not want the proof: set tpm.proveBanks")
	}
	x.request.Evidence.Banks, x.request.Evidence.NoBanks = nil, unable
	return nil
}

// ofMaker has the lab's authority name another maker in the endorsement certificate.
func (b *box) ofMaker(vendor string) error {
	ek, ok := b.tpm.EK.(crypto.Signer)
	if !ok {
		return fmt.Errorf("endorsement key of type %T", b.tpm.EK)
	}
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: vendor}}})
	if err != nil {
		return err
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		return err
	}
	c, err := b.l.ca.Certify(ek.Public(), func(c *x509.Certificate) { c.ExtraExtensions[0].Value = san })
	if err != nil {
		return err
	}
	b.tpm.EKCertificates = [][]byte{c.Raw}
	return nil
}

// exempt has the policy exempt the machine where it can be told to. Where it cannot,
// the machine is refused for want of the proof in any case.
func (b *box) exempt() error {
	if b.l.Exempt == nil {
		return nil
	}
	return b.l.Exempt(b.tpm)
}

// keepSHA384 has a machine keep SHA-384 back, which its TPM lists as active beside
// SHA-256. The TPM gives its list whatever it was asked.
func keepSHA384(b *box) error {
	b.boot.Banks = slices.DeleteFunc(slices.Clone(b.boot.Banks), func(bank string) bool { return bank == "sha384" })
	b.tpm.Prove = true
	b.tpm.OnList = func(l *tpm2.TPMLPCRSelection) { listed(l, tpm2.TPMAlgSHA384, 0xff) }
	return nil
}

// hideSHA256 has a machine keep SHA-256 back, which its TPM lists as active.
func hideSHA256(b *box) error {
	b.tpm.OnList = func(l *tpm2.TPMLPCRSelection) { listed(l, tpm2.TPMAlgSHA256, 0xff) }
	return b.bySHA384()
}

// listed sets which PCRs of a bank are active.
func listed(l *tpm2.TPMLPCRSelection, bank tpm2.TPMAlgID, bits byte) {
	for i := range l.PCRSelections {
		if s := &l.PCRSelections[i]; s.Hash == bank {
			s.PCRSelect = []byte{bits, bits, bits}
		}
	}
}

// bySHA384 has a machine boot as the target accepts, with only the SHA-384 bank, and
// the policy appraise it by that where it can be told to.
func (b *box) bySHA384() error {
	b.addBank("sha384")
	boot := *b.boot
	boot.Banks = slices.DeleteFunc(slices.Clone(boot.Banks), func(bank string) bool { return bank != "sha384" })
	b.boot = &boot
	if b.l.SHA384 == nil {
		return nil
	}
	if err := b.l.SHA384(b.tpm); err != nil {
		return fmt.Errorf("appraise the machine by SHA-384: %w", err)
	}
	return nil
}
