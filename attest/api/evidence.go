package api

import (
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
	Boot      *attest.Boot     `json:"boot,omitempty"` // of a report: what it was held against
}
