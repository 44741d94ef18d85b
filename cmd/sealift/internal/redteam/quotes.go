package redteam

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/papertpm"
)

// quotes has every quote say something else about its PCRs.
func quotes(change func(*tpm2.TPMSQuoteInfo)) func(*box) error {
	return func(b *box) error {
		b.tpm.OnQuote = func(_ string, a *tpm2.TPMSAttest) {
			if q, err := a.Attested.Quote(); err == nil {
				change(q)
			}
		}
		return nil
	}
}

// quoteAttacks send quotes that prove less than they seem to.
func quoteAttacks() []Attack {
	return []Attack{
		{
			Name: "quote-over-no-pcr", What: "a quote that covers no PCR",
			Reference: "CVE-2022-0317",
			Want:      want(attest.CodeQuoteEmpty),
			run:       sent(quotes(func(q *tpm2.TPMSQuoteInfo) { q.PCRSelect = tpm2.TPMLPCRSelection{} }), nil),
		},
		{
			Name: "quote-over-other-pcrs", What: "a quote that covers PCR 16 and 23, which software can reset",
			Reference: "CVE-2024-29039",
			Want:      want(attest.CodeQuoteSelection),
			run: sent(quotes(func(q *tpm2.TPMSQuoteInfo) {
				for i := range q.PCRSelect.PCRSelections {
					q.PCRSelect.PCRSelections[i].PCRSelect = []byte{0, 0, 0x81}
				}
			}), nil),
		},
		{
			Name: "quote-over-fewer-pcrs", What: "a quote that leaves PCR 7 out",
			Reference: "CVE-2022-0317",
			Want:      want(attest.CodeQuoteSelection),
			run: sent(quotes(func(q *tpm2.TPMSQuoteInfo) {
				for i := range q.PCRSelect.PCRSelections {
					q.PCRSelect.PCRSelections[i].PCRSelect[0] &^= 0x80
				}
			}), nil),
		},
		{
			Name: "quote-without-magic", What: "signed data that no TPM made, as it does not begin with TPM_GENERATED_VALUE",
			Reference: "CVE-2024-29038, CVE-2024-29040",
			Want:      want(attest.CodeQuoteFormat),
			run: sent(func(b *box) error {
				b.tpm.RawQuote = func(q []byte) []byte {
					q = slices.Clone(q)
					q[0] ^= 0xff
					return q
				}
				return nil
			}, nil),
		},
		{
			Name: "quote-is-a-certification", What: "a TPM2_CertifyCreation in the place of the quote",
			Reference: "TPM 2.0 Library Part 2, 10.12.12: the type is part of what is signed",
			Want:      want(attest.CodeQuoteFormat),
			run: sent(nil, func(x *exchange) error {
				for i := range x.request.Evidence.Quotes {
					q := &x.request.Evidence.Quotes[i]
					q.Attest, q.Signature = x.request.Evidence.Transport.Certify, x.request.Evidence.Transport.Signature
				}
				return nil
			}),
		},
		{
			Name: "quote-of-an-unrestricted-key", What: "an attestation key that signs anything",
			Reference: "google/go-attestation#112: TPM2_Sign to fake quotes",
			Want:      want(attest.CodeAKAttributes),
			run: sent(func(b *box) error {
				b.tpm.AKPublic.ObjectAttributes.Restricted = false
				return nil
			}, nil),
		},
		{
			Name: "quote-of-another-key", What: "a quote that another key signed",
			Reference: "CVE-2021-3406; TPM 2.0 Library Part 3, 18.4",
			Want:      want(attest.CodeQuoteSignature),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				other, err := l.stranger()
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) (err error) {
					q := &x.request.Evidence.Quotes[0]
					q.Signature, err = other.tpm.Sign(q.Attest)
					return err
				})
			},
		},
		{
			Name: "sha1-signature", What: "a quote with a SHA-1 signature",
			Reference: "Stevens et al., The first collision for full SHA-1, CRYPTO 2017",
			Want:      want(attest.CodeQuoteFormat),
			run: sent(func(b *box) error {
				b.tpm.SignHash = tpm2.TPMAlgSHA1
				return nil
			}, nil),
		},
		{
			Name: "sha1-downgrade", What: "only the SHA-1 bank is quoted",
			Reference: "google/go-attestation#112: a PCR counts as verified if one of its values replays",
			Want:      want(attest.CodeQuoteDowngraded),
			run: sent(func(b *box) error {
				b.addBank("sha1")
				return nil
			}, func(x *exchange) error {
				ev := &x.request.Evidence
				ev.Quotes = slices.DeleteFunc(ev.Quotes, func(q attest.Quote) bool { return q.Bank != "sha1" })
				return nil
			}),
		},
		{
			Name: "bank-not-quoted", What: "an active bank that the log has is not quoted",
			Reference: "CVE-2021-42299 (TPM Carte Blanche)",
			Want:      want(attest.CodeQuoteMissing),
			run: sent(func(b *box) error {
				b.addBank("sha384")
				return nil
			}, func(x *exchange) error {
				ev := &x.request.Evidence
				ev.Quotes = slices.DeleteFunc(ev.Quotes, func(q attest.Quote) bool { return q.Bank == "sha384" })
				return nil
			}),
		},
		{
			Name: "empty-bank", What: "a bank that firmware left empty, and that software fills as it likes",
			Reference: "CVE-2021-42299 (TPM Carte Blanche)",
			Want:      want(attest.CodeBankEmpty),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				b.boot.Banks = slices.DeleteFunc(slices.Clone(b.boot.Banks), func(bank string) bool { return bank == "sha384" })
				return b.attest(ctx, func(x *exchange) error {
					empty := map[int][]byte{}
					for pcr := range 24 {
						empty[pcr] = make([]byte, 48)
					}
					b.tpm.PCRs["sha384"] = empty
					return b.tpm.QuoteAll(&x.request.Evidence, attest.PurposeUnlock, x.challenge.Nonce, x.session.Exporter())
				})
			},
		},
		{
			Name: "pcr-values-not-quoted", What: "other PCR values beside the quote than it covers",
			Reference: "CVE-2022-0317",
			Want:      want(attest.CodeQuoteDigest),
			run: sent(nil, func(x *exchange) error {
				for _, q := range x.request.Evidence.Quotes {
					q.PCRs[7][0] ^= 1
				}
				return nil
			}),
		},
		{
			Name: "transport-key-outlives-the-reset", What: "a transport key in the owner hierarchy",
			Reference: "TPM 2.0 Library Part 2, 15.1, and Part 3, 18.3: the parent is part of what is certified",
			Want:      want(attest.CodeTransport),
			run: sent(func(b *box) error {
				b.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.ParentName.Buffer = []byte{0x40, 0, 0, 1} }
				return nil
			}, nil),
		},
		{
			Name: "transport-key-with-password", What: "a transport key that an authorization value opens in any state",
			Reference: "TPM 2.0 Library Part 2, 8.3.2: userWithAuth",
			Want:      want(attest.CodeTransport),
			run: sent(func(b *box) error {
				b.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true }
				return nil
			}, nil),
		},
		{
			Name: "transport-key-in-software", What: "a transport key whose private half may leave the TPM",
			Reference: "TPM 2.0 Library Part 2, 8.3.2: fixedTPM",
			Want:      want(attest.CodeTransport),
			run: sent(func(b *box) error {
				b.tpm.OnTransport = func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }
				return nil
			}, nil),
		},
		{
			Name: "transport-key-swapped", What: "a transport key of the sender's own in place of the one that was quoted",
			Reference: "Goldman et al., Linking Remote Attestation to Secure Tunnel Endpoints, STC 2006",
			Want:      want(attest.CodeQuoteNonce),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				own, err := l.stranger()
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) (err error) {
					own.boot.Measure(own.tpm)
					x.request.Evidence.Transport, err = own.tpm.MakeTransport(x.challenge.Nonce, x.session.Exporter())
					return err
				})
			},
		},
	}
}

