package attest_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	. "github.com/sealift/sealift/attest"
)

// What a quote answers instead of the challenge is said only where the same TPM's
// word for the transport key shows it.
func TestWhatAQuoteAnswersIsSaidWhereItShows(t *testing.T) {
	otherNonce, otherExporter := bytes.Repeat([]byte{5}, 32), bytes.Repeat([]byte{6}, 32)
	quoted := func(s *scene, nonce, exporter []byte) {
		if err := s.tpm.QuoteAll(s.ev, PurposeUnlock, nonce, exporter); err != nil {
			s.t.Fatal(err)
		}
	}
	made := func(s *scene, nonce, exporter []byte) {
		var err error
		if s.ev.Transport, err = s.tpm.MakeTransport(nonce, exporter); err != nil {
			s.t.Fatal(err)
		}
		quoted(s, nonce, exporter)
	}
	for name, c := range map[string]struct {
		bend func(*scene)
		want Code
		says string
	}{
		"evidence for another challenge": {func(s *scene) { made(s, otherNonce, s.ses.Exporter) }, CodeQuoteChallenge, "the transport key that came with it was made for another"},
		"evidence for another challenge over another connection": {
			func(s *scene) { made(s, otherNonce, otherExporter) }, CodeQuoteChallenge, "answers another challenge"},
		"evidence for this challenge over another connection": {
			func(s *scene) { made(s, s.ch.Nonce, otherExporter) }, CodeQuoteConnection, "answers over another connection"},
		"an old quote beside a transport key for this challenge": {func(s *scene) {
			quoted(s, otherNonce, otherExporter)
			s.tpm.Clock.Clock++
			old := s.ev.Quotes
			made(s, s.ch.Nonce, s.ses.Exporter)
			s.ev.Quotes = old
		}, CodeQuoteChallenge, "it is older (reset 7, restart 1, clock 50000 ms)"},
		"a quote from before a restart of the TPM": {func(s *scene) {
			quoted(s, otherNonce, otherExporter)
			s.tpm.Clock.RestartCount++
			s.tpm.Clock.Clock--
			old := s.ev.Quotes
			made(s, s.ch.Nonce, s.ses.Exporter)
			s.ev.Quotes = old
		}, CodeQuoteChallenge, "it is older"},
		"a quote of this boot that is not older": {func(s *scene) { quoted(s, otherNonce, s.ses.Exporter) }, CodeQuoteEvidence, "is not of this set of evidence"},
		"a log that was altered":                 {func(s *scene) { s.ev.EventLog = bytes.Clone(s.ev.EventLog); s.ev.EventLog[200] ^= 1 }, CodeQuoteEvidence, "is not of this set of evidence"},
		"an agent that says nothing of the connection": {func(s *scene) {
			s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.OutsideInfo.Buffer = nil }
			made(s, s.ch.Nonce, otherExporter)
		}, CodeQuoteNonce, "another challenge, connection or set of evidence"},
		"a transport key that another TPM certified": {func(s *scene) {
			other := newTPM(s.t, s.ca)
			s.Measure(other)
			var err error
			if s.ev.Transport, err = other.MakeTransport(otherNonce, otherExporter); err != nil {
				s.t.Fatal(err)
			}
		}, CodeQuoteNonce, ""},
		"creation data that was altered": {func(s *scene) {
			made(s, s.ch.Nonce, s.ses.Exporter)
			s.ev.Transport.CreationData = bytes.Clone(s.ev.Transport.CreationData)
			s.ev.Transport.CreationData[len(s.ev.Transport.CreationData)-1] ^= 1
			s.ev.Disk.StateExists = !s.ev.Disk.StateExists
			s.known.StateMade = false
		}, CodeQuoteNonce, ""},
		"no word for the transport key": {func(s *scene) {
			quoted(s, otherNonce, otherExporter)
			s.ev.Transport.Certify = nil
		}, CodeQuoteNonce, ""},
		"a transport key in the place of which another is sent": {func(s *scene) {
			public := s.ev.Transport.Public
			made(s, s.ch.Nonce, s.ses.Exporter)
			s.ev.Transport.Public = public
		}, CodeQuoteNonce, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			s.collect()
			if r := s.verify(); !r.Allowed {
				t.Fatalf("the good evidence is refused: %+v", r.Findings)
			}
			c.bend(s)
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, []Code{c.want}) || !strings.Contains(mustText(r), c.says) {
				t.Errorf("want %s and %q:\n%s", c.want, c.says, mustText(r))
			}
		})
	}
}

// Agents older than the outside info are as good as before.
func TestAnAgentThatSaysNothingOfItsConnectionIsAccepted(t *testing.T) {
	s := newScene(t)
	s.tpm.OnCreation = func(c *tpm2.TPMSCreationData) { c.OutsideInfo.Buffer = nil }
	s.collect()
	if r := s.verify(); !r.Allowed {
		t.Errorf("%+v", r.Findings)
	}
}
