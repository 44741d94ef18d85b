package api

import (
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// MaxProposalBody bounds a PolicyProposal, bytes: a policy, its files, and the
// manifests of a few images.
const MaxProposalBody = 32 << 20

// PolicyState is the policy that a service has enabled.
type PolicyState struct {
	Name    string          `json:"name,omitempty"` // empty if the service has no policy file
	Version int             `json:"version,omitempty"`
	Digest  manifest.SHA256 `json:"digest,omitzero"` // of the file
	Text    []byte          `json:"text,omitempty"`  // the file
	Signed  bool            `json:"signed"`
	Enabled time.Time       `json:"enabled,omitzero"` // when this version was enabled first
	// Revision grows with each policy that is enabled.
	Revision int64 `json:"revision,omitempty"`
	// Unproven is why what the store says of it is not what the service signed last.
	// Then the rest is what somebody wrote, and nothing is released.
	Unproven string `json:"unproven,omitempty"`
	// Images are the SHA-256 digests of the manifests that came with it, or with
	// those before, beside those of each replica's configuration.
	Images   []manifest.SHA256 `json:"images,omitempty"`
	Replicas []PolicyReplica   `json:"replicas,omitempty"` // that were heard of in the last 30 seconds
}

// PolicyReplica is what one replica of the service goes by.
type PolicyReplica struct {
	Name      string          `json:"name"`             // host name and address of its node API
	Policy    string          `json:"policy,omitempty"` // empty: none
	Version   int             `json:"version,omitempty"`
	Digest    manifest.SHA256 `json:"digest,omitzero"`
	Revision  int64           `json:"revision,omitempty"` // that of PolicyState if it goes by what is enabled
	Confirmed time.Time       `json:"confirmed"`          // when it last saw that this is what is enabled
	Seen      time.Time       `json:"seen"`               // when it said so
	// Fault is why it cannot go by what is enabled. Then it releases nothing.
	Fault string `json:"fault,omitempty"`
	// Inputs names the images, firmware catalogue and TPM roots that it judges
	// by: those of replicas that judge the same are equal.
	Inputs manifest.SHA256   `json:"inputs"`
	Images []manifest.SHA256 `json:"images,omitempty"` // SHA-256 digests of all manifests that it has
}

// PolicyEnable is a policy that is to be enabled.
type PolicyEnable struct {
	Policy []byte            `json:"policy"`          // the file
	Bundle []byte            `json:"bundle"`          // its signature by the image key
	Files  map[string][]byte `json:"files,omitempty"` // that it names, by that name
	// Images are those of which every replica gets the manifest with the policy.
	Images []SignedManifest `json:"images,omitempty"`
	Reason string           `json:"reason"`
	// Rollback allows a version below the present one, and a policy of another
	// name.
	Rollback bool `json:"rollback,omitempty"`
}

// PolicyProposal is a policy that is to be tried. It needs no signature, as it
// changes nothing; manifests need theirs.
type PolicyProposal struct {
	Policy []byte            `json:"policy"`          // the file
	Files  map[string][]byte `json:"files,omitempty"` // that it names, by that name
	// Images are those that the service does not have yet.
	Images []SignedManifest `json:"images,omitempty"`
	At     time.Time        `json:"at,omitzero"` // for what counts from a day on; now if unset
}

// SignedManifest is a manifest.json with its bundle.
type SignedManifest struct {
	Manifest []byte `json:"manifest"`
	Bundle   []byte `json:"bundle"`
}

// Effect is what another policy does to a machine.
type Effect string

// Effects, the worst first.
const (
	EffectRefused      Effect = "refused"       // allowed now, refused then
	EffectFailed       Effect = "failed"        // could not be judged
	EffectNotAsked     Effect = "not asked"     // allowed now; then only if it proves its banks, for which nobody has asked it
	EffectNoEvidence   Effect = "no evidence"   // there is nothing to judge by
	EffectAllowed      Effect = "allowed"       // refused now, allowed then
	EffectStillRefused Effect = "still refused" // refused now and then
	EffectNone         Effect = "none"          // allowed now and then
)

// WhatIf is one line of the answer to a proposal: a machine, or, in the last
// line, the summary. An answer without a summary was cut short.
type WhatIf struct {
	Machine *WhatIfMachine `json:"machine,omitempty"`
	Summary *WhatIfSummary `json:"summary,omitempty"`
}

// WhatIfMachine is what a proposal does to one machine.
type WhatIfMachine struct {
	ID       attest.MachineID      `json:"id"`
	NodeName string                `json:"nodeName"`
	State    attest.EnrolmentState `json:"state"` // at present; the verdicts are with that of the time of the evidence
	Vendor   string                `json:"vendor,omitempty"`
	Product  string                `json:"product,omitempty"` // SMBIOS type 1, claimed
	Effect   Effect                `json:"effect"`
	// Evidence is what was judged: the last, or, where that is refused now, the
	// last that was accepted.
	Evidence manifest.SHA256 `json:"evidence,omitzero"`
	Received time.Time       `json:"received,omitzero"`
	Now      []attest.Code   `json:"now"`  // findings under the present policy
	Then     []attest.Code   `json:"then"` // findings under the proposal
	// Reasons are the findings that only the proposal has.
	Reasons []attest.Finding `json:"reasons,omitempty"`
	// Banks is what the evidence says of the proof of its active PCR banks.
	Banks attest.BankAnswer `json:"banks,omitempty"`
	Error string            `json:"error,omitempty"`
}

// WhatIfSummary counts machines by effect, and by model and effect.
type WhatIfSummary struct {
	Policy   string         `json:"policy"` // name and version of the proposal
	Machines int            `json:"machines"`
	Effects  map[Effect]int `json:"effects"`
	Models   []WhatIfModel  `json:"models"`
}

// WhatIfModel counts the machines of one model.
type WhatIfModel struct {
	Vendor  string         `json:"vendor,omitempty"`
	Product string         `json:"product,omitempty"`
	Effects map[Effect]int `json:"effects"`
}
