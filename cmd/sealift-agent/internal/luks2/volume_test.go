package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sealift/sealift/attest"
)

const testSize = 32 << 20

// memory is a Device of which only the start, where everything but the data
// lies, is kept.
type memory struct {
	start []byte
	trace *[]event // Optional; what was done, in order
}

// event is a write, or a sync if data is nil.
type event struct {
	at   int64
	data []byte
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return copy(p, m.start[off:]), nil }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.trace != nil {
		*m.trace = append(*m.trace, event{off, bytes.Clone(p)})
	}
	m.apply(event{off, p}, func() bool { return true })
	return len(p), nil
}

// apply writes those sectors of an event that persist.
func (m *memory) apply(e event, persists func() bool) {
	for i := 0; i < len(e.data); i += 512 {
		if persists() {
			copy(m.start[e.at+int64(i):], e.data[i:min(i+512, len(e.data))])
		}
	}
}

func (m *memory) Sync() error {
	if m.trace != nil {
		*m.trace = append(*m.trace, event{})
	}
	return nil
}

func newMemory() *memory { return &memory{start: make([]byte, 2*headerSize+258048)} }

func (m *memory) clone() *memory { return &memory{start: bytes.Clone(m.start)} }

func testKey(b byte) attest.Secret { return bytes.Repeat(attest.Secret{b}, KeySize) }

func TestOpenGivesWhatFormatMade(t *testing.T) {
	dev := newMemory()
	token := json.RawMessage(`{"type":"sealift-tpm2","keyslots":["0"],"sealed":"AAEC"}`)
	made, err := Format(dev, testSize, testKey(1), Options{Label: "state", Tokens: []json.RawMessage{token}})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := Open(dev, testSize, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(opened.Key, made.Key) || len(opened.Key) != 64 {
		t.Error("the volume keys differ")
	}
	if opened.UUID != made.UUID || opened.Label != "state" || opened.Offset != 16<<20 || opened.Size != 16<<20 {
		t.Errorf("got %s %q %d %d, want %s %q %d %d", opened.UUID, opened.Label, opened.Offset, opened.Size, made.UUID, "state", 16<<20, 16<<20)
	}
	h, err := ReadHeader(dev)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := h.Token("sealift-tpm2")
	if !ok || !bytes.Equal(got.JSON, token) {
		t.Errorf("token is %s, want %s", got.JSON, token)
	}
	if fmt.Sprint(opened.Key) != "REDACTED" {
		t.Error("the volume key prints")
	}
}

func TestAnotherKeyIsToldFromDamage(t *testing.T) {
	dev := newMemory()
	if _, err := Format(dev, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dev, testSize, testKey(2)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("got %v, want ErrWrongKey", err)
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := Open(dev, testSize, make(attest.Secret, n)); err == nil {
			t.Errorf("a key of %d bytes was accepted", n)
		}
		if _, err := Format(newMemory(), testSize, make(attest.Secret, n), Options{}); err == nil {
			t.Errorf("format with a key of %d bytes was accepted", n)
		}
	}
}

func TestAPreparedVolumeIsNotFound(t *testing.T) {
	dev := newMemory()
	if _, err := Format(dev, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	v, err := Prepare(dev, testSize, testKey(2), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dev, testSize, testKey(2)); !errors.Is(err, ErrNoVolume) {
		t.Errorf("before Commit: got %v, want ErrNoVolume", err)
	}
	if err := v.Commit(dev); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dev, testSize, testKey(2)); err != nil {
		t.Errorf("after Commit: %v", err)
	}
	if err := v.Commit(dev); err == nil {
		t.Error("a second Commit was accepted")
	}
	if _, err := ReadHeader(newMemory()); !errors.Is(err, ErrNoVolume) {
		t.Errorf("blank device: got %v, want ErrNoVolume", err)
	}
}

// A power cut keeps what was synced, and any of the sectors written since.
func TestAPowerCutLeavesTheOldVolumeOrNoneOrTheNewOne(t *testing.T) {
	before := newMemory()
	if _, err := Format(before, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	blank := newMemory()
	for name, start := range map[string]*memory{"over an old volume": before, "on a blank device": blank} {
		t.Run(name, func(t *testing.T) {
			var trace []event
			dev := start.clone()
			dev.trace = &trace
			if _, err := Format(dev, testSize, testKey(2), Options{}); err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 2))
			seen := make(map[string]bool)
			for cut := range len(trace) + 1 {
				for try := range 6 {
					disk := start.clone()
					synced := 0
					for i, e := range trace[:cut] {
						if e.data == nil {
							synced = i
						}
					}
					for i, e := range trace[:cut] {
						// Kept: all of it, none of it, or any of its sectors.
						disk.apply(e, func() bool {
							return i < synced || try == 0 || try > 1 && r.IntN(2) == 0
						})
					}
					_, errOld := Open(disk, testSize, testKey(1))
					_, errNew := Open(disk, testSize, testKey(2))
					switch {
					case errNew == nil:
						seen["new"] = true
					case errOld == nil:
						seen["old"] = true
					case errors.Is(errNew, ErrNoVolume):
						seen["none"] = true
					default:
						t.Fatalf("cut after event %d: %v", cut, errNew)
					}
				}
			}
			if !seen["new"] || !seen["none"] || seen["old"] != (start == before) {
				t.Errorf("outcomes met: %v", seen)
			}
		})
	}
}

