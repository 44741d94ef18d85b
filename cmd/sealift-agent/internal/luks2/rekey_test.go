package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
)

// newWhole is a memory with all key areas, formatted with testKey(1).
func newWhole(t *testing.T) (*memory, attest.Secret) {
	t.Helper()
	dev := &memory{start: make([]byte, dataOffset)}
	token := json.RawMessage(`{"type":"sealift-tpm2","keyslots":["0"],"sealed":"AAEC"}`)
	v, err := Format(dev, testSize, testKey(1), Options{Label: "state", Tokens: []json.RawMessage{token}})
	if err != nil {
		t.Fatal(err)
	}
	return dev, v.Key
}

// rekey opens the volume with key and changes its key to next.
func rekey(d Device, key, next attest.Secret) error {
	v, err := Open(d, testSize, key)
	if err != nil {
		return err
	}
	return v.Rekey(d, testSize, next)
}

// areaOf returns the key area of the copy of the header at that place.
func areaOf(t *testing.T, d Device, c place) area {
	t.Helper()
	h, err := readCopy(d, c.magic, c.at)
	if err != nil {
		t.Fatal(err)
	}
	m, err := decodeMetadata(h.json)
	if err != nil {
		t.Fatal(err)
	}
	return m.Keyslots["0"].Area
}

func TestRekeyChangesTheKeyAndNothingElse(t *testing.T) {
	t.Parallel()
	dev, volumeKey := newWhole(t)
	before, err := ReadHeader(dev)
	if err != nil {
		t.Fatal(err)
	}
	for n := byte(1); n < 4; n++ { // to and fro between the two places
		old := areaOf(t, dev, copies()[1])
		if err := rekey(dev, testKey(n), testKey(n+1)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dev, testSize, testKey(n)); !errors.Is(err, ErrWrongKey) {
			t.Errorf("the old key: got %v, want ErrWrongKey", err)
		}
		v, err := Open(dev, testSize, testKey(n+1))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(v.Key, volumeKey) {
			t.Error("the volume key changed")
		}
		now := areaOf(t, dev, copies()[1])
		if areaOf(t, dev, copies()[0]) != now {
			t.Error("the copies of the header name different key areas")
		}
		if now.Offset == old.Offset {
			t.Error("the new key area is in the place of the old one")
		}
		rest := bytes.Clone(dev.start[2*headerSize:])
		clear(rest[now.Offset-2*headerSize:][:now.Size])
		if len(bytes.Trim(rest, "\x00")) > 0 {
			t.Error("something of the old key area is left")
		}
	}
	after, err := ReadHeader(dev)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("header is %s, was %s", fmt.Sprint(after), fmt.Sprint(before))
	}
}

