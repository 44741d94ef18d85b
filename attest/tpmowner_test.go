package attest_test

import (
	"slices"
	"strings"
	"testing"

	. "github.com/sealift/sealift/attest"
)

func TestATPMThatIsAnotherMachineIsRefused(t *testing.T) {
	other := MachineID{7}
	for name, c := range map[string]struct {
		owner func(self MachineID) MachineID
		state EnrolmentState
		self  EnrolmentState // enrolled if unset
		want  []Code
		hint  string
	}{
		"it is none":                  {owner: func(MachineID) MachineID { return MachineID{} }},
		"it is this one":              {owner: func(self MachineID) MachineID { return self }, state: StateEnrolled},
		"another that is enrolled":    {state: StateEnrolled, want: []Code{CodeTPMTaken}, hint: "re-enrol --old " + other.String()},
		"another that is revoked":     {state: StateRevoked, want: []Code{CodeTPMTaken}, hint: "machine show " + other.String()},
		"another that is quarantined": {state: StateQuarantined, want: []Code{CodeTPMTaken}, hint: "machine show " + other.String()},
		"a duplicate that is revoked": {state: StateRevoked, want: []Code{CodeTPMTaken}, hint: "re-enrol --old " + other.String()},
		"a locked-out one comes back": {state: StateRevoked, self: StatePending, want: []Code{CodeMachinePending, CodeTPMTaken}, hint: "machine show " + other.String()},
		"another in an unheard state": {state: "lost", want: []Code{CodeTPMTaken}, hint: "machine show " + other.String()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			self, err := s.tpm.MachineID()
			if err != nil {
				t.Fatal(err)
			}
			s.known.TPMOwner, s.known.TPMOwnerState = other, c.state
			if c.owner != nil {
				s.known.TPMOwner = c.owner(self)
			}
			if c.self != "" {
				s.known.State = c.self
			}
			s.known.OtherKeys = []MachineID{{8}}
			s.collect()
			r := s.verify()
			if got := codesOf(r); !slices.Equal(got, c.want) || r.Allowed != (c.want == nil) {
				t.Fatalf("codes are %q, want %q", got, c.want)
			}
			if !slices.Contains(r.Facts, Fact{Name: "tpm.key.other", Value: MachineID{8}.String(), Trust: TrustRecorded}) {
				t.Error("no fact tells of the other key")
			}
			for _, f := range r.Findings {
				if f.Code != CodeTPMTaken {
					continue
				}
				if re := strings.Contains(f.Hint, "re-enrol"); re != (c.self == "") {
					t.Errorf("names re-enrol: %t: %s", re, f.Hint)
				}
				if !strings.Contains(f.Hint, c.hint) || f.Got != self.String() || f.Want != other.String() || !strings.Contains(f.Message, "another endorsement key of the same TPM") {
					t.Errorf("got %+v", f)
				}
			}
		})
	}
}
