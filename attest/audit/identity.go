package audit

import (
	"encoding/json"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// Identity is who a machine is after a decision: what a restore needs to know
// whose a node name and a serial number are. Serial is a claim. Entries of
// earlier versions have none.
type Identity struct {
	NodeName   string           `json:"nodeName"`
	FormerName string           `json:"formerName,omitempty"` // that went to ReplacedBy
	Serial     string           `json:"serial,omitempty"`     // SMBIOS type 1
	Listed     bool             `json:"listed,omitempty"`     // it was enrolled beforehand, and must claim Serial
	ReplacedBy attest.MachineID `json:"replacedBy,omitzero"`  // took over its node name and serial number
	// Digests are those of the endorsement key by which lists may name it.
	Digests []manifest.SHA256 `json:"digests,omitempty"`
	// Bindings are what the decision wrote beside the machine's record.
	Bindings []Binding `json:"bindings,omitempty"`
}

// Kinds of Binding.
const (
	BindingSerial   = "serial"   // whose a serial number is
	BindingExpected = "expected" // a machine that was enrolled beforehand
	BindingTPM      = "tpm"      // whose a TPM is, by a key that is proven to be in it
)

// Binding is a document about who is who, as it was stored.
type Binding struct {
	Kind string          `json:"kind"`
	Name string          `json:"name"`
	Body json.RawMessage `json:"body"`
}
