package unlock

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/guid"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

// fakeTPM "seals" by writing the secret behind a mark.
type fakeTPM struct {
	forget bool // what it sealed does not open
	other  bool // it opens to another secret
}

func (f *fakeTPM) SealDeviceHalf(secret attest.Secret, _ []byte) ([]byte, error) {
	return append([]byte("sealed:"), secret...), nil
}

func (f *fakeTPM) UnsealDeviceHalf(blob, _, _ []byte) (attest.Secret, error) {
	s, ok := bytes.CutPrefix(blob, []byte("sealed:"))
	if !ok || f.forget {
		return nil, errors.New("the policy is not satisfied")
	}
	s = bytes.Clone(s)
	if f.other {
		s[0] ^= 1
	}
	return s, nil
}

const stateSize = luks2.MinSize + 4<<20

// fakeDisk is a table with a state partition, whose node is a file.
func fakeDisk(t *testing.T, names ...string) (blockdev.Disk, *gpt.Table, string) {
	t.Helper()
	dir := t.TempDir()
	table := &gpt.Table{Disk: newGUID(t)}
	for i, n := range names {
		first := uint64(2048 + i*stateSize/gpt.SectorSize)
		table.Partitions = append(table.Partitions, gpt.Partition{
			Number: i + 1, Name: n, Type: gpt.LinuxFilesystem(), GUID: newGUID(t),
			First: first, Last: first + stateSize/gpt.SectorSize - 1,
		})
	}
	node := filepath.Join(dir, "disk1")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(node, stateSize); err != nil {
		t.Fatal(err)
	}
	return blockdev.Disk{Node: filepath.Join(dir, "disk"), Size: 1 << 30}, table, node
}

