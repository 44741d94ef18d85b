package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm/pcrsig"
)

// CollectInput is what Evidence is made of, beside what the TPM says.
type CollectInput struct {
	Purpose  attest.Purpose
	Nonce    []byte      // of the challenge, 32 bytes
	Exporter []byte      // RFC 9266 tls-exporter of the connection that the evidence will go over, 32 bytes
	EventLog []byte      // TCG event log, at most attest.MaxEventLog bytes
	SMBIOS   []byte      // Optional; structure table, at most attest.MaxSMBIOS bytes
	Disk     attest.Disk // the disk booted from
	// ProveBanks has the TPM prove which banks are active also where SHA-256 is.
	ProveBanks bool
}

func (in *CollectInput) check() error {
	switch {
	case in.Purpose == "":
		return errors.New("no purpose")
	case len(in.Nonce) != 32:
		return fmt.Errorf("nonce: got %d bytes, want 32", len(in.Nonce))
	case len(in.Exporter) != 32:
		return fmt.Errorf("tls exporter: got %d bytes, want 32", len(in.Exporter))
	case len(in.EventLog) == 0 || len(in.EventLog) > attest.MaxEventLog:
		return fmt.Errorf("event log: got %d bytes, want 1 to %d", len(in.EventLog), attest.MaxEventLog)
	case len(in.SMBIOS) > attest.MaxSMBIOS:
		return fmt.Errorf("smbios table: got %d bytes, want at most %d", len(in.SMBIOS), attest.MaxSMBIOS)
	}
	return nil
}

// errPCRsChanged says that quoted PCRs are not the ones read just before.
var errPCRsChanged = errors.New("PCRs were extended between reading and quoting them")

// Collect makes the evidence for a challenge: it makes the transport key for
// the present state of the PCRs, lets the attestation key of Identify certify
// how it was made, and quotes the PCRs of each active bank. Where SHA-256 is off, or
// the proof is asked for, it has the TPM prove which banks are active; what is in the
// way of that is an error only where SHA-256 is off, and else part of the evidence. An
// earlier transport key is gone.
func (t *TPM) Collect(ctx context.Context, in CollectInput) (*attest.Evidence, error) {
	if t.identity == nil {
		return nil, fmt.Errorf("collect evidence: %w", errNotIdentified)
	}
	if err := in.check(); err != nil {
		return nil, fmt.Errorf("collect evidence: %w", err)
	}
	if err := t.loadAK(); err != nil {
		return nil, fmt.Errorf("collect evidence: %w", err)
	}
	for i := 1; ; i++ {
		ev, err := t.collect(ctx, in)
		if err == nil {
			return ev, nil
		}
		if i == retries || !errors.Is(err, errPCRsChanged) {
			return nil, fmt.Errorf("collect evidence: %w", errors.Join(err, t.flush(&t.tk)))
		}
	}
}

