package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// volumeState is the volume that a disk key opens: the state partition, which
// is all that a disk has today.
const volumeState = "state"

// diskPurpose is what a disk key is sealed for: one volume of one disk of one
// machine. Keys from before volumes were named have none.
func diskPurpose(id attest.MachineID, disk, volume string) []string {
	purpose := []string{"disk", id.String(), disk}
	if volume != "" {
		purpose = append(purpose, volume)
	}
	return purpose
}

// sealDiskKey seals the service's half of the key of a disk's state.
func (s *Server) sealDiskKey(key attest.Secret, id attest.MachineID, disk string) (*SealedKey, error) {
	k, err := s.keys.seal(key, diskPurpose(id, disk, volumeState)...)
	if err != nil {
		return nil, err
	}
	k.Volume = volumeState
	return k, nil
}

func (s *Server) openDiskKey(k *SealedKey, id attest.MachineID, disk string) (attest.Secret, error) {
	key, err := s.keys.open(k, diskPurpose(id, disk, k.Volume)...)
	if err != nil {
		return nil, err
	}
	if len(key) != diskKeySize {
		clear(key)
		return nil, fmt.Errorf("open sealed key: got %d bytes, want %d", len(key), diskKeySize)
	}
	return key, nil
}

// noDiskKey is the answer to a machine whose disk key cannot be opened. It
// never gets another one instead: its state would be lost.
func noDiskKey(cause error) *failure {
	if !errors.Is(cause, ErrNoKEK) {
		return internal(cause)
	}
	return &failure{
		status: http.StatusInternalServerError, code: "kek-missing", text: "the machine's disk key is under a key-encryption key that the service does not have",
		hint: "sealift keys kek status names it", cause: cause,
	}
}

// diskKey returns the service's half of the machine's disk key, which is made
// when it is first asked for and then sealed into m.
func (s *Server) diskKey(m *Machine) (key attest.Secret, made bool, err error) {
	if m.DiskKey != nil {
		key, err = s.openDiskKey(m.DiskKey, m.ID, m.DiskGUID)
		return key, false, err
	}
	if key, err = newSecret(diskKeySize); err != nil {
		return nil, false, err
	}
	m.DiskKey, err = s.sealDiskKey(key, m.ID, m.DiskGUID)
	return key, true, err
}

// nextKey returns the half that is to take the place of the present one, and
// the id of the rotation. There is none for a disk without a state: that will
// be made with the present key.
func (s *Server) nextKey(m *Machine, stateExists bool) (key attest.Secret, rotation string, err error) {
	if m.Rotation == nil || m.NextKey == nil || !stateExists {
		return nil, "", nil
	}
	key, err = s.openDiskKey(m.NextKey, m.ID, m.DiskGUID)
	return key, m.Rotation.ID, err
}

// rotateKey has the machine's next releases hold another disk key beside the
// present one, until the machine confirms that its volume is under the other.
// A machine whose key is being changed already stays as it is.
func (s *Server) rotateKey(ctx context.Context, id attest.MachineID, by, reason string) (*api.Machine, *failure) {
	reason, f := checkReason(reason)
	if f != nil {
		return nil, f
	}
	return s.change(ctx, id, func(m *Machine, now time.Time) ([]audit.Event, *failure) {
		switch {
		case m.Revision == 0:
			return nil, notFound(fmt.Sprintf("there is no machine %s", id))
		case m.DiskKey == nil:
			return nil, &failure{
				status: http.StatusConflict, code: api.CodeNoDiskKey, text: fmt.Sprintf("machine %s has no disk key yet", id),
				hint: "its first release makes one",
			}
		case m.Rotation != nil:
			return nil, nil
		}
		rotation, err := randomID()
		if err != nil {
			return nil, internal(err)
		}
		key, err := newSecret(diskKeySize)
		if err != nil {
			return nil, internal(err)
		}
		defer clear(key)
		if m.NextKey, err = s.sealDiskKey(key, m.ID, m.DiskGUID); err != nil {
			return nil, internal(fmt.Errorf("next disk key of machine %s: %w", id, err))
		}
		m.Rotation = &api.DiskKeyRotation{ID: rotation, Asked: now, By: by, Reason: reason}
		return []audit.Event{{Kind: audit.KindDiskKey, Machine: id, Data: audit.DiskKey{
			Event: audit.DiskKeyAsked, Rotation: rotation, DiskGUID: m.DiskGUID, By: by, Reason: reason,
		}}}, nil
	})
}

// rekeyed takes what a machine said of the change of its disk key, if the
// release that it speaks of held the next key of the present rotation. Nothing
// but that word makes the next key the present one: until then the volume may
// be under either.
func (m *Machine) rekeyed(rel *Release, outcome string, now time.Time) (events []audit.Event, changed bool) {
	if m.Rotation == nil || m.NextKey == nil || m.Rotation.ID != rel.Rotation {
		return nil, false
	}
	if why, not := api.NotRekeyed(outcome); not {
		m.Rotation.Failure = clip(why)
		return nil, true
	}
	if outcome != api.OutcomeRekeyed {
		return nil, false
	}
	events = []audit.Event{{Time: now, Kind: audit.KindDiskKey, Machine: m.ID, Data: audit.DiskKey{
		Event: audit.DiskKeyChanged, Rotation: m.Rotation.ID, DiskGUID: m.DiskGUID, ReleaseID: rel.ID,
	}}}
	m.DiskKey, m.NextKey, m.Rotation = m.NextKey, nil, nil
	return events, true
}

func (s *Server) postRotateKey(op Operator, w http.ResponseWriter, r *http.Request) (any, *failure) {
	id, f := machineID(r)
	if f != nil {
		return nil, f
	}
	var req api.StateChange
	if f := readBody(w, r, maxOperatorBody, bodyTimeout, &req); f != nil {
		return nil, f
	}
	m, f := s.rotateKey(r.Context(), id, op.Name, req.Reason)
	if f != nil {
		return nil, f
	}
	if m.Rotation != nil {
		s.c.Log.Info("disk key is to change", "machine", id.Short(), "rotation", m.Rotation.ID, "by", op.Name)
	}
	return m, nil
}
