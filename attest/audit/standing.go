package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/image/manifest"
)

// TrustType is the DSSE payload type of a Trust.
const TrustType = "application/vnd.sealift.enrolment.v1+json"

// Trust is what the service signs of an entry that enrols a machine, or that says
// beforehand which machines are to be enrolled. Anybody who writes to the database can
// append an entry to the log, as its hashes need no key; this he cannot make.
type Trust struct {
	Kind    Kind             `json:"kind"`
	Machine attest.MachineID `json:"machine,omitzero"` // the entry's
	// Time is later than that of all entries of the machine which came before, so that
	// an entry from before a revocation cannot be written once more after it.
	Time time.Time `json:"time"`
	// Data is the SHA-256 of the entry's data, without the signature.
	Data manifest.SHA256 `json:"data"`
}

// enrols reports whether the change gives a machine trust that it did not have.
func (d *StateChange) enrols() bool {
	return d.To == attest.StateEnrolled && d.From != attest.StateEnrolled
}

// NeedsTrust reports whether an event counts only with a signature, see SignTrust.
func NeedsTrust(ev Event) bool {
	switch d := ev.Data.(type) {
	case StateChange:
		return d.enrols()
	case Expected:
		return true
	}
	return false
}

// SignTrust signs an event that NeedsTrust, with the release key of the service. at
// is the Trust's time.
func SignTrust(key crypto.Signer, ev Event, at time.Time) (Event, error) {
	t := Trust{Kind: ev.Kind, Machine: ev.Machine, Time: at.UTC().Round(0)}
	switch d := ev.Data.(type) {
	case StateChange:
		d.Trust = nil
		return signTrust(key, ev, t, d, func(e *Envelope) any { d.Trust = e; return d })
	case Expected:
		d.Trust = nil
		return signTrust(key, ev, t, d, func(e *Envelope) any { d.Trust = e; return d })
	}
	return ev, fmt.Errorf("an entry of kind %s enrols nobody", ev.Kind)
}

func signTrust(key crypto.Signer, ev Event, t Trust, bare any, with func(*Envelope) any) (Event, error) {
	b, err := json.Marshal(bare)
	if err != nil {
		return ev, fmt.Errorf("sign an entry of kind %s: %w", ev.Kind, err)
	}
	t.Data = sha256.Sum256(b)
	e, err := Sign(key, TrustType, t)
	if err != nil {
		return ev, err
	}
	ev.Data = with(e)
	return ev, nil
}

// machineStanding is where a log leaves a machine: the time of the last entry that
// counted, in microseconds since 1970, and in the lowest two bits its state.
type machineStanding uint64

// States of a machineStanding. A machine that was never more than pending has none.
const (
	notEnrolled machineStanding = iota
	enrolled
	quarantined
	revoked
)

const stateBits = 3

func standingOf(state machineStanding, at int64) machineStanding {
	return machineStanding(at)<<2 | state
}
func (s machineStanding) state() machineStanding { return s & stateBits }
func (s machineStanding) at() int64              { return int64(s >> 2) }
func (s machineStanding) locked() bool           { return s.state() >= quarantined }

// enrolment returns the state as the log names it.
func (s machineStanding) enrolment() attest.EnrolmentState {
	return [...]attest.EnrolmentState{attest.StatePending, attest.StateEnrolled, attest.StateQuarantined, attest.StateRevoked}[s.state()]
}

// keyStanding is where a log leaves an endorsement key that was enrolled beforehand:
// the time as in machineStanding, in the lowest bit that it is still expected, and the
// beginning of a digest of the serial number.
type keyStanding struct{ at, serial uint64 }

func (k keyStanding) lastAt() int64 { return int64(k.at >> 1) }

