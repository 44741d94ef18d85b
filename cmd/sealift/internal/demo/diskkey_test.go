package demo

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"debug/pe"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/recovery"
	"github.com/sealift/sealift/attest/tpm"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
	"github.com/sealift/sealift/image/manifest"
)

// diskKeyOracle holds the change of a disk key against cryptsetup, which works on
// a copy of the disk's headers. It makes the keys as docs/keys.md says: one half
// from the machine's TPM, the other from a recovery code.
type diskKeyOracle struct {
	d *Demo

	old, next string // files of keys
	before    luksVolume
	after     luksVolume
	nextHalf  attest.Secret
}

// luksVolume is a copy of what is in front of a volume's data.
type luksVolume struct {
	file     string // as long as the volume
	bytes    []byte // headers and key areas
	keyslots map[string]struct {
		Area struct{ Offset, Size string }
	}
	tokens map[string]struct {
		Type       string `json:"type"`
		DeviceHalf []byte `json:"sealift-device-half"`
	}
}

// luksFront is how much is in front of the data, bytes.
const luksFront = 16 << 20

// asked looks at the disk before its key changes.
func (o *diskKeyOracle) asked(t *testing.T) {
	o.before = o.volume(t, "before")
	if len(o.before.keyslots) != 1 {
		t.Fatalf("the volume has %d keyslots, want 1", len(o.before.keyslots))
	}
	present, next := o.halves(t)
	if next == nil {
		t.Fatal("the code has one half while the key is being changed, want two")
	}
	o.nextHalf = next
	device := o.deviceHalf(t)
	o.old, o.next = o.key(t, "old", device, present), o.key(t, "next", device, next)
	wantKey(t, o.before.file, o.old, true)
	wantKey(t, o.before.file, o.next, false)
}

// changed looks at the disk after the boot that changed its key.
func (o *diskKeyOracle) changed(t *testing.T) {
	o.after = o.volume(t, "after")
	if len(o.after.keyslots) != 1 {
		t.Fatalf("the volume has %d keyslots, want 1", len(o.after.keyslots))
	}
	wantKey(t, o.after.file, o.next, true)
	wantKey(t, o.after.file, o.old, false)

	// What the old key opened is gone: also under a header that somebody kept.
	was, is := o.before.keyslots["0"].Area, o.after.keyslots["0"].Area
	if was.Offset == is.Offset {
		t.Errorf("the key area is still at %s", was.Offset)
	}
	at, size := number(t, was.Offset), number(t, was.Size)
	if at == 0 || size == 0 || int64(len(o.after.bytes)) < at+size {
		t.Fatalf("the old key area was %d bytes at %d", size, at)
	}
	if left := bytes.TrimLeft(o.after.bytes[at:at+size], "\x00"); len(left) > 0 {
		t.Errorf("%d bytes are left where the old key area was", len(left))
	}
	kept := filepath.Join(t.TempDir(), "kept-header")
	const headers = 32 << 10
	o.write(t, kept, slices.Concat(o.before.bytes[:headers], o.after.bytes[headers:]))
	wantKey(t, kept, o.old, false)
	o.write(t, kept, o.before.bytes)
	wantKey(t, kept, o.old, true) // so it was not for another reason

	if a, b := volumeKey(t, o.before.file, o.old), volumeKey(t, o.after.file, o.next); !bytes.Equal(a, b) {
		t.Error("the volume key changed with the disk key")
	}
	present, next := o.halves(t)
	if next != nil || !bytes.Equal(present, o.nextHalf) {
		t.Errorf("the service has another half than the one that was next, or two: %t", next != nil)
	}
	o.cutAnywhere(t)
}

