package unlock

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

// machine returns to which machine the header says that the key was released last,
// zero if it does not.
func (s *State) machine() attest.MachineID {
	if s.header == nil {
		return attest.MachineID{}
	}
	t, _, err := readToken(s.header)
	if err != nil {
		return attest.MachineID{}
	}
	id, err := attest.ParseMachineID(string(t.Machine))
	if err != nil {
		return attest.MachineID{}
	}
	return id
}

// NameFor returns the machine under which people find this state at the service: that
// to which its key was released last, which a TPM with a new endorsement certificate
// may not choose to be (own) before the service has told it. The header is whoever's
// who can write to the disk. So it is gone by only if this TPM opens the device half:
// a disk from another box is not asked for by that box's name. Otherwise it is own,
// and the error says why.
func (s *State) NameFor(k Keys, own attest.MachineID) (attest.MachineID, error) {
	noted := s.machine()
	if noted.IsZero() || noted == own {
		return own, nil
	}
	half, err := s.unseal(k)
	if err != nil {
		return own, fmt.Errorf("the disk was released to machine %s, whose TPM this is not: %w", noted.Short(), err)
	}
	clear(half)
	return noted, nil
}

// notes reports whether the machine is to be noted on the disk.
func (s *State) notes(k Keys) bool {
	return !k.Either && !k.Machine.IsZero() && s.machine() != k.Machine
}

// note writes to which machine the key of an open volume was released. Whatever else
// is in the token stays.
func (s *State) note(d luks2.Device, v *luks2.Volume, id attest.MachineID) error {
	_, raw, err := readToken(s.header)
	if err != nil {
		return err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw.JSON, &fields); err != nil {
		return fmt.Errorf("token of type %s: %w", tokenType, err)
	}
	// What differs in case only is decoded as the same, and may come after it.
	maps.DeleteFunc(fields, func(name string, _ json.RawMessage) bool { return strings.EqualFold(name, "sealift-machine") })
	if fields["sealift-machine"], err = json.Marshal(id.String()); err != nil {
		return err
	}
	t, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return v.SetToken(d, raw.ID, t)
}
