package luks2

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/attest"
)

// areaSize is the size of a key area, in bytes: the stripes, up to a multiple
// of 4096.
const areaSize = 258048

// wipeChunk is how much of the key areas is written at a time, in bytes.
const wipeChunk = 4 << 20

// Rekey makes next the only key that opens the volume v, which was opened from
// the same device of size bytes. It is the part of the volume that changes, not
// what is encrypted with it: the volume key stays.
//
// The order, each step durable before the next:
//  1. a copy of the header that an earlier power cut left torn or old is made like the
//     other: what replaces the header must not begin with the only copy;
//  2. the new key area is written where there is none, read back from the
//     device, and proven to give the volume key;
//  3. the header that names it replaces the old one, the secondary copy first;
//  4. both copies are read back, and each is proven to open the volume with
//     next;
//  5. what is not the new key area is overwritten, the old one with it.
//
// A header never has two keyslots: the agent of an older image, which refuses
// such a header, must be able to open the volume at any time, as must
// cryptsetup. Cut off after any write, the volume opens with its old key or
// with next, and Rekey with the one that opens it goes on from there.
func (v *Volume) Rekey(d Device, size int64, next attest.Secret) error {
	if err := v.rekey(d, size, next, rand.Reader); err != nil {
		return fmt.Errorf("change the key of LUKS2 volume %s: %w", v.UUID, err)
	}
	return nil
}

