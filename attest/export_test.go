package attest

import "testing"

// What the tests against swtpm, which are outside the package because they
// import packages above it, share with those inside.

// RealPolicy returns the policy and record under which the boot of a real log
// is accepted, and what the agent sends beside the TPM's structures.
func RealPolicy(tb testing.TB, name string) (*Policy, *Known, *Evidence) {
	s := realScene(tb, name)
	return s.policy, s.known, &Evidence{EventLog: s.rawLog, SMBIOS: s.smbios, Disk: s.disk}
}