// addBank activates a bank in which the same is measured. A recorded log may
// not have it: what was not hashed here gets a digest of its digest.
func (b *box) addBank(bank string) {
	if slices.Contains(b.boot.Banks, bank) {
		return
	}
	h := crypto.SHA1
	if bank == "sha384" {
		h = crypto.SHA384
	}
	b.boot.Banks = append(slices.Clone(b.boot.Banks), bank)
	b.boot.Measured = slices.Clone(b.boot.Measured)
	for i := range b.boot.Measured {
		m := &b.boot.Measured[i]
		if m.Digests == nil {
			continue
		}
		d := h.New()
		d.Write(m.Digests["sha256"])
		digests := map[string][]byte{bank: d.Sum(nil)}
		for known, digest := range m.Digests {
			digests[known] = digest
		}
		m.Digests = digests
	}
}

// identityAttacks claim to be another machine, or a TPM.
func identityAttacks() []Attack {
	return []Attack{
		{
			Name: "ek-of-another-machine", What: "another machine's endorsement key and certificate, which are public, with an attestation key of the sender's",
			Reference: "CVE-2021-3406, CVE-2023-38201",
			Want:      want(attest.CodeActivation),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				victim, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				b, err := l.stranger()
				if err != nil {
					return nil, err
				}
				b.tpm.EKPublic, b.tpm.EKCertificates, b.boot = victim.tpm.EKPublic, victim.tpm.EKCertificates, victim.boot
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "ek-certificate-of-another-machine", What: "an own endorsement key under another machine's certificate",
			Reference: "CVE-2025-13609",
			Want:      want(attest.CodeEKMismatch),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				victim, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				b, err := l.stranger()
				if err != nil {
					return nil, err
				}
				b.tpm.EKCertificates = victim.tpm.EKCertificates
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "ak-swapped", What: "evidence of another attestation key than the challenge was made for",
			Reference: "CVE-2025-49707",
			Want:      want(attest.CodeChallengeKey),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				other, err := l.stranger()
				if err != nil {
					return nil, err
				}
				return b.attest(ctx, func(x *exchange) error {
					other.tpm.EKPublic, other.tpm.EKCertificates, other.tpm.Clock = b.tpm.EKPublic, b.tpm.EKCertificates, b.tpm.Clock
					b.boot.Measure(other.tpm)
					ev, err := other.tpm.Evidence(b.boot, attest.PurposeUnlock, x.challenge.Nonce, x.session.Exporter())
					if err != nil {
						return err
					}
					x.request.Evidence = *ev
					return nil
				})
			},
		},
		{
			Name: "ak-changed", What: "a known machine comes with another attestation key",
			Reference: "CVE-2025-13609",
			Want:      want(attest.CodeAKChanged), Accepted: true,
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, _, err := l.released(ctx)
				if err != nil {
					return nil, err
				}
				b.tpm.Reset()
				if b.tpm.AK, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
					return nil, err
				}
				if b.tpm.AKPublic, err = papertpm.AKArea(&b.tpm.AK.PublicKey); err != nil {
					return nil, err
				}
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "ek-chain-forged", What: "an endorsement certificate of an authority that only has the trusted one's name and key identifier",
			Reference: "RFC 5280, 6.1; CVE-2021-3406",
			Want:      want(attest.CodeEKNotSigned, attest.CodeEKCertificate),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				forger, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
				if err != nil {
					return nil, err
				}
				forger.Root.RawSubject, forger.Root.Subject, forger.Root.SubjectKeyId = l.ca.Root.RawSubject, l.ca.Root.Subject, l.ca.Root.SubjectKeyId
				b, err := l.box(ctx)
				if err != nil {
					return nil, err
				}
				if err := forger.Equip(b.tpm); err != nil {
					return nil, err
				}
				b.tpm.EKCertificates = append(b.tpm.EKCertificates, forger.Root.Raw)
				return b.attest(ctx, nil)
			},
		},
		{
			Name: "ek-certificate-is-an-authority", What: "a certificate that may sign others as endorsement certificate",
			Reference: "RFC 5280, 4.2.1.9; TCG EK Credential Profile",
			Want:      want(attest.CodeEKCertificate),
			run: sent(func(b *box) error {
				key, ok := b.tpm.EK.(crypto.Signer)
				if !ok {
					return errors.New("the endorsement key is no signer")
				}
				c, err := b.l.ca.Certify(key.Public(), func(c *x509.Certificate) {
					c.IsCA = true
					c.KeyUsage |= x509.KeyUsageCertSign
				})
				if err != nil {
					return err
				}
				b.tpm.EKCertificates = [][]byte{c.Raw}
				return nil
			}, nil),
		},
		{
			Name: "ek-without-certificate", What: "an endorsement key for which nobody vouches",
			Reference: "CVE-2021-3406",
			Want:      want(attest.CodeEKCertificate),
			run: sent(func(b *box) error {
				b.tpm.EKCertificates = nil
				return nil
			}, nil),
		},
		{
			Name: "software-tpm", What: "a TPM in software where the policy wants hardware",
			Reference: "Berger et al., vTPM: Virtualizing the Trusted Platform Module, USENIX Security 2006",
			Want:      want(attest.CodeTPMClass, attest.CodeEKCertificate),
			run: func(ctx context.Context, l *lab) (*answer, error) {
				b, err := l.stranger()
				if err != nil {
					return nil, err
				}
				switch {
				case l.Strict != nil:
					if err := l.Strict(b.tpm); err != nil {
						return nil, err
					}
				case l.accepted:
					return nil, notRun("the policy of this service takes software TPMs: it is no policy for production")
				}
				return b.attest(ctx, nil)
			},
		},
	}
}