func (v *Volume) rekey(d Device, size int64, next attest.Secret, random io.Reader) error {
	if len(next) != KeySize {
		return fmt.Errorf("the next key has %d bytes, want %d", len(next), KeySize)
	}
	h, err := readHeader(d)
	if err != nil {
		return err
	}
	if h.uuid != v.UUID {
		return fmt.Errorf("the header is of volume %s", h.uuid)
	}
	m, err := decodeMetadata(h.json)
	if err != nil {
		return err
	}
	if err := m.Digests["0"].verify(v.Key); err != nil {
		return fmt.Errorf("the volume key is not that of the header: %w", err)
	}
	if err := h.replace(d, random); err != nil {
		return err
	}
	switch err := m.proves(d, next, v.Key); {
	case errors.Is(err, ErrWrongKey):
		if h, m, err = v.addArea(d, h, m, next, random); err != nil {
			return err
		}
		if err := h.replace(d, random); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	for _, c := range copies() {
		if err := forget(d, c.at, headerSize); err != nil {
			return err
		}
		again, err := readCopy(d, c.magic, c.at)
		if err != nil {
			return fmt.Errorf("read back the header at %d: %w", c.at, err)
		}
		if !bytes.Equal(again.json, h.json) {
			return fmt.Errorf("read back the header at %d: it is not what was written", c.at)
		}
		back, err := decodeMetadata(again.json)
		if err != nil {
			return fmt.Errorf("read back the header at %d: %w", c.at, err)
		}
		if err := back.proves(d, next, v.Key); err != nil {
			return fmt.Errorf("the header at %d: %w", c.at, err)
		}
	}
	again, err := Open(d, size, next)
	if err != nil {
		return err
	}
	clear(again.Key)
	return m.wipeOthers(d)
}

// proves returns nil if the key area, as it is on the device, gives the volume
// key to key.
func (m *metadata) proves(d Device, key, volumeKey attest.Secret) error {
	k := m.Keyslots["0"]
	if err := forget(d, k.Area.Offset, k.Area.Size); err != nil {
		return err
	}
	got, err := k.open(d, key)
	if err != nil {
		return err
	}
	defer clear(got)
	if subtle.ConstantTimeCompare(got, volumeKey) != 1 {
		return ErrWrongKey
	}
	return nil
}

// addArea writes a key area that next opens and returns the header that names
// it, which is not on the device yet.
func (v *Volume) addArea(d Device, h *header, m *metadata, next attest.Secret, random io.Reader) (*header, *metadata, error) {
	k := m.Keyslots["0"]
	at, err := m.free()
	if err != nil {
		return nil, nil, err
	}
	k.Area.Offset, k.Area.Size = at, areaSize
	k.KDF.Salt = make([]byte, saltSize)
	if _, err := io.ReadFull(random, k.KDF.Salt); err != nil {
		return nil, nil, fmt.Errorf("read random bytes: %w", err)
	}
	b, err := k.seal(next, v.Key, random)
	if err != nil {
		return nil, nil, err
	}
	if _, err := d.WriteAt(b, at); err != nil {
		return nil, nil, fmt.Errorf("write the new key area: %w", err)
	}
	if err := d.Sync(); err != nil {
		return nil, nil, fmt.Errorf("write the new key area: sync: %w", err)
	}
	changed := *m
	changed.Keyslots = map[string]keyslot{"0": k}
	if err := changed.check(); err != nil {
		return nil, nil, err
	}
	if err := changed.proves(d, next, v.Key); err != nil {
		return nil, nil, fmt.Errorf("the new key area does not open: %w", err)
	}
	doc, err := json.Marshal(changed)
	if err != nil {
		return nil, nil, fmt.Errorf("encode metadata: %w", err)
	}
	return &header{sequence: h.sequence + 1, label: h.label, uuid: h.uuid, json: doc}, &changed, nil
}

// free returns where a key area fits beside the present one. There are two
// places, and changes of the key go to and fro between them.
func (m *metadata) free() (int64, error) {
	used := m.Keyslots["0"].Area
	for _, at := range []int64{2 * headerSize, 2*headerSize + areaSize} {
		if at+areaSize > m.keyslotsEnd() {
			break
		}
		if at+areaSize <= used.Offset || at >= used.Offset+used.Size {
			return at, nil
		}
	}
	return 0, fmt.Errorf("there is no room for a second key area before %d", m.keyslotsEnd())
}

// keyslotsEnd is where the key areas end.
func (m *metadata) keyslotsEnd() int64 { return 2*headerSize + m.Config.KeyslotsSize }

// wipeOthers overwrites everything between the headers and the data but the
// key area in use. Where an old area was is not known any more after a power
// cut.
func (m *metadata) wipeOthers(d Device) error {
	used := m.Keyslots["0"].Area
	zero := make([]byte, wipeChunk)
	for _, part := range [][2]int64{{2 * headerSize, used.Offset}, {used.Offset + used.Size, m.keyslotsEnd()}} {
		for at := part[0]; at < part[1]; at += wipeChunk {
			if _, err := d.WriteAt(zero[:min(wipeChunk, part[1]-at)], at); err != nil {
				return fmt.Errorf("overwrite the old key area: %w", err)
			}
		}
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("overwrite the old key area: sync: %w", err)
	}
	return nil
}

// place is where a copy of the header is.
type place struct {
	magic string
	at    int64
}

// copies are the places in the order in which they are written.
func copies() [2]place { return [2]place{{magicSecondary, headerSize}, {magicPrimary, 0}} }

// replace writes both copies of the header, unless they are there.
func (h *header) replace(d Device, random io.Reader) error {
	for _, c := range copies() {
		if there, err := readCopy(d, c.magic, c.at); err == nil && there.sequence == h.sequence && bytes.Equal(there.json, h.json) {
			continue
		}
		var salt [64]byte
		if _, err := io.ReadFull(random, salt[:]); err != nil {
			return fmt.Errorf("read random bytes: %w", err)
		}
		b, err := h.encode(c.magic, c.at, salt)
		if err != nil {
			return err
		}
		if _, err := d.WriteAt(b, c.at); err != nil {
			return fmt.Errorf("write header at %d: %w", c.at, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("sync header at %d: %w", c.at, err)
		}
	}
	return nil
}

// forget drops what the kernel keeps of a part of the device, so that the next
// read is of the device itself. What is not a file has no such copy.
func forget(d Device, at, n int64) error {
	f, ok := d.(interface{ Fd() uintptr })
	if !ok {
		return nil
	}
	if err := unix.Fadvise(int(f.Fd()), at, n, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("read past the cache: %w", err)
	}
	return nil
}