func (t *TPM) collect(ctx context.Context, in CollectInput) (*attest.Evidence, error) {
	banks, values, err := t.readBanks(ctx)
	if err != nil {
		return nil, err
	}
	main, err := mainBank(banks)
	if err != nil {
		return nil, err
	}
	var policy map[int][]byte
	for i, b := range banks {
		if b == main {
			policy = values[i]
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ev := &attest.Evidence{
		EKPublic:       t.identity.EK.Public,
		EKCertificates: t.identity.EK.Certificates,
		AKPublic:       t.identity.AKPublic,
		EventLog:       in.EventLog,
		SMBIOS:         in.SMBIOS,
		Disk:           in.Disk,
	}
	if ev.Transport, err = t.makeTransport(main, policy, in.Nonce, in.Exporter); err != nil {
		return nil, err
	}
	qualifying := attest.QualifyingData(attest.Binding{
		Purpose:     in.Purpose,
		Nonce:       in.Nonce,
		Exporter:    in.Exporter,
		TransportID: t.tk.name.Buffer,
	}, ev)
	ev.Quotes, err = t.quoteBanks(ctx, banks, values, qualifying)
	if err != nil {
		return nil, err
	}
	if main.name != "sha256" {
		off, err := bankNamed("sha256")
		if err != nil {
			return nil, err
		}
		q, err := t.quote(off, nil, qualifying)
		if err != nil {
			return nil, err
		}
		ev.Quotes = append(ev.Quotes, *q)
	} else if !in.ProveBanks {
		return ev, nil
	}
	switch ev.Banks, err = t.proveBanks(qualifying); {
	case err != nil && main.name != "sha256":
		return nil, err
	case err != nil:
		// The service may only have asked. It is told, and decides.
		why := err.Error()
		ev.NoBanks = strings.ToValidUTF8(why[:min(len(why), attest.MaxNoBanks)], "")
	case ev.Banks == nil:
		ev.NoBanks = "it has no TPM2_GetSessionAuditDigest"
	}
	return ev, nil
}

// readBanks reads attest.PolicyPCRs of each active bank.
func (t *TPM) readBanks(ctx context.Context) ([]bank, []map[int][]byte, error) {
	banks, err := t.activeBanks()
	if err != nil {
		return nil, nil, err
	}
	if len(banks) > attest.MaxBanks {
		return nil, nil, fmt.Errorf("got %d active pcr banks, want at most %d", len(banks), attest.MaxBanks)
	}
	values := make([]map[int][]byte, len(banks))
	for i, b := range banks {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if values[i], err = t.readPCRs(b, attest.PolicyPCRs()); err != nil {
			return nil, nil, err
		}
	}
	return banks, values, nil
}

// quoteBanks quotes each bank, which must still have the values.
func (t *TPM) quoteBanks(ctx context.Context, banks []bank, values []map[int][]byte, qualifying []byte) ([]attest.Quote, error) {
	var quotes []attest.Quote
	for i, b := range banks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		q, err := t.quote(b, values[i], qualifying)
		if err != nil {
			return nil, err
		}
		quotes = append(quotes, *q)
	}
	return quotes, nil
}

// quote quotes attest.PolicyPCRs of one bank (TPM2_Quote, Part 3, 18.4) and
// fails with errPCRsChanged if they do not have the given values. Without values
// it says that the bank is off: of the PCRs asked for, the TPM names those that it
// has.
func (t *TPM) quote(b bank, values map[int][]byte, qualifying []byte) (*attest.Quote, error) {
	rsp, err := tpm2.Quote{
		SignHandle:     t.ak.auth(tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect:      b.selection(attest.PolicyPCRs()...),
	}.Execute(t.transport)
	if err != nil {
		return nil, fmt.Errorf("quote %s PCRs: %w", b.name, err)
	}
	quoted, err := rsp.Quoted.Contents()
	if err != nil {
		return nil, fmt.Errorf("quote %s PCRs: decode: %w", b.name, err)
	}
	info, err := quoted.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("quote %s PCRs: decode: %w", b.name, err)
	}
	want := attest.PolicyPCRs()
	if values == nil {
		want = nil
	}
	if got := selected(info.PCRSelect, b.alg); !slices.Equal(got, want) {
		return nil, fmt.Errorf("quote %s PCRs: got PCRs %d, want %d: the bank is incomplete", b.name, got, want)
	}
	// The digest is by the hash of the signature scheme, whatever the bank.
	h := sha256.New()
	for _, p := range want {
		h.Write(values[p])
	}
	if !bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer) {
		return nil, fmt.Errorf("quote %s PCRs: %w", b.name, errPCRsChanged)
	}
	return &attest.Quote{
		Bank:      b.name,
		Attest:    rsp.Quoted.Bytes(),
		Signature: tpm2.Marshal(rsp.Signature),
		PCRs:      values,
	}, nil
}

// transportTemplate returns the template of the transport key: an ECC P-256
// storage key whose only authorization is the policy.
func transportTemplate(policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			NoDA: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: aesCFB(128), CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// makeTransport makes the transport key for a state of a bank's PCRs and
// has the attestation key certify it (TPM2_CertifyCreation, Part 3, 18.3).
//
// The key is in the NULL hierarchy, whose seed changes at each TPM reset: what
// was wrapped to it cannot be opened after a reboot, by anyone. Its creation
// data names attest.PolicyPCRs of this bank, its parent TPM_RH_NULL,
// and the connection as outside info.
func (t *TPM) makeTransport(b bank, pcrs map[int][]byte, nonce, exporter []byte) (attest.TransportKey, error) {
	none := attest.TransportKey{}
	if err := t.flush(&t.tk); err != nil {
		return none, err
	}
	policy, err := pcrsig.PolicyDigest(b.name, pcrs)
	if err != nil {
		return none, fmt.Errorf("transport key: %w", err)
	}
	tk, rsp, err := t.createPrimary(tpm2.TPMRHNull, "transport key", transportTemplate(policy), b.selection(attest.PolicyPCRs()...), attest.ConnectionData(exporter))
	if err != nil {
		return none, err
	}
	t.tk, t.tkPolicy, t.tkBank = tk, policy, b
	cert, err := tpm2.CertifyCreation{
		SignHandle:     t.ak.auth(tpm2.PasswordAuth(nil)),
		ObjectHandle:   tk.named(),
		QualifyingData: tpm2.TPM2BData{Buffer: attest.CertifyData(nonce)},
		CreationHash:   rsp.CreationHash,
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		CreationTicket: rsp.CreationTicket,
	}.Execute(t.transport)
	if err != nil {
		return none, fmt.Errorf("certify transport key: %w", err)
	}
	return attest.TransportKey{
		Public:       tk.public,
		CreationData: rsp.CreationData.Bytes(),
		Certify:      cert.CertifyInfo.Bytes(),
		Signature:    tpm2.Marshal(cert.Signature),
	}, nil
}
