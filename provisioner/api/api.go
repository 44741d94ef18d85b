// Package api holds the types on the wire between an installer and the
// provisioner. Nothing in it is secret, and nothing in it is trusted: the
// installer believes only the signature on the manifest that it fetches.
package api

import "encoding/json"

// VendorClass is the DHCP vendor class identifier (option 60) that the
// installer sends. The provisioner answers it with its HTTP base URL as the
// boot file name (option 67).
const VendorClass = "sealift-installer"

// Paths below the base URL.
const (
	PathPlan     = "v1/install/plan"     // GET ?mac=&uuid=: Plan
	PathProgress = "v1/install/progress" // POST Progress
	PathRecord   = "v1/install/record"   // POST Record
	PathImages   = "images/"             // GET images/<name>/<artifact>, with ranges
	PathBoot     = "boot/installer.efi"  // GET, HEAD: the installer UKI
)

// MaxBody bounds a request body, bytes.
const MaxBody = 256 << 10

// HostKey names a box by what it claims: a hint, never an identity.
type HostKey struct {
	MAC  string `json:"mac"`  // lower case with colons
	UUID string `json:"uuid"` // SMBIOS type 1 UUID, lower case, may be empty
}

// Plan tells an installer what to fetch. Paths are relative to the base URL.
type Plan struct {
	Manifest string `json:"manifest"` // signed manifest
	Bundle   string `json:"bundle"`   // its sigstore bundle
	Disk     string `json:"disk"`     // zstd-compressed raw disk
}

// Progress is one step of an install, for whoever watches the line.
type Progress struct {
	Host  HostKey `json:"host"`
	Phase string  `json:"phase"` // e.g. "secure-boot", "verify", "write", "failed"
	Done  int64   `json:"done,omitempty"`
	Total int64   `json:"total,omitempty"`
	Text  string  `json:"text,omitempty"` // at most 1024 bytes
}

// Record is the install record. Its body is the attestation service's
// api.InstallRecord; the provisioner stores and forwards it unread.
type Record struct {
	Host   HostKey         `json:"host"`
	Record json.RawMessage `json:"record"`
}
