package unlock

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
	"github.com/sealift/sealift/image/manifest"
)

// Label is the name of the state partition, of its volume and of its file
// system.
const Label = manifest.RoleState

// minState is the size of the smallest state partition that is made, in bytes.
const minState = 256 << 20

// tokenType marks the LUKS2 token that holds the sealed device half.
const tokenType = "sealift-tpm2"

// token is that token (LUKS2 On-Disk Format Specification, 3.5).
type token struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	DeviceHalf []byte   `json:"sealift-device-half"` // of TPM.SealDeviceHalf
	// Machine is to which machine the key was released last, its id in hex. Whoever
	// can write to the disk can change it: it is a name, and proves nothing.
	Machine noted `json:"sealift-machine,omitempty"`
}

// noted is a text that is optional: what is none is as good as empty.
type noted string

func (n *noted) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		s = ""
	}
	*n = noted(s)
	return nil
}

// TPM seals and opens device halves; *tpm.TPM is one.
type TPM interface {
	SealDeviceHalf(secret attest.Secret, pcrKeyPEM []byte) (blob []byte, err error)
	UnsealDeviceHalf(blob, pcrKeyPEM, pcrSignatureJSON []byte) (attest.Secret, error)
}

// Keys is what a disk key is made from.
type Keys struct {
	TPM          TPM
	PCRKey       []byte        // PEM, from the measured configuration
	PCRSignature []byte        // .pcrsig of the booted image
	ServiceHalf  attest.Secret // of the release
	// NextHalf is to take the place of ServiceHalf in the key of a state that
	// exists, which may be under either. Optional; of the release.
	NextHalf attest.Secret
	// Either: NextHalf only opens a state that is under it already, and takes no
	// place. Optional.
	Either bool
	// Machine is whose release it is, which is noted on the disk (State.NameFor).
	// Optional, and not noted with Either.
	Machine attest.MachineID
}

// Opened is a state that existed.
type Opened struct {
	Volume *luks2.Volume
	Node   string // with the file system
	// Rekeyed: there was a NextHalf, and no key but the one made with it opens
	// the volume. RekeyErr is why not; the volume is under one of the two.
	Rekeyed  bool
	RekeyErr error
	// NoteErr is why the machine was not noted that was to be.
	NoteErr error
}

// State is the state partition of the disk that this boot came from, or the
// place for one.
type State struct {
	disk  blockdev.Disk
	table *gpt.Table

	part    *gpt.Partition // nil: there is none yet
	header  *luks2.UntrustedHeader
	damaged error // a volume is there, and cannot be read
}

// Inspect looks for the state partition, and reads what can be read without a
// key. It writes nothing.
func Inspect(disk blockdev.Disk, table *gpt.Table) (*State, error) {
	s := &State{disk: disk, table: table}
	for _, p := range table.Partitions {
		if p.Name != Label {
			continue
		}
		if s.part != nil {
			return nil, fmt.Errorf("%s: partitions %d and %d are both named %s", disk, s.part.Number, p.Number, Label)
		}
		s.part = &p
	}
	if s.part == nil {
		return s, nil
	}
	if want := gpt.LinuxFilesystem(); s.part.Type != want {
		return nil, fmt.Errorf("%s: partition %d is named %s and has type %s, want %s", disk, s.part.Number, Label, s.part.Type, want)
	}
	f, err := os.Open(s.node())
	if err != nil {
		return nil, fmt.Errorf("look at the state partition: %w", err)
	}
	defer f.Close()
	s.header, err = luks2.ReadHeader(f)
	if err != nil && !errors.Is(err, luks2.ErrNoVolume) {
		s.damaged = err
	}
	return s, nil
}

// Exists reports whether a state was completed before, readable or not. It is
// what the evidence says of the disk, and only where it says no may the
// release of a disk key lead to Create.
func (s *State) Exists() bool { return s.header != nil || s.damaged != nil }

// DiskGUID returns the GUID of the disk, lower case.
func (s *State) DiskGUID() string { return s.table.Disk.String() }

func (s *State) node() string { return blockdev.PartitionNode(s.disk.Node, s.part.Number) }

// Open opens the existing state. It changes the disk only to make the key of
// the NextHalf the one that opens it, and to note the machine, both after it was
// opened; whatever is wrong with a state that does not open, it is left as it is.
func (s *State) Open(k Keys) (_ *Opened, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open state: %w", err)
		}
	}()
	if s.damaged != nil {
		return nil, s.damaged
	}
	if s.header == nil {
		return nil, errors.New("there is none")
	}
	flag := os.O_RDONLY
	if k.NextHalf != nil && !k.Either || s.notes(k) {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(s.node(), flag, 0)
	if err != nil {
		return nil, err
	}
	o, err := s.unlock(f, k)
	if err == nil && s.notes(k) {
		o.NoteErr = s.note(f, o.Volume, k.Machine)
	}
	// What was written was synced before.
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if o.Node, err = o.Volume.Activate(Label, s.node()); err != nil {
		return nil, err
	}
	return o, nil
}

