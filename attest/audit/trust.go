package audit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"slices"

	"github.com/sealift/sealift/attest"
)

// MaxFormerKeys bounds how many release keys a service may have had before.
const MaxFormerKeys = 16

// ReleaseKeys are the public release keys of a service, ECDSA P-256: the one that it
// signs with, and those that it signed with before.
type ReleaseKeys struct {
	Present *ecdsa.PublicKey
	// Former are at most MaxFormerKeys, the latest last. What they signed counts for
	// what was before the next of them. Optional.
	Former []*ecdsa.PublicKey
}

// ErrUnknownKey: something is signed with none of the ReleaseKeys.
var ErrUnknownKey = errors.New("it is signed with a release key that is neither the present one nor a former one")

// all returns the keys and their ids, the present one last.
func (k ReleaseKeys) all() ([]*ecdsa.PublicKey, []string, error) {
	if len(k.Former) > MaxFormerKeys {
		return nil, nil, fmt.Errorf("%d former release keys, at most %d allowed", len(k.Former), MaxFormerKeys)
	}
	keys := append(slices.Clone(k.Former), k.Present)
	var ids []string
	for _, key := range keys {
		if key == nil || key.Curve != elliptic.P256() {
			return nil, nil, errors.New("a release key is not ECDSA P-256")
		}
		id, err := keyID(key)
		if err != nil {
			return nil, nil, err
		}
		if slices.Contains(ids, id) {
			return nil, nil, fmt.Errorf("release key %s is there twice", id)
		}
		ids = append(ids, id)
	}
	return keys, ids, nil
}

// Check refuses keys that are of another kind, too many, or there twice.
func (k ReleaseKeys) Check() error {
	_, _, err := k.all()
	return err
}

// ByID returns the key of that id: the SHA-256 of its SubjectPublicKeyInfo in hex. If it
// is none of k the error wraps ErrUnknownKey.
func (k ReleaseKeys) ByID(id string) (*ecdsa.PublicKey, error) {
	keys, ids, err := k.all()
	if err != nil {
		return nil, err
	}
	i := slices.Index(ids, id)
	if i < 0 {
		return nil, fmt.Errorf("%w: key %.64q, the present one is %s", ErrUnknownKey, id, ids[len(ids)-1])
	}
	return keys[i], nil
}

// Open is Envelope.Open with the key that e says it is signed with, and reports whether
// that is the present one.
func (k ReleaseKeys) Open(e *Envelope, payloadType string, v any) (present bool, err error) {
	if e == nil {
		return false, e.Open(k.Present, payloadType, v)
	}
	key, err := k.ByID(e.SignedBy())
	if err != nil {
		return false, err
	}
	return key.Equal(k.Present), e.Open(key, payloadType, v)
}

// Unsigned is an entry of a log that enrols a machine, or puts some on a list, and does
// not count, as the service did not sign it, or not so.
type Unsigned struct {
	Seq     int64            // of the entry
	Kind    Kind             // KindState or KindExpected
	Machine attest.MachineID // of a KindState
	Keys    int              // of a KindExpected: endorsement keys that it does not put on a list
	Why     string           // such as "it is not signed"
	// Unknown: it is signed with a release key that is none of the ReleaseKeys, or is
	// said to be.
	Unknown bool
}

func (u Unsigned) String() string {
	if u.Kind == KindExpected {
		return fmt.Sprintf("audit entry %d puts %d endorsement keys on a list, and does not count: %s", u.Seq, u.Keys, u.Why)
	}
	return fmt.Sprintf("audit entry %d enrols machine %s, and does not count: %s", u.Seq, u.Machine, u.Why)
}

// maxUnsigned is how many Unsigned a Standing keeps one by one until it is asked.
const maxUnsigned = 8

// UnsignedEntries are those that a Standing met since it was last asked.
type UnsignedEntries struct {
	First []Unsigned // at most 8
	// More is how many came after these, From and To which entries the first and the
	// last of them are, and Unknown whether one of them is.
	More, From, To int64
	Unknown        bool
}

func (u *UnsignedEntries) add(e Unsigned) {
	if len(u.First) < maxUnsigned {
		u.First = append(u.First, e)
		return
	}
	if u.More == 0 {
		u.From = e.Seq
	}
	u.More, u.To, u.Unknown = u.More+1, e.Seq, u.Unknown || e.Unknown
}

// Empty reports whether there is none.
func (u *UnsignedEntries) Empty() bool { return len(u.First) == 0 }

// Retell puts back what Unsigned returned and nobody could be told of.
func (s *Standing) Retell(u UnsignedEntries) {
	since := s.unsigned
	s.unsigned = u
	for _, e := range since.First {
		s.unsigned.add(e)
	}
	if since.More > 0 {
		if s.unsigned.More == 0 {
			s.unsigned.From = since.From
		}
		s.unsigned.More, s.unsigned.To, s.unsigned.Unknown = s.unsigned.More+since.More, since.To, s.unsigned.Unknown || since.Unknown
	}
}