// Standing is what a log says of each machine: whether it may have secrets. It holds
// some 50 bytes for each, so that it can be asked before every release.
//
// The rules, by which a database that somebody changed does not give trust:
//
//   - an entry that enrols counts only if the service signed it, for this machine, and
//     later than the entry before, and than the last restore; but for entries without a
//     signature from before the first start of a service that signs them, with any key
//   - it must be signed with the present release key, or with a former one and be from
//     before the first start of a service with a later one
//   - a revoked or quarantined machine is enrolled only by an entry that says that it
//     was just that: `machine reinstate`. An entry by which it was unknown or pending
//     before was decided on a record that somebody had changed
//   - an entry that takes trust away counts in any case
//
// What may be given because of it is for the record in the store to say as well.
type Standing struct {
	keys []*ecdsa.PublicKey // the present one is the last
	ids  []string           // of keys
	head Head
	// signed: a service that signs enrolments has started.
	signed bool
	// since is the last of keys with which a service has started. Those before it do
	// not count any more.
	since int
	// restored is the time of the last entry that says that the store was filled from a
	// backup, as in machineStanding. What was signed before, and is not in that log, may
	// not be written into it.
	restored int64
	machines map[attest.MachineID]machineStanding
	expected map[manifest.SHA256]keyStanding // by the digests that lists name
	// unsigned are entries that nobody was told of yet, unknown the keys that some were
	// signed with, by their own word.
	unsigned UnsignedEntries
	unknown  []string
	// dirty are the parts that changed since Parts last returned them.
	dirty [Shards]bool
}

// Shards is how many parts a Standing is kept in: machines and keys by their first
// byte.
const Shards = 256

// maxUnknown bounds how many ids of unknown keys are remembered.
const maxUnknown = 4

// NewStanding returns that of an empty log of a service with these release keys.
func NewStanding(of ReleaseKeys) (*Standing, error) {
	keys, ids, err := of.all()
	if err != nil {
		return nil, fmt.Errorf("what the log says of machines: %w", err)
	}
	return &Standing{keys: keys, ids: ids, machines: map[attest.MachineID]machineStanding{}, expected: map[manifest.SHA256]keyStanding{}}, nil
}

// Head returns the last entry that was noted.
func (s *Standing) Head() Head { return s.head }

// Len returns of how many machines, and of how many keys that were enrolled beforehand,
// the log says something.
func (s *Standing) Len() (machines, expected int) { return len(s.machines), len(s.expected) }

// Restored returns when the store was last filled from a backup, zero if it never was. An
// entry that enrols must be signed later.
func (s *Standing) Restored() time.Time {
	if s.restored == 0 {
		return time.Time{}
	}
	return time.UnixMicro(s.restored).UTC()
}

// Machine returns the state in which the log leaves a machine, and when: the time of the
// entry. StateUnknown and no time: no entry says that it was ever enrolled or locked out.
func (s *Standing) Machine(id attest.MachineID) (attest.EnrolmentState, time.Time) {
	m, ok := s.machines[id]
	if !ok {
		return attest.StateUnknown, time.Time{}
	}
	return m.enrolment(), time.UnixMicro(m.at()).UTC()
}

// Expected reports whether the log says that an endorsement key, by a digest, is to be
// enrolled with a serial number, and when it was last said.
func (s *Standing) Expected(ek manifest.SHA256, serial string) (bool, time.Time) {
	k, ok := s.expected[ek]
	if !ok {
		return false, time.Time{}
	}
	return k.at&1 == 1 && k.serial == serialDigest(serial), time.UnixMicro(k.lastAt()).UTC()
}

func serialDigest(serial string) uint64 {
	d := sha256.Sum256([]byte(attest.SerialKey(serial)))
	return binary.BigEndian.Uint64(d[:8])
}

// micros is a time of an entry, as the log may have any. There is room for a Trust after
// any: JSON has no time after the year 9999 (RFC 3339).
func micros(t time.Time) int64 { return min(max(t.UnixMicro(), 0), lastMicro) }

// lastMicro is the beginning of the year 9000, in microseconds since 1970.
const lastMicro = 221_845_392_000_000_000

// Note takes an entry, which must be the one after those that s is of; whether it is, is
// for a Verifier to say. An error says that the entry is none that the service wrote.
func (s *Standing) Note(e Entry) error {
	if e.Seq != s.head.Seq+1 || e.Prev != s.head.Hash {
		return fmt.Errorf("audit entry %d does not follow entry %d", e.Seq, s.head.Seq)
	}
	var err error
	switch e.Kind {
	case KindStart:
		var d Start
		if err = json.Unmarshal(e.Data, &d); err == nil {
			s.signed = s.signed || d.SignsEnrolments
			s.since = max(s.since, slices.Index(s.ids, d.ReleaseKey))
		}
	case KindRestore:
		s.restored = max(s.restored, micros(e.Time))
	case KindState:
		var d StateChange
		if err = json.Unmarshal(e.Data, &d); err == nil {
			s.change(e, &d)
		}
	case KindExpected:
		var d Expected
		if err = json.Unmarshal(e.Data, &d); err == nil {
			err = s.expect(e, &d)
		}
	}
	if err != nil {
		return fmt.Errorf("audit entry %d (%s): %w", e.Seq, e.Kind, err)
	}
	s.head = e.Head()
	return nil
}

