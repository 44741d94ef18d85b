package tpm_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func reportInput(id *tpm.Identity) tpm.ReportInput {
	return tpm.ReportInput{
		Service: "https://attest.example", EKPublic: id.EK.Public, AKPublic: id.AKPublic,
		Nonce: bytes.Repeat([]byte{1}, 32), Exporter: bytes.Repeat([]byte{2}, 32), EventLog: []byte("log"),
	}
}

func TestAReportUsesNothingThatAPowerCutCouldLock(t *testing.T) {
	dev := tpmtest.Open(t)
	id, err := tpm.New(dev).Identify("https://attest.example")
	if err != nil {
		t.Fatal(err)
	}
	for boot := range 12 {
		m := tpm.New(dev)
		ev, err := m.Report(t.Context(), reportInput(id))
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		if n := dev.Objects(); n != 0 && boot > 0 {
			t.Errorf("boot %d: %d objects stay loaded", boot, n)
		}
		if len(ev.Quotes) == 0 || len(ev.Transport.Public) != 0 || !bytes.Equal(ev.AKPublic, id.AKPublic) {
			t.Errorf("boot %d: %d quotes, transport key of %d bytes", boot, len(ev.Quotes), len(ev.Transport.Public))
		}
		dev.PowerLoss()
	}
	// The key that power cuts could lock still works.
	if err := activateOnce(t, dev, true); err != nil {
		t.Error(err)
	}
}

func TestAReportIsMadeOnlyWithTheKeyOfTheRelease(t *testing.T) {
	dev := tpmtest.Open(t)
	m := tpm.New(dev)
	id, err := m.Identify("https://attest.example")
	if err != nil {
		t.Fatal(err)
	}
	in := reportInput(id)
	in.Service = "https://other.example"
	if _, err := m.Report(t.Context(), in); err == nil || !strings.Contains(err.Error(), "another attestation key") {
		t.Errorf("got %v", err)
	}
	for name, change := range map[string]func(*tpm.ReportInput){
		"no nonce":     func(in *tpm.ReportInput) { in.Nonce = nil },
		"no exporter":  func(in *tpm.ReportInput) { in.Exporter = nil },
		"no event log": func(in *tpm.ReportInput) { in.EventLog = nil },
		"a large log":  func(in *tpm.ReportInput) { in.EventLog = make([]byte, attest.MaxEventLog+1) },
	} {
		in := reportInput(id)
		change(&in)
		if _, err := m.Report(t.Context(), in); err == nil {
			t.Errorf("%s: a report was made", name)
		}
	}
}

func BenchmarkReport(b *testing.B) {
	dev := tpmtest.Open(b)
	id, err := tpm.New(dev).Identify("https://attest.example")
	if err != nil {
		b.Fatal(err)
	}
	m := tpm.New(dev)
	for b.Loop() {
		if _, err := m.Report(b.Context(), reportInput(id)); err != nil {
			b.Fatal(err)
		}
	}
}