func newGUID(t *testing.T) guid.GUID {
	t.Helper()
	g, err := guid.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// format puts a complete volume on the node, opened by a device half and a
// service half.
func format(t *testing.T, node, diskGUID string, device, service attest.Secret, tokens ...token) {
	t.Helper()
	key, err := DiskKey(device, service, diskGUID)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := luks2.Options{Label: Label}
	for _, tok := range tokens {
		b, err := json.Marshal(tok)
		if err != nil {
			t.Fatal(err)
		}
		o.Tokens = append(o.Tokens, b)
	}
	if _, err := luks2.Format(f, stateSize, key, o); err != nil {
		t.Fatal(err)
	}
}

func half(b byte) attest.Secret { return bytes.Repeat([]byte{b}, halfSize) }

func goodToken() token {
	return token{Type: tokenType, Keyslots: []string{"0"}, DeviceHalf: append([]byte("sealed:"), half(1)...)}
}

func TestInspect(t *testing.T) {
	t.Run("a disk without a state partition has no state", func(t *testing.T) {
		disk, table, _ := fakeDisk(t, "esp")
		if s, err := Inspect(disk, table); err != nil || s.Exists() {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("a partition whose format was interrupted is no state", func(t *testing.T) {
		disk, table, _ := fakeDisk(t, Label)
		if s, err := Inspect(disk, table); err != nil || s.Exists() {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("a complete volume is a state", func(t *testing.T) {
		disk, table, node := fakeDisk(t, Label)
		format(t, node, table.Disk.String(), half(1), half(2), goodToken())
		if s, err := Inspect(disk, table); err != nil || !s.Exists() {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("a damaged volume is a state", func(t *testing.T) {
		disk, table, node := fakeDisk(t, Label)
		format(t, node, table.Disk.String(), half(1), half(2), goodToken())
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, at := range []int64{5000, 16384 + 5000} {
			if _, err := f.WriteAt([]byte{0xff}, at); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Inspect(disk, table)
		if err != nil || !s.Exists() {
			t.Fatalf("got %+v, %v", s, err)
		}
		if _, err := s.Open(Keys{TPM: &fakeTPM{}, ServiceHalf: half(2)}); err == nil {
			t.Error("it was opened")
		}
		if _, _, err := s.Create(t.Context(), Keys{TPM: &fakeTPM{}, ServiceHalf: half(2)}, nil); err == nil || !strings.Contains(err.Error(), "there is one already") {
			t.Errorf("create: got %v", err)
		}
	})
	t.Run("two partitions of the name are an error", func(t *testing.T) {
		disk, table, _ := fakeDisk(t, Label, Label)
		if _, err := Inspect(disk, table); err == nil {
			t.Error("no error")
		}
	})
	t.Run("a partition of another type is an error", func(t *testing.T) {
		disk, table, _ := fakeDisk(t, Label)
		table.Partitions[0].Type = newGUID(t)
		if _, err := Inspect(disk, table); err == nil {
			t.Error("no error")
		}
	})
}

// Whatever is wrong with a state, opening it must not change a byte.
func TestOpenRefusesAndChangesNothing(t *testing.T) {
	twice := goodToken()
	empty := goodToken()
	empty.DeviceHalf = nil
	tests := map[string]struct {
		tokens  []token
		tpm     fakeTPM
		service attest.Secret
		err     string
		is      error
	}{
		"a wrong service half":           {tokens: []token{goodToken()}, service: half(3), is: luks2.ErrWrongKey},
		"another device half":            {tokens: []token{goodToken()}, tpm: fakeTPM{other: true}, service: half(2), is: luks2.ErrWrongKey},
		"a TPM that does not unseal":     {tokens: []token{goodToken()}, tpm: fakeTPM{forget: true}, service: half(2), err: "the policy is not satisfied"},
		"no token":                       {service: half(2), err: "no token of type sealift-tpm2"},
		"two tokens":                     {tokens: []token{goodToken(), twice}, service: half(2), err: "or more than one"},
		"a token without a device half":  {tokens: []token{empty}, service: half(2), err: "no device half"},
		"a service half that is missing": {tokens: []token{goodToken()}, err: "the halves have 32 and 0 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			disk, table, node := fakeDisk(t, Label)
			format(t, node, table.Disk.String(), half(1), half(2), tt.tokens...)
			before, err := os.ReadFile(node)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Inspect(disk, table)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Open(Keys{TPM: &tt.tpm, ServiceHalf: tt.service})
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, want %q %v", err, tt.err, tt.is)
			}
			if after, err := os.ReadFile(node); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the partition changed, %v", err)
			}
		})
	}
}

// A TPM that cannot open what it sealed must be found out before the first
// byte is written.
func TestCreateTriesTheSealFirst(t *testing.T) {
	for name, tpm := range map[string]*fakeTPM{"does not open": {forget: true}, "gives back another secret": {other: true}} {
		t.Run(name, func(t *testing.T) {
			disk, table, node := fakeDisk(t, Label)
			s, err := Inspect(disk, table)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = s.Create(t.Context(), Keys{TPM: tpm, ServiceHalf: half(2)}, nil)
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
			b, rerr := os.ReadFile(node)
			if rerr != nil || len(bytes.Trim(b, "\x00")) != 0 {
				t.Errorf("the partition was written to, %v", rerr)
			}
		})
	}
}

// The state of an earlier installation lies where the new one goes. Power can
// go at any time after the table was written: the next boot must find no state,
// since the service has another half of the key by now.
func TestCreateErasesAnOldStateBeforeItNamesThePartition(t *testing.T) {
	const size = minState + 64<<20
	table, err := gpt.New(newGUID(t), size)
	if err != nil {
		t.Fatal(err)
	}
	blank := *table
	place, err := blank.Add(gpt.Partition{Type: gpt.LinuxFilesystem(), GUID: newGUID(t), Name: Label}, minState)
	if err != nil {
		t.Fatal(err)
	}
	disk := blockdev.Disk{Node: filepath.Join(t.TempDir(), "disk"), Size: size, SectorSize: gpt.SectorSize}
	f, err := os.OpenFile(disk.Node, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, make([]byte, stateSize), 0o600); err != nil {
		t.Fatal(err)
	}
	format(t, old, table.Disk.String(), half(1), half(9), goodToken())
	b, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, place.Offset()); err != nil {
		t.Fatal(err)
	}
	if err := gpt.Write(f, size, table); err != nil {
		t.Fatal(err)
	}

	s, err := Inspect(disk, table)
	if err != nil {
		t.Fatal(err)
	}
	// A file is no disk: telling the kernel of the partition fails, which here
	// stands for the power cut.
	if _, _, err := s.Create(t.Context(), Keys{TPM: &fakeTPM{}, ServiceHalf: half(2)}, nil); err == nil {
		t.Fatal("no error")
	}
	again, err := gpt.Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := again.ByName(Label)
	if !ok || p.Offset() != place.Offset() {
		t.Fatalf("the table has no state partition at %d: %+v", place.Offset(), again.Partitions)
	}
	if _, err := luks2.ReadHeader(io.NewSectionReader(f, p.Offset(), p.Size())); !errors.Is(err, luks2.ErrNoVolume) {
		t.Errorf("the old state is still there: %v", err)
	}
}