// trusted returns the time at which the service signed an entry, whose data without the
// signature is bare; that of the entry if it need not be signed. An error says why the
// entry does not count.
func (s *Standing) trusted(e Entry, signed *Envelope, bare any) (at int64, fault error) {
	if signed == nil {
		if s.signed {
			return 0, errors.New("it is not signed")
		}
		return micros(e.Time), nil
	}
	by := signed.SignedBy()
	i := slices.Index(s.ids, by)
	if i < 0 {
		if len(by) == 2*sha256.Size && len(s.unknown) < maxUnknown && !slices.Contains(s.unknown, by) {
			s.unknown = append(s.unknown, by)
		}
		return 0, fmt.Errorf("%w: %.64q", ErrUnknownKey, by)
	}
	if i < s.since {
		return 0, fmt.Errorf("it is signed with the former release key %s, after the service had changed it", by)
	}
	var t Trust
	if err := signed.Open(s.keys[i], TrustType, &t); err != nil {
		return 0, err
	}
	b, err := json.Marshal(bare)
	switch {
	case err != nil:
		return 0, err
	case t.Kind != e.Kind || t.Machine != e.Machine || t.Data != sha256.Sum256(b):
		return 0, errors.New("its signature is that of another entry")
	}
	return max(t.Time.UnixMicro(), 0), nil
}

// overtaken says that an entry was signed, at when, no later than what came before it of
// the same machine or key, or than the last restore. Nil: it was.
func (s *Standing) overtaken(when int64, known bool, last int64) error {
	switch {
	case !s.signed:
	case known && when <= last:
		return errors.New("it was signed before an earlier entry of the same: it was written once more")
	case when <= s.restored:
		return errors.New("it was signed before the store was restored from a backup")
	}
	return nil
}

// doubt notes an entry that would enrol.
func (s *Standing) doubt(e Entry, keys int, why error) {
	s.unsigned.add(Unsigned{Seq: e.Seq, Kind: e.Kind, Machine: e.Machine, Keys: keys, Why: fmt.Sprintf("%.300s", why), Unknown: errors.Is(why, ErrUnknownKey)})
}

// Unsigned returns the entries that it met since it was last asked and that would enrol
// if the service had signed them so.
func (s *Standing) Unsigned() UnsignedEntries {
	u := s.unsigned
	s.unsigned = UnsignedEntries{}
	return u
}

// Doubts reports whether Unsigned has any.
func (s *Standing) Doubts() bool { return !s.unsigned.Empty() }

// UnknownKeys returns the ids of keys that are none of the ReleaseKeys and that entries
// which enrol say that they are signed with, at most 4. It proves nothing.
func (s *Standing) UnknownKeys() []string { return slices.Clone(s.unknown) }

func (s *Standing) change(e Entry, d *StateChange) {
	was, known := s.machines[e.Machine]
	at := max(micros(e.Time), was.at())
	set := func(state machineStanding) {
		s.machines[e.Machine] = standingOf(state, at)
		s.dirty[e.Machine[0]] = true
	}
	switch {
	case d.From == d.To:
	case d.To == attest.StateRevoked:
		set(revoked)
	case d.To == attest.StateQuarantined && (was.state() != revoked || d.From == attest.StateRevoked):
		set(quarantined)
	case d.To == attest.StateEnrolled:
		signed := d.Trust
		d.Trust = nil
		when, fault := s.trusted(e, signed, d)
		if fault == nil {
			fault = s.overtaken(when, known, was.at())
		}
		switch {
		case fault != nil:
			s.doubt(e, 0, fault)
		case was.locked() && d.From != was.enrolment():
		case !was.locked() && d.From != attest.StateUnknown && d.From != attest.StatePending:
		default:
			at = max(when, was.at())
			set(enrolled)
		}
	case was.locked():
	case known: // pending, or a state of a later version
		set(notEnrolled)
	}
}

