package api

import (
	"time"

	"github.com/sealift/sealift/attest"
)

// BankProof is a machine's answer to the question which PCR banks are active.
type BankProof struct {
	Answer attest.BankAnswer `json:"answer"`
	At     time.Time         `json:"at"`
	// Detail is the banks that are active, what is wrong with the proof, or, in
	// the machine's words, why it has none.
	Detail string `json:"detail,omitempty"`
	// Vendor and Model are what the endorsement certificate says of the TPM, as an
	// exemption in a policy must name them.
	Vendor string `json:"vendor,omitempty"`
	Model  string `json:"model,omitempty"`
	// Proven is when evidence with the proof was last accepted.
	Proven time.Time `json:"proven,omitzero"`
}
