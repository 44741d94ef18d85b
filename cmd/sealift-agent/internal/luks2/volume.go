// Package luks2 formats and opens the encrypted state partition: a LUKS2
// volume (LUKS2 On-Disk Format Specification 1.1) of one fixed shape, which
// cryptsetup reads too. Open accepts that shape only; a header is untrusted
// input, and ciphers, key derivations or segments of any other kind are
// refused before a key is used.
//
// Prepare and Commit make a volume in two steps, with the file system made
// between them, so that Open finds either a complete volume or none. Format
// does both at once. Rekey changes the key of a volume.
package luks2

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/dm"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
)

// KeySize is the size of the key that opens a volume, in bytes. It is a
// uniformly random or derived key, never a passphrase, so the minimum of
// PBKDF2 iterations is enough.
const KeySize = 32

// MinSize is the size of the smallest device that Prepare accepts, in bytes.
const MinSize = dataOffset + 1<<20

// Device is a partition or a file that is open for writing; *os.File is one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // returns when everything written is durable
}

// Options are what Prepare may be told. The zero value is usable.
type Options struct {
	UUID   string            // Optional; random if empty. Lower case.
	Label  string            // Optional; at most 47 bytes.
	Tokens []json.RawMessage // Optional; objects with "type" and "keyslots": ["0"].
	Rand   io.Reader         // Optional; crypto/rand if nil.
}

// Volume is an opened volume.
type Volume struct {
	UUID   string
	Label  string
	Key    attest.Secret // volume key, 64 bytes
	Offset int64         // start of the data, bytes
	Size   int64         // length of the data, bytes; a multiple of 4096

	pending [2][]byte // the secondary and primary header that Commit writes
}

// Prepare makes a new volume on a device of size bytes: it erases the headers
// of an old one and writes the key area. The volume can be activated and
// filled, but Open does not find it before Commit.
func Prepare(d Device, size int64, key attest.Secret, o Options) (*Volume, error) {
	v, keyArea, err := build(size, key, o)
	if err != nil {
		return nil, fmt.Errorf("format LUKS2 volume: %w", err)
	}
	for _, w := range []struct {
		what string
		data []byte
		at   int64
	}{
		// The primary first: a power cut in between leaves the old volume or
		// none, never two damaged headers.
		{"erase the old primary header", make([]byte, headerSize), 0},
		{"erase the old secondary header", make([]byte, headerSize), headerSize},
		{"write the key area", keyArea, 2 * headerSize},
	} {
		if _, err := d.WriteAt(w.data, w.at); err != nil {
			return nil, fmt.Errorf("format LUKS2 volume: %s: %w", w.what, err)
		}
		if err := d.Sync(); err != nil {
			return nil, fmt.Errorf("format LUKS2 volume: %s: sync: %w", w.what, err)
		}
	}
	return v, nil
}

