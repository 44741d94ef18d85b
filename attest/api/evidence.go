package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
)

// StoredEvidence is the whole input of one appraisal except the policy, as the
// service keeps it under the SHA-256 of its JSON. With it a verdict can be
// computed again, under the policy of then or under another one. It holds no
// secret that is still of use: the challenge was taken before it was stored.
type StoredEvidence struct {
	Version   int              `json:"version"`
	Received  time.Time        `json:"received"`
	Address   string           `json:"address"`
	Machine   attest.MachineID `json:"machine"`
	Challenge attest.Challenge `json:"challenge"`
	Session   attest.Session   `json:"session"`
	Known     attest.Known     `json:"known"`
	Evidence  attest.Evidence  `json:"evidence"`
	// Repeated says why this is a second release in one boot, where Known does
	// not: the store knew of one, or may have lost it.
	Repeated string `json:"repeated,omitempty"`
}

// MaxStoredEvidence bounds stored evidence, bytes.
const MaxStoredEvidence = MaxEvidenceBody + 1<<20

// DecodeEvidence reads stored evidence.
func DecodeEvidence(b []byte) (*StoredEvidence, error) {
	if len(b) > MaxStoredEvidence {
		return nil, fmt.Errorf("stored evidence: %d bytes, at most %d allowed", len(b), MaxStoredEvidence)
	}
	var ev StoredEvidence
	if err := json.Unmarshal(b, &ev); err != nil {
		return nil, fmt.Errorf("stored evidence: %w", err)
	}
	if ev.Version != Version {
		return nil, fmt.Errorf("stored evidence: version is %d, want %d", ev.Version, Version)
	}
	return &ev, nil
}

// Appraise computes the verdict again, under a policy. Whether the challenge was
// fresh, and what the service knew, is as it was stored.
func (s *StoredEvidence) Appraise(p *attest.Policy) *attest.Result {
	r := attest.Verify(&s.Evidence, &s.Challenge, &s.Session, &s.Known, p)
	if s.Repeated != "" && r.Allowed {
		r.Allowed, r.Findings = false, []attest.Finding{RepeatedFinding(s.Repeated)}
	}
	return r
}

// RepeatedFinding is that of a boot which the store knows to have had its
// release.
func RepeatedFinding(why string) attest.Finding {
	return attest.Finding{Code: attest.CodeReleaseRepeated, Message: why, Hint: "restart the machine"}
}