// cutAnywhere replays what the boot that changed the key wrote to the disk. Whenever
// the power had gone, with all writes up to one, whole or half, or with that one
// alone of those that were not durable yet, one of the two keys opens the volume;
// and the next key does, by both copies of the header, before the first byte of the
// old key area goes.
func (o *diskKeyOracle) cutAnywhere(t *testing.T) {
	at, _ := o.partition(t)
	var epochs [][]logged // between flushes
	var epoch []logged
	for _, e := range readWriteLog(t, o.d.WriteLog) {
		switch {
		case e.flush:
			if len(epoch) > 0 {
				epochs, epoch = append(epochs, epoch), nil
			}
		case e.at < at+luksFront && e.at+int64(len(e.data)) > at:
			e.at -= at
			if e.at < 0 || e.at+int64(len(e.data)) > luksFront {
				t.Fatalf("a write of %d bytes at %d goes beyond what is in front of the data", len(e.data), e.at)
			}
			epoch = append(epoch, e)
		}
	}
	if len(epoch) > 0 {
		t.Errorf("%d writes to headers and key areas were never made durable", len(epoch))
	}
	apply := func(b []byte, writes ...logged) []byte {
		b = bytes.Clone(b)
		for _, w := range writes {
			copy(b[w.at:], w.data)
		}
		return b
	}
	file := filepath.Join(t.TempDir(), "cut")
	opens := func(b []byte, key string) bool {
		o.write(t, file, b)
		_, status := cryptsetup(t, "open", "--test-passphrase", "--key-file", key, file)
		return status == 0
	}
	const headers = 32 << 10
	area := o.before.keyslots["0"].Area
	old, oldEnd := number(t, area.Offset), number(t, area.Offset)+number(t, area.Size)
	durable, states, byOld, proven := o.before.bytes, 0, 0, false
	for i, writes := range epochs {
		for k, w := range writes {
			if !proven && w.at < oldEnd && w.at+int64(len(w.data)) > old {
				proven = true
				if !bytes.Equal(durable[:headers], o.after.bytes[:headers]) || !opens(durable, o.next) {
					t.Errorf("epoch %d: the old key area is written to before the new key opens the volume by both headers", i)
				}
			}
			torn := logged{at: w.at, data: w.data[:len(w.data)/1024*512]}
			cuts := [][]logged{writes[:k+1], slices.Concat(writes[:k], []logged{torn})}
			if k > 0 {
				cuts = append(cuts, []logged{w})
			}
			for _, cut := range cuts {
				states++
				switch b := apply(durable, cut...); {
				case opens(b, o.next):
				case opens(b, o.old):
					byOld++
				default:
					t.Errorf("epoch %d: cut off after %d of its %d writes, no key opens the volume", i, len(cut), len(writes))
				}
			}
		}
		durable = apply(durable, writes...)
	}
	t.Logf("%d writes in %d steps: %d states of a power cut, of which the old key opens %d", len(slices.Concat(epochs...)), len(epochs), states, byOld)
	// The key area, two headers, and what is overwritten.
	if !proven || len(epochs) < 4 || byOld == 0 || byOld == states {
		t.Errorf("the log does not show the change of the key (old key area overwritten: %t)", proven)
	}
	if !bytes.Equal(durable, o.after.bytes) {
		t.Error("the log does not lead to what is on the disk")
	}
}