// Erase makes sure that Open finds no volume on the partition that starts at
// that offset of d, in bytes: what an earlier installation left there must not
// be taken for this one's. It returns when that is durable.
func Erase(d Device, at int64) error {
	if _, err := d.WriteAt(make([]byte, 2*headerSize), at); err != nil {
		return fmt.Errorf("erase LUKS2 headers at %d: %w", at, err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("erase LUKS2 headers at %d: sync: %w", at, err)
	}
	return nil
}

// Commit makes a volume that Prepare returned one that Open finds: it writes
// the secondary header, then the primary, each made durable before the next.
func (v *Volume) Commit(d Device) error {
	if v.pending[0] == nil {
		return errors.New("commit LUKS2 volume: it was not prepared, or is committed already")
	}
	for i, at := range []int64{headerSize, 0} {
		if _, err := d.WriteAt(v.pending[i], at); err != nil {
			return fmt.Errorf("commit LUKS2 volume: write header at %d: %w", at, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("commit LUKS2 volume: sync header at %d: %w", at, err)
		}
	}
	v.pending = [2][]byte{}
	return nil
}

// Format is Prepare and Commit.
func Format(d Device, size int64, key attest.Secret, o Options) (*Volume, error) {
	v, err := Prepare(d, size, key, o)
	if err != nil {
		return nil, err
	}
	if err := v.Commit(d); err != nil {
		return nil, err
	}
	return v, nil
}

// Open finds the volume on a device of size bytes and opens it. Errors are
// ErrNoVolume where none was ever completed, ErrWrongKey, and others for a
// volume that is damaged or not of our shape.
func Open(r io.ReaderAt, size int64, key attest.Secret) (*Volume, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("open LUKS2 volume: the key has %d bytes, want %d", len(key), KeySize)
	}
	h, err := readHeader(r)
	if err != nil {
		return nil, fmt.Errorf("open LUKS2 volume: %w", err)
	}
	m, err := decodeMetadata(h.json)
	if err != nil {
		return nil, fmt.Errorf("open LUKS2 volume %s: %w", h.uuid, err)
	}
	v := &Volume{UUID: h.uuid, Label: h.label, Offset: m.Segments["0"].Offset}
	if v.Size = (size - v.Offset) / sectorSize * sectorSize; v.Size <= 0 {
		return nil, fmt.Errorf("open LUKS2 volume %s: its data starts at %d, the device has %d bytes", h.uuid, v.Offset, size)
	}
	if v.Key, err = m.Keyslots["0"].open(r, key); err != nil {
		return nil, fmt.Errorf("open LUKS2 volume %s: %w", h.uuid, err)
	}
	if err := m.Digests["0"].verify(v.Key); err != nil {
		clear(v.Key)
		return nil, fmt.Errorf("open LUKS2 volume %s: %w", h.uuid, err)
	}
	return v, nil
}

// UntrustedHeader is what can be known of a volume without its key. None of
// it is authenticated.
type UntrustedHeader struct {
	UUID   string
	Label  string
	Tokens []UntrustedToken // by ascending ID
}

// Token returns the only token of that type. Two of them are as good as none.
func (h *UntrustedHeader) Token(typ string) (UntrustedToken, bool) {
	var found UntrustedToken
	n := 0
	for _, t := range h.Tokens {
		if t.Type == typ {
			found = t
			n++
		}
	}
	return found, n == 1
}

// ReadHeader reads the header of a volume without opening it. It gives
// ErrNoVolume where Open does.
func ReadHeader(r io.ReaderAt) (*UntrustedHeader, error) {
	h, err := readHeader(r)
	if err != nil {
		return nil, fmt.Errorf("read LUKS2 header: %w", err)
	}
	m, err := decodeMetadata(h.json)
	if err != nil {
		return nil, fmt.Errorf("read LUKS2 header %s: %w", h.uuid, err)
	}
	tokens, err := m.tokens()
	if err != nil {
		return nil, fmt.Errorf("read LUKS2 header %s: %w", h.uuid, err)
	}
	return &UntrustedHeader{UUID: h.uuid, Label: h.label, Tokens: tokens}, nil
}

// Activate makes the volume, which is on the device node given, a block
// device with that device-mapper name, and returns its node /dev/dm-N.
func (v *Volume) Activate(name, node string) (string, error) {
	id := "CRYPT-LUKS2-" + strings.ReplaceAll(v.UUID, "-", "") + "-" + name // as cryptsetup names it
	return dm.CreateCrypt(name, id, dm.Crypt{
		Device:  node,
		Offset:  uint64(v.Offset / dm.SectorSize),
		Sectors: uint64(v.Size / dm.SectorSize),
		Key:     v.Key,
	})
}

// build makes a volume with its headers, and its key area, in memory.
func build(size int64, key attest.Secret, o Options) (*Volume, []byte, error) {
	if len(key) != KeySize {
		return nil, nil, fmt.Errorf("the key has %d bytes, want %d", len(key), KeySize)
	}
	if size < MinSize {
		return nil, nil, fmt.Errorf("the device has %d bytes, want at least %d", size, MinSize)
	}
	random := o.Rand
	if random == nil {
		random = rand.Reader
	}
	if o.UUID == "" {
		id, err := guid.New(random)
		if err != nil {
			return nil, nil, err
		}
		o.UUID = id.String()
	}
	b := make([]byte, keySize+2*saltSize+2*64)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, nil, fmt.Errorf("read random bytes: %w", err)
	}
	v := &Volume{
		UUID:   o.UUID,
		Label:  o.Label,
		Key:    b[:keySize:keySize],
		Offset: dataOffset,
		Size:   (size - dataOffset) / sectorSize * sectorSize,
	}
	salts := b[keySize:]
	k := keyslot{
		Type:    "luks2",
		KeySize: keySize,
		AF:      af{Type: "luks1", Stripes: stripes, Hash: hashName},
		Area:    area{Type: "raw", Offset: 2 * headerSize, Size: areaSize, Encryption: cipher, KeySize: keySize},
		KDF:     kdf{Type: "pbkdf2", Hash: hashName, Iterations: minIterations, Salt: salts[:saltSize]},
	}
	d := digest{
		Type: "pbkdf2", Keyslots: []string{"0"}, Segments: []string{"0"},
		Hash: hashName, Iterations: minIterations, Salt: salts[saltSize : 2*saltSize],
	}
	var err error
	if d.Digest, err = d.of(v.Key); err != nil {
		return nil, nil, err
	}
	keyArea, err := k.seal(key, v.Key, random)
	if err != nil {
		return nil, nil, err
	}
	m := metadata{
		Keyslots: map[string]keyslot{"0": k},
		Tokens:   make(map[string]json.RawMessage),
		Segments: map[string]segment{"0": {Type: "crypt", Offset: dataOffset, Size: "dynamic", Encryption: cipher, SectorSize: sectorSize}},
		Digests:  map[string]digest{"0": d},
		Config:   config{JSONSize: jsonSize, KeyslotsSize: dataOffset - 2*headerSize},
	}
	for i, t := range o.Tokens {
		m.Tokens[strconv.Itoa(i)] = t
	}
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("encode metadata: %w", err)
	}
	h := header{sequence: 1, label: o.Label, uuid: o.UUID, json: doc}
	for i, c := range []struct {
		magic string
		at    int64
	}{{magicSecondary, headerSize}, {magicPrimary, 0}} {
		if v.pending[i], err = h.encode(c.magic, c.at, [64]byte(salts[2*saltSize+64*i:])); err != nil {
			return nil, nil, err
		}
	}
	return v, keyArea, nil
}
