package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/sealift/sealift/attest"
)

// ReportInput is what a report is made of, beside what the TPM says.
type ReportInput struct {
	Service string // that the attestation key is for, as given to Identify
	// Keys of the boot's release, as Identify had them.
	EKPublic, AKPublic []byte
	Nonce              []byte      // of the challenge, 32 bytes
	Exporter           []byte      // RFC 9266 tls-exporter of the connection that the report will go over, 32 bytes
	EventLog           []byte      // TCG event log, at most attest.MaxEventLog bytes
	Disk               attest.Disk // the disk booted from
}

// Report makes the evidence for a challenge of attest.PurposeReport: a quote of
// each active bank by the attestation key, which is made anew and gone from the
// TPM's memory afterwards. It uses neither the endorsement key, so that a power
// cut is no failed authorization and needs no Rest, nor a transport key.
func (t *TPM) Report(ctx context.Context, in ReportInput) (*attest.Evidence, error) {
	ev, err := t.report(ctx, in)
	if err = errors.Join(err, t.flush(&t.ak)); err != nil {
		return nil, fmt.Errorf("make a report: %w", err)
	}
	return ev, nil
}

func (t *TPM) report(ctx context.Context, in ReportInput) (*attest.Evidence, error) {
	common := CollectInput{Purpose: attest.PurposeReport, Nonce: in.Nonce, Exporter: in.Exporter, EventLog: in.EventLog}
	if err := common.check(); err != nil {
		return nil, err
	}
	if err := t.flush(&t.ak); err != nil {
		return nil, err
	}
	t.service = in.Service
	if err := t.loadAK(); err != nil {
		return nil, err
	}
	if !bytes.Equal(t.ak.public, in.AKPublic) {
		return nil, errors.New("the TPM makes another attestation key than before the release: its endorsement hierarchy was changed")
	}
	ev := &attest.Evidence{EKPublic: in.EKPublic, EKCertificates: [][]byte{}, AKPublic: in.AKPublic, EventLog: in.EventLog, Disk: in.Disk}
	qualifying := attest.QualifyingData(attest.Binding{Purpose: attest.PurposeReport, Nonce: in.Nonce, Exporter: in.Exporter}, ev)
	for i := 1; ; i++ {
		banks, values, err := t.readBanks(ctx)
		if err != nil {
			return nil, err
		}
		ev.Quotes, err = t.quoteBanks(ctx, banks, values, qualifying)
		if err == nil {
			return ev, nil
		}
		if i == retries || !errors.Is(err, errPCRsChanged) {
			return nil, err
		}
	}
}