// expect notes machines that are enrolled beforehand. Entries of earlier versions have
// no bindings, and do not name those in whose place others came.
func (s *Standing) expect(e Entry, d *Expected) error {
	signed := d.Trust
	d.Trust = nil
	when, fault := s.trusted(e, signed, d)
	doubted, why := 0, error(nil)
	defer func() {
		if doubted > 0 {
			s.doubt(e, doubted, why)
		}
	}()
	note := func(ek manifest.SHA256, serial string, withdrawn bool) {
		was, known := s.expected[ek]
		next := keyStanding{serial: serialDigest(serial)}
		switch {
		case withdrawn:
			next.at = uint64(max(micros(e.Time), was.lastAt())) << 1
		default:
			err := fault
			if err == nil {
				err = s.overtaken(when, known, was.lastAt())
			}
			if err != nil {
				doubted, why = doubted+1, err
				return
			}
			next.at = uint64(max(when, was.lastAt()))<<1 | 1
		}
		s.expected[ek] = next
		s.dirty[ek[0]] = true
	}
	if d.Bindings == nil {
		for _, m := range d.Machines {
			note(m.EK, m.Serial, m.Outcome == outcomeWithdrawn)
		}
		return nil
	}
	for _, b := range d.Bindings {
		if b.Kind != BindingExpected {
			continue
		}
		var of struct {
			Serial    string          `json:"serial"`
			EK        manifest.SHA256 `json:"ek"`
			Withdrawn bool            `json:"withdrawn"`
		}
		if err := json.Unmarshal(b.Body, &of); err != nil {
			return fmt.Errorf("what is expected: %w", err)
		}
		if of.EK.String() == b.Name {
			note(of.EK, of.Serial, of.Withdrawn)
		}
	}
	return nil
}

// outcomeWithdrawn is an ExpectedLine's Outcome.
const outcomeWithdrawn = "withdrawn"

// StandingType is the DSSE payload type of a StandingStatement.
const StandingType = "application/vnd.sealift.standing.v1+json"

// StandingStatement is what the service signs of a Standing that it keeps, so that it
// need not read all of its log when it starts. Whoever uses it must see that the log
// goes on from Head to one that is known to be the log's.
type StandingStatement struct {
	Head   Head      `json:"head"`
	Time   time.Time `json:"time"`
	Signed bool      `json:"signed"` // entries that enrol must be signed from here on
	// Restored is when the store was last filled from a backup, see Standing.Restored.
	Restored time.Time `json:"restored,omitzero"`
	// Keys are the ids of the ReleaseKeys that it was made with, the present one last:
	// with others the log says something else. Since is how many of them do not count
	// any more.
	Keys  []string `json:"keys,omitempty"`
	Since int      `json:"since,omitempty"`
	// Unknown is Standing.UnknownKeys.
	Unknown []string `json:"unknown,omitempty"`
	// Shards are the digests of the parts that are not empty, by their number in two
	// hex digits.
	Shards map[string]manifest.SHA256 `json:"shards"`
}

// ShardName names a part in a StandingStatement.
func ShardName(shard int) string { return fmt.Sprintf("%02x", shard) }

// Statement returns what is to be signed of s but for the parts.
func (s *Standing) Statement(at time.Time) StandingStatement {
	return StandingStatement{Head: s.head, Time: at.UTC().Round(0), Signed: s.signed, Restored: s.Restored(), Keys: slices.Clone(s.ids), Since: s.since, Unknown: s.UnknownKeys()}
}

// Sizes of the records of a shard, bytes.
const (
	shardHeader  = 8
	machineBytes = sha256.Size + 8
	keyBytes     = sha256.Size + 16
)

// Changed reports whether any part changed since Parts last returned it.
func (s *Standing) Changed() bool { return s.dirty != [Shards]bool{} }