// unlock opens the volume on d, with the next key if it is under that already,
// and then makes the next key the only one.
func (s *State) unlock(d luks2.Device, k Keys) (*Opened, error) {
	half, err := s.unseal(k)
	if err != nil {
		return nil, err
	}
	defer clear(half)
	key, err := DiskKey(half, k.ServiceHalf, s.DiskGUID())
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if k.NextHalf == nil {
		v, err := luks2.Open(d, s.part.Size(), key)
		if err != nil {
			return nil, err
		}
		return &Opened{Volume: v}, nil
	}
	next, err := DiskKey(half, k.NextHalf, s.DiskGUID())
	if err != nil {
		return nil, fmt.Errorf("next key: %w", err)
	}
	defer clear(next)
	v, err := luks2.Open(d, s.part.Size(), key)
	if errors.Is(err, luks2.ErrWrongKey) {
		v, err = luks2.Open(d, s.part.Size(), next)
	}
	if err != nil {
		return nil, err
	}
	o := &Opened{Volume: v}
	if k.Either {
		return o, nil
	}
	o.RekeyErr = v.Rekey(d, s.part.Size(), next)
	o.Rekeyed = o.RekeyErr == nil
	return o, nil
}

// unseal opens the device half, which only the machine's TPM can.
func (s *State) unseal(k Keys) (attest.Secret, error) {
	t, _, err := readToken(s.header)
	if err != nil {
		return nil, err
	}
	return k.TPM.UnsealDeviceHalf(t.DeviceHalf, k.PCRKey, k.PCRSignature)
}

// readToken returns the header's token with the sealed device half.
func readToken(h *luks2.UntrustedHeader) (*token, *luks2.UntrustedToken, error) {
	raw, ok := h.Token(tokenType)
	if !ok {
		return nil, nil, fmt.Errorf("its header has no token of type %s, or more than one", tokenType)
	}
	t := new(token)
	if err := json.Unmarshal(raw.JSON, t); err != nil {
		return nil, nil, fmt.Errorf("token of type %s: %w", tokenType, err)
	}
	if len(t.DeviceHalf) == 0 {
		return nil, nil, fmt.Errorf("token of type %s: no device half", tokenType)
	}
	return t, &raw, nil
}

// Create makes the state: a partition in the free space behind the image, a
// LUKS2 volume with a new volume key, and a file system, which mkfs makes on
// the node that it is given. The headers come last, so a power cut on the way
// leaves no state, and the next boot starts again.
//
// Create refuses where a state exists. The caller makes sure that the service
// released the key for evidence that said so.
func (s *State) Create(ctx context.Context, k Keys, mkfs func(ctx context.Context, node string) error) (_ *luks2.Volume, node string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create state: %w", err)
		}
	}()
	if s.Exists() {
		return nil, "", errors.New("there is one already")
	}
	key, blob, err := s.newKey(k)
	if err != nil {
		return nil, "", err
	}
	defer clear(key)
	if err := s.addPartition(ctx); err != nil {
		return nil, "", err
	}
	made := token{Type: tokenType, Keyslots: []string{"0"}, DeviceHalf: blob}
	if !k.Machine.IsZero() {
		made.Machine = noted(k.Machine.String())
	}
	t, err := json.Marshal(made)
	if err != nil {
		return nil, "", fmt.Errorf("encode token: %w", err)
	}
	f, err := os.OpenFile(s.node(), os.O_RDWR, 0)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	v, err := luks2.Prepare(f, s.part.Size(), key, luks2.Options{Label: Label, Tokens: []json.RawMessage{t}})
	if err != nil {
		return nil, "", err
	}
	if node, err = v.Activate(Label, s.node()); err != nil {
		return nil, "", err
	}
	if err := mkfs(ctx, node); err != nil {
		return nil, "", err
	}
	if err := v.Commit(f); err != nil {
		return nil, "", err
	}
	return v, node, nil
}

// newKey makes a device half, seals it, and proves that what was sealed opens
// again in this boot, before anything depends on it.
func (s *State) newKey(k Keys) (key attest.Secret, blob []byte, err error) {
	half := make(attest.Secret, halfSize)
	if _, err := rand.Read(half); err != nil {
		return nil, nil, fmt.Errorf("make the device half: %w", err)
	}
	defer clear(half)
	if blob, err = k.TPM.SealDeviceHalf(half, k.PCRKey); err != nil {
		return nil, nil, err
	}
	again, err := k.TPM.UnsealDeviceHalf(blob, k.PCRKey, k.PCRSignature)
	if err != nil {
		return nil, nil, fmt.Errorf("what was just sealed does not open: %w", err)
	}
	defer clear(again)
	if subtle.ConstantTimeCompare(half, again) != 1 {
		return nil, nil, errors.New("the TPM gives back another secret than was sealed")
	}
	if key, err = DiskKey(half, k.ServiceHalf, s.DiskGUID()); err != nil {
		return nil, nil, err
	}
	return key, blob, nil
}

// addPartition makes the partition, unless an interrupted Create has. The
// state of an earlier installation may lie in its place; it is erased before
// the table names the partition, or else a power cut would leave a disk whose
// state exists and can never be opened.
func (s *State) addPartition(ctx context.Context) (err error) {
	if s.part != nil {
		return nil
	}
	id, err := guid.New(rand.Reader)
	if err != nil {
		return err
	}
	p, err := s.table.Add(gpt.Partition{Type: gpt.LinuxFilesystem(), GUID: id, Name: Label}, minState)
	if err != nil {
		return err
	}
	disk, err := os.OpenFile(s.disk.Node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	if err := luks2.Erase(disk, p.Offset()); err != nil {
		return err
	}
	if err := gpt.Write(disk, s.disk.Size, s.table); err != nil {
		return err
	}
	// The root partition is in use, so the kernel cannot read the table again.
	if err := gpt.Announce(disk, p); err != nil {
		return err
	}
	s.part = &p
	return blockdev.Wait(ctx, s.node())
}