// opened looks at the disk after a boot that changed nothing.
func (o *diskKeyOracle) opened(t *testing.T) {
	if v := o.volume(t, "opened"); !bytes.Equal(v.bytes, o.after.bytes) {
		t.Error("a boot with the new key changed the header or a key area")
	}
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// write makes a file as long as the volume that begins with b.
func (o *diskKeyOracle) write(t *testing.T, file string, b []byte) {
	t.Helper()
	_, size := o.partition(t)
	if err := errors.Join(os.WriteFile(file, b, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
}

// partition returns where the state partition is on the box's disk, bytes.
func (o *diskKeyOracle) partition(t *testing.T) (at, size int64) {
	t.Helper()
	out, err := exec.Command("partx", "--noheadings", "--raw", "--output", "START,SECTORS,NAME", o.d.box.DiskFile()).Output()
	if err != nil {
		t.Fatalf("partx: %v", err)
	}
	for l := range strings.Lines(string(out)) {
		if f := strings.Fields(l); len(f) == 3 && f[2] == manifest.RoleState {
			return number(t, f[0]) * 512, number(t, f[1]) * 512
		}
	}
	t.Fatalf("the disk has no state partition:\n%s", out)
	return 0, 0
}

// volume copies the headers and the key areas of the box's volume.
func (o *diskKeyOracle) volume(t *testing.T, name string) luksVolume {
	t.Helper()
	at, _ := o.partition(t)
	f, err := os.Open(o.d.box.DiskFile())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v := luksVolume{file: o.d.path("fleet", "luks-"+name), bytes: make([]byte, luksFront)}
	if _, err := io.ReadFull(io.NewSectionReader(f, at, luksFront), v.bytes); err != nil {
		t.Fatal(err)
	}
	o.write(t, v.file, v.bytes)
	out, status := cryptsetup(t, "luksDump", v.file)
	if status != 0 {
		t.Fatalf("cryptsetup luksDump: exit status %d\n%s", status, out)
	}
	if !strings.Contains(out, "offset: "+strconv.Itoa(luksFront)+" [bytes]") {
		t.Errorf("cryptsetup does not see the data at %d:\n%s", luksFront, out)
	}
	out, status = cryptsetup(t, "luksDump", "--dump-json-metadata", v.file)
	var m struct {
		Keyslots any
		Tokens   any
	}
	m.Keyslots, m.Tokens = &v.keyslots, &v.tokens
	if err := json.Unmarshal([]byte(out), &m); err != nil || status != 0 {
		t.Fatalf("cryptsetup luksDump --dump-json-metadata: exit status %d, %v\n%s", status, err, out)
	}
	return v
}

// halves asks for a recovery code, as the machine would, and opens it.
func (o *diskKeyOracle) halves(t *testing.T) (present, next attest.Secret) {
	t.Helper()
	boot, err := recovery.NewBootKey(o.d.machine.ID, o.d.machine.DiskGUID)
	if err != nil {
		t.Fatal(err)
	}
	lines, _, err := o.d.code(t.Context(), boot.Request())
	if err != nil {
		t.Fatal(err)
	}
	r := boot.Reader()
	for _, l := range lines {
		_, s, err := r.Line(l, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if s != nil {
			return s.DiskKey, s.NextDiskKey
		}
	}
	t.Fatalf("a code of %d lines does not open", len(lines))
	return nil, nil
}

// deviceHalf opens the half that is sealed in the box's TPM: PCR 11 of a copy of
// that TPM is brought to where the image's boot has it.
func (o *diskKeyOracle) deviceHalf(t *testing.T) attest.Secret {
	t.Helper()
	token := o.before.tokens["0"]
	if token.Type != "sealift-tpm2" || len(o.before.tokens) != 1 {
		t.Fatalf("the volume has the tokens %+v", o.before.tokens)
	}
	m, err := o.d.manifest()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(m.Boots, func(b manifest.Boot) bool { return b.Way == manifest.BootDisk })
	if i < 0 {
		t.Fatal("the manifest has no boot from the disk")
	}
	device := tpmtest.OpenState(t, filepath.Join(o.d.box.Dir, "tpm"))
	for _, p := range m.Boots[i].PCRs {
		if p.Index != 11 {
			continue
		}
		for _, e := range p.Events {
			digest, err := hex.DecodeString(e.Digests["sha256"])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: 11, Auth: tpm2.PasswordAuth(nil)},
				Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest}}},
			}).Execute(device); err != nil {
				t.Fatal(err)
			}
		}
	}
	key, err := os.ReadFile(o.d.path("keys", "pcr.pub"))
	if err != nil {
		t.Fatal(err)
	}
	uki, err := pe.Open(o.d.path("image", "uki.efi"))
	if err != nil {
		t.Fatal(err)
	}
	defer uki.Close()
	section := uki.Section(".pcrsig")
	if section == nil {
		t.Fatal("the UKI has no .pcrsig")
	}
	sig, err := section.Data()
	if err != nil {
		t.Fatal(err)
	}
	half, err := tpm.New(device).UnsealDeviceHalf(token.DeviceHalf, key, sig[:section.VirtualSize])
	if err != nil {
		t.Fatal(err)
	}
	return half
}

// key writes the key that two halves make, and returns the file.
func (o *diskKeyOracle) key(t *testing.T, name string, device, service attest.Secret) string {
	t.Helper()
	key, err := hkdf.Key(sha256.New, slices.Concat(device, service), nil, "sealift luks2 v1 "+o.d.machine.DiskGUID, 32)
	if err != nil {
		t.Fatal(err)
	}
	file := o.d.path("fleet", "disk-key-"+name)
	if err := os.WriteFile(file, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// cryptsetup runs cryptsetup, which needs no device-mapper for what is asked here.
func cryptsetup(t *testing.T, args ...string) (string, int) {
	t.Helper()
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		path = "/usr/sbin/cryptsetup" // where only root looks
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// wantKey checks whether a key opens a volume.
func wantKey(t *testing.T, volume, key string, opens bool) {
	t.Helper()
	const wrongKey = 2
	out, status := cryptsetup(t, "open", "--test-passphrase", "--key-file", key, volume)
	if opens && status != 0 || !opens && status != wrongKey {
		t.Errorf("cryptsetup open of %s with %s: exit status %d, want that it opens: %t\n%s", filepath.Base(volume), filepath.Base(key), status, opens, out)
	}
}

func volumeKey(t *testing.T, volume, key string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "volume-key")
	if out, status := cryptsetup(t, "luksDump", "-q", "--dump-volume-key", "--key-file", key, "--volume-key-file", file, volume); status != 0 {
		t.Fatalf("cryptsetup luksDump --dump-volume-key: exit status %d\n%s", status, out)
	}
	b, err := os.ReadFile(file)
	if err != nil || len(b) != 64 {
		t.Fatalf("the volume key has %d bytes, %v", len(b), err)
	}
	return b
}