// Parts returns the parts that changed since they were last returned, and those whose
// numbers are given, encoded.
//
// The encoding: the number of machines, 8 bytes, then the machines in the order of
// their ids, each its id and its machineStanding, 8 bytes, then the keys in the order
// of their digests, each its digest and its keyStanding, 16 bytes; numbers are
// big-endian.
func (s *Standing) Parts(also ...int) map[int][]byte {
	want := s.dirty
	for _, i := range also {
		want[i] = true
	}
	s.dirty = [Shards]bool{}
	var machines [Shards][]attest.MachineID
	var keys [Shards][]manifest.SHA256
	for id := range s.machines {
		if want[id[0]] {
			machines[id[0]] = append(machines[id[0]], id)
		}
	}
	for ek := range s.expected {
		if want[ek[0]] {
			keys[ek[0]] = append(keys[ek[0]], ek)
		}
	}
	out := map[int][]byte{}
	for i, wanted := range want {
		if !wanted {
			continue
		}
		slices.SortFunc(machines[i], func(a, b attest.MachineID) int { return bytes.Compare(a[:], b[:]) })
		slices.SortFunc(keys[i], func(a, b manifest.SHA256) int { return bytes.Compare(a[:], b[:]) })
		b := make([]byte, 0, shardHeader+len(machines[i])*machineBytes+len(keys[i])*keyBytes)
		b = binary.BigEndian.AppendUint64(b, uint64(len(machines[i])))
		for _, id := range machines[i] {
			b = binary.BigEndian.AppendUint64(append(b, id[:]...), uint64(s.machines[id]))
		}
		for _, ek := range keys[i] {
			k := s.expected[ek]
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(append(b, ek[:]...), k.at), k.serial)
		}
		out[i] = b
	}
	return out
}

// ErrOtherKeys: a StandingStatement was made with other ReleaseKeys, or by an earlier
// version.
var ErrOtherKeys = errors.New("what is kept of what the log says of machines was made with other release keys")

// RestoreStanding makes a Standing of what was kept: a statement whose signature the
// caller has verified, and its parts by their names. Each part must be the one whose
// digest is in the statement, which must be of the same keys (ErrOtherKeys).
func RestoreStanding(keys ReleaseKeys, of *StandingStatement, parts map[string][]byte) (*Standing, error) {
	s, err := NewStanding(keys)
	if err != nil {
		return nil, err
	}
	switch {
	case !slices.Equal(of.Keys, s.ids):
		return nil, ErrOtherKeys
	case of.Since < 0 || of.Since >= len(s.ids) || len(of.Unknown) > maxUnknown:
		return nil, errors.New("what the log says of machines is not as it was written")
	}
	s.head, s.signed, s.since, s.unknown = of.Head, of.Signed, of.Since, slices.Clone(of.Unknown)
	if !of.Restored.IsZero() {
		s.restored = micros(of.Restored)
	}
	for name, want := range of.Shards {
		if got := manifest.SHA256(sha256.Sum256(parts[name])); got != want {
			return nil, fmt.Errorf("part %s of what the log says of machines is %s, the service signed %s", name, got, want)
		}
		if err := s.decode(name, parts[name]); err != nil {
			return nil, fmt.Errorf("part %s of what the log says of machines: %w", name, err)
		}
	}
	return s, nil
}

func (s *Standing) decode(name string, b []byte) error {
	if len(b) < shardHeader {
		return fmt.Errorf("it has %d bytes, at least %d needed", len(b), shardHeader)
	}
	n, b := binary.BigEndian.Uint64(b), b[shardHeader:]
	if n > uint64(len(b)/machineBytes) || (len(b)-int(n)*machineBytes)%keyBytes != 0 {
		return fmt.Errorf("it says %d machines, and has %d bytes", n, len(b))
	}
	var id [sha256.Size]byte
	take := func(size int) (err error) {
		copy(id[:], b)
		if ShardName(int(id[0])) != name {
			err = errors.New("it has what belongs to another part")
		}
		b = b[size:]
		return err
	}
	for range n {
		v := machineStanding(binary.BigEndian.Uint64(b[sha256.Size:]))
		if err := take(machineBytes); err != nil {
			return err
		}
		s.machines[id] = v
	}
	for len(b) > 0 {
		k := keyStanding{binary.BigEndian.Uint64(b[sha256.Size:]), binary.BigEndian.Uint64(b[sha256.Size+8:])}
		if err := take(keyBytes); err != nil {
			return err
		}
		s.expected[id] = k
	}
	return nil
}