func TestOneDamagedHeaderIsSurvived(t *testing.T) {
	dev := newMemory()
	if _, err := Format(dev, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	flip := func(m *memory, at int64) { m.start[at] ^= 1 }
	for _, at := range []int64{0, 6, 30, 104, 448, 4096, 16383} {
		primary := dev.clone()
		flip(primary, at)
		if _, err := Open(primary, testSize, testKey(1)); err != nil {
			t.Errorf("primary damaged at %d: %v", at, err)
		}
		secondary := dev.clone()
		flip(secondary, headerSize+at)
		if _, err := Open(secondary, testSize, testKey(1)); err != nil {
			t.Errorf("secondary damaged at %d: %v", at, err)
		}
		flip(secondary, 100)
		if _, err := Open(secondary, testSize, testKey(1)); err == nil || errors.Is(err, ErrNoVolume) {
			t.Errorf("both damaged, secondary at %d: got %v, want an error that is not ErrNoVolume", at, err)
		}
	}
}

func TestTheNewerHeaderWins(t *testing.T) {
	dev := newMemory()
	v, err := Prepare(dev, testSize, testKey(1), Options{Label: "old"})
	if err != nil {
		t.Fatal(err)
	}
	doc, _, _ := bytes.Cut(v.pending[1][binarySize:], []byte{0})
	newer, err := (&header{sequence: 2, label: "new", uuid: v.UUID, json: doc}).encode(magicSecondary, headerSize, [64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	v.pending[0] = newer
	if err := v.Commit(dev); err != nil {
		t.Fatal(err)
	}
	if v, err = Open(dev, testSize, testKey(1)); err != nil || v.Label != "new" {
		t.Errorf("got %+v, %v, want the newer secondary", v, err)
	}
}

func TestFormatRefusesWhatItCouldNotRead(t *testing.T) {
	for name, o := range map[string]Options{
		"a uuid in upper case":       {UUID: "03FB1E78-88C6-4D2C-A09A-E6C81F4A1E00"},
		"a uuid that is none":        {UUID: "state"},
		"a label of 48 bytes":        {Label: string(bytes.Repeat([]byte{'x'}, 48))},
		"a token that is no object":  {Tokens: []json.RawMessage{json.RawMessage(`"x"`)}},
		"a token without a type":     {Tokens: []json.RawMessage{json.RawMessage(`{"keyslots":[]}`)}},
		"a token of another keyslot": {Tokens: []json.RawMessage{json.RawMessage(`{"type":"x","keyslots":["1"]}`)}},
		"too large a token":          {Tokens: []json.RawMessage{json.RawMessage(`{"type":"x","keyslots":[],"y":"` + string(bytes.Repeat([]byte{'y'}, jsonSize)) + `"}`)}},
		"no randomness":              {Rand: bytes.NewReader(nil)},
	} {
		dev := newMemory()
		if _, err := Format(dev, testSize, testKey(1), o); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if !bytes.Equal(dev.start, newMemory().start) {
			t.Errorf("%s: the device was written to", name)
		}
	}
	if _, err := Format(newMemory(), MinSize-1, testKey(1), Options{}); err == nil {
		t.Error("too small a device was accepted")
	}
}

func TestSplitAndMergeAreInverse(t *testing.T) {
	for _, n := range []int{16, 32, 48, 64} {
		key := make(attest.Secret, n)
		for i := range key {
			key[i] = byte(i * 7)
		}
		b, err := afSplit(key, 50, rand.NewChaCha8([32]byte{1}))
		if err != nil {
			t.Fatal(err)
		}
		if got := afMerge(slices.Clone(b), n); !bytes.Equal(got, key) {
			t.Errorf("%d bytes: merge gave another key", n)
		}
		b[3] ^= 1
		if got := afMerge(b, n); bytes.Equal(got, key) {
			t.Errorf("%d bytes: a flipped bit in a stripe made no difference", n)
		}
	}
}
