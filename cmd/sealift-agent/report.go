package main

import (
	"context"
	"errors"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/node"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/report"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/unlock"
)

// keepReporting starts to report from the running system, if the service wants
// that, and returns what stops it. A machine that cannot report runs on.
func (m *machine) keepReporting(ctx context.Context, h *node.Handover) (stop func()) {
	if h.Report == nil || h.Report.After <= 0 {
		return func() {}
	}
	s, err := m.newService()
	if err != nil {
		m.log.Error("no reports are made", "err", err)
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	loop := report.Loop{
		Attempt: func(ctx context.Context) (time.Duration, error) { return s.report(ctx, h) },
		Every:   time.Duration(h.Report.After) * time.Second, Log: m.log, Sleep: unlock.Sleep,
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		loop.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// report makes and sends one report. The TPM is open only meanwhile.
func (s *service) report(ctx context.Context, h *node.Handover) (after time.Duration, err error) {
	log, err := boot.ReadEventLog()
	if err != nil {
		return 0, err
	}
	session, err := s.client.Connect(ctx)
	if err != nil {
		return 0, err
	}
	// What was received counts, not how the connection ends.
	defer func() { _ = session.Close() }()
	challenge, err := session.Challenge(ctx, &api.ChallengeRequest{
		Version: api.Version, Purpose: attest.PurposeReport, EKPublic: h.Report.EKPublic, EKCertificates: [][]byte{}, AKPublic: h.Report.AKPublic,
	})
	if err != nil {
		return 0, err
	}
	t, err := tpm.Open("")
	if err != nil {
		return 0, err
	}
	evidence, err := t.Report(ctx, tpm.ReportInput{
		Service: s.client.URL, EKPublic: h.Report.EKPublic, AKPublic: h.Report.AKPublic, Nonce: challenge.Nonce, Exporter: session.Exporter(),
		EventLog: log, Disk: attest.Disk{GUID: h.DiskGUID, StateExists: true},
	})
	if err = errors.Join(err, t.Close()); err != nil {
		return 0, err
	}
	return session.Report(ctx, &api.EvidenceRequest{ChallengeID: challenge.ID, Evidence: *evidence})
}