func TestRekeyIsDoneAlreadyTheSecondTime(t *testing.T) {
	dev, _ := newWhole(t)
	if err := rekey(dev, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	before := dev.clone()
	if err := rekey(dev, testKey(2), testKey(2)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before.start, dev.start) {
		t.Error("the volume changed")
	}
}

// cuts calls f with what a power cut leaves on the device: before the first
// write, and after each one either all of it or any of its sectors. What was
// synced is kept; a cut after a sync leaves what one before the next write does.
func cuts(start *memory, trace []event, f func(cut int, disk *memory)) {
	f(0, start.clone())
	r := rand.New(rand.NewPCG(3, 4))
	for last, e := range trace {
		if e.data == nil {
			continue
		}
		synced := 0
		for i, e := range trace[:last] {
			if e.data == nil {
				synced = i
			}
		}
		for _, torn := range []bool{false, true} {
			disk := start.clone()
			for i, e := range trace[:last+1] {
				disk.apply(e, func() bool { return i < synced || !torn || r.IntN(2) == 0 })
			}
			f(last+1, disk)
		}
	}
}

func TestAPowerCutDuringRekeyLeavesAVolumeThatOpensAndGoesOn(t *testing.T) {
	t.Parallel()
	start, volumeKey := newWhole(t)
	dev := start.clone()
	var trace []event
	dev.trace = &trace
	if err := rekey(dev, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	cuts(start, trace, func(cut int, disk *memory) {
		_, errOld := Open(disk, testSize, testKey(1))
		_, errNew := Open(disk, testSize, testKey(2))
		key := testKey(1)
		switch {
		case errNew == nil && errOld == nil:
			t.Fatalf("cut after event %d: both keys open a header of one keyslot", cut)
		case errNew == nil:
			seen["new"]++
			key = testKey(2)
		case errOld == nil:
			seen["old"]++
		default:
			t.Fatalf("cut after event %d: neither key opens: %v; %v", cut, errOld, errNew)
		}
		if err := rekey(disk, key, testKey(2)); err != nil {
			t.Fatalf("cut after event %d: go on: %v", cut, err)
		}
		v, err := Open(disk, testSize, testKey(2))
		if err != nil || !bytes.Equal(v.Key, volumeKey) {
			t.Fatalf("cut after event %d: %v", cut, err)
		}
		if _, err := Open(disk, testSize, testKey(1)); !errors.Is(err, ErrWrongKey) {
			t.Fatalf("cut after event %d: the old key: %v", cut, err)
		}
		now := areaOf(t, disk, copies()[0])
		rest := disk.start[2*headerSize:]
		clear(rest[now.Offset-2*headerSize:][:now.Size])
		if len(bytes.Trim(rest, "\x00")) > 0 {
			t.Fatalf("cut after event %d: something of the old key area is left", cut)
		}
	})
	if seen["old"] == 0 || seen["new"] == 0 {
		t.Errorf("outcomes met: %v", seen)
	}
}

// faulty fails the write or sync of that number, having done it or not.
type faulty struct {
	*memory
	at    int
	done  bool
	calls int
}

var errFault = errors.New("input/output error")

func (f *faulty) fails() bool {
	f.calls++
	return f.calls-1 == f.at
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.fails() {
		if f.done {
			_, _ = f.memory.WriteAt(p, off)
		}
		return 0, errFault
	}
	return f.memory.WriteAt(p, off)
}

func (f *faulty) Sync() error {
	if f.fails() {
		return errFault
	}
	return nil
}

func TestAnErrorDuringRekeyLeavesAVolumeThatOpens(t *testing.T) {
	t.Parallel()
	start, volumeKey := newWhole(t)
	for _, done := range []bool{false, true} {
		for at := 0; ; at++ {
			dev := &faulty{memory: start.clone(), at: at, done: done}
			err := rekey(dev, testKey(1), testKey(2))
			if err == nil && dev.calls <= at {
				if at < 8 {
					t.Errorf("only %d writes and syncs", at)
				}
				break
			}
			if !errors.Is(err, errFault) {
				t.Fatalf("fault %d: got %v, want %v", at, err, errFault)
			}
			v, err := Open(dev.memory, testSize, testKey(1))
			if err != nil {
				v, err = Open(dev.memory, testSize, testKey(2))
			}
			if err != nil || !bytes.Equal(v.Key, volumeKey) {
				t.Fatalf("fault %d: neither key opens: %v", at, err)
			}
		}
	}
}

// rotten loses what is written to one place: a device that lies.
type rotten struct {
	*memory
	from, to int64
}

func (r *rotten) WriteAt(p []byte, off int64) (int, error) {
	if off >= r.from && off < r.to {
		return len(p), nil
	}
	return r.memory.WriteAt(p, off)
}

func TestRekeyDestroysNothingThatItsReplacementWasNotProvenFor(t *testing.T) {
	for name, lost := range map[string][2]int64{
		"the new key area is not there": {2*headerSize + areaSize, 2*headerSize + areaSize + 1},
		"the secondary is not there":    {headerSize, headerSize + 1},
		"the primary is not there":      {0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			dev, _ := newWhole(t)
			old := bytes.Clone(dev.start[2*headerSize:][:areaSize])
			if err := rekey(&rotten{dev, lost[0], lost[1]}, testKey(1), testKey(2)); err == nil {
				t.Fatal("no error")
			}
			if !bytes.Equal(dev.start[2*headerSize:][:areaSize], old) {
				t.Error("the old key area was overwritten")
			}
			_, errOld := Open(dev, testSize, testKey(1))
			_, errNew := Open(dev, testSize, testKey(2))
			if errOld != nil && errNew != nil {
				t.Errorf("neither key opens: %v; %v", errOld, errNew)
			}
		})
	}
}

func TestRekeyRefuses(t *testing.T) {
	dev, _ := newWhole(t)
	other, _ := newWhole(t)
	v, err := Open(dev, testSize, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	stranger := *v
	stranger.UUID = "3f3d5b9e-6a51-4c3e-9d0c-0d5c8d1f0a11"
	noise := *v
	noise.Key = bytes.Repeat([]byte{7}, 64)
	for name, tt := range map[string]struct {
		v    *Volume
		d    *memory
		next attest.Secret
	}{
		"a short key":         {v, dev, make(attest.Secret, 31)},
		"another volume":      {v, other, testKey(2)},
		"a header of another": {&stranger, dev, testKey(2)},
		"another volume key":  {&noise, dev, testKey(2)},
		"no volume":           {v, &memory{start: make([]byte, dataOffset)}, testKey(2)},
	} {
		before := bytes.Clone(tt.d.start)
		if err := tt.v.Rekey(tt.d, testSize, tt.next); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if !bytes.Equal(before, tt.d.start) {
			t.Errorf("%s: the device was written to", name)
		}
	}
}

// What any power cut leaves, cryptsetup opens with the same key as we, and
// shows as a sound volume with one keyslot.
func TestCryptsetupOpensWhatAPowerCutDuringRekeyLeaves(t *testing.T) {
	t.Parallel()
	image, _ := files(t, testKey(1))
	dir := t.TempDir()
	keyFiles := map[byte]string{1: filepath.Join(dir, "old"), 2: filepath.Join(dir, "new")}
	for n, name := range keyFiles {
		if err := os.WriteFile(name, testKey(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start, _ := newWhole(t)
	dev := start.clone()
	var trace []event
	dev.trace = &trace
	if err := rekey(dev, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	opens := func(n byte) bool {
		_, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", keyFiles[n], image.Name())
		return err == nil
	}
	seen := map[bool]int{}
	cuts(start, trace, func(cut int, disk *memory) {
		if _, err := image.WriteAt(disk.start, 0); err != nil {
			t.Fatal(err)
		}
		_, err := Open(disk, testSize, testKey(2))
		isNew := err == nil
		seen[isNew]++
		// Dump first: cryptsetup mends a damaged copy of the header when it opens.
		out, err := cryptsetup(t, "luksDump", image.Name())
		if err != nil || strings.Count(out, "AF stripes:") != 1 {
			t.Fatalf("cut after event %d: luksDump: %v\n%s", cut, err, out)
		}
		if opens(2) != isNew || opens(1) == isNew {
			t.Fatalf("cut after event %d: cryptsetup and we open it with different keys", cut)
		}
	})
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("outcomes met: %v", seen)
	}
	if _, err := image.WriteAt(dev.start, 0); err != nil {
		t.Fatal(err)
	}
	volumeKey := filepath.Join(dir, "volume-key")
	if out, err := cryptsetup(t, "luksDump", "-q", "--dump-volume-key", "--key-file", keyFiles[2], "--volume-key-file", volumeKey, image.Name()); err != nil {
		t.Fatalf("cryptsetup luksDump --dump-volume-key: %v\n%s", err, out)
	}
	v, err := Open(dev, testSize, testKey(2))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(volumeKey); err != nil || !bytes.Equal(got, v.Key) {
		t.Errorf("cryptsetup finds another volume key (%v)", err)
	}
}

// On a file the read back goes past the page cache, and cryptsetup can change
// the key on from there.
func TestRekeyOfAFileAndCryptsetupOnIt(t *testing.T) {
	image, keyFile := files(t, testKey(1))
	if _, err := Format(image, testSize, testKey(1), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := rekey(image, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	if out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", keyFile, image.Name()); err == nil {
		t.Errorf("cryptsetup opens it with the old key: %s", out)
	}
	for name, n := range map[string]byte{"second": 2, "third": 3} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(keyFile), name), testKey(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Dir(keyFile)
	if out, err := cryptsetup(t, "luksChangeKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", filepath.Join(dir, "second"), image.Name(), filepath.Join(dir, "third")); err != nil {
		t.Fatalf("cryptsetup luksChangeKey: %v\n%s", err, out)
	}
	out, err := cryptsetup(t, "open", "--test-passphrase", "--key-file", filepath.Join(dir, "third"), image.Name())
	if err != nil {
		t.Fatalf("cryptsetup open: %v\n%s", err, out)
	}
}
