package unlock

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/blockdev"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/gpt"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

var e0, e1 = attest.MachineID{0xe0}, attest.MachineID{0xe1}

// nameFor looks at the disk anew.
func nameFor(t *testing.T, disk blockdev.Disk, table *gpt.Table, tpm *fakeTPM, own attest.MachineID) (attest.MachineID, error) {
	t.Helper()
	s, err := Inspect(disk, table)
	if err != nil {
		t.Fatal(err)
	}
	return s.NameFor(Keys{TPM: tpm}, own)
}

// A TPM that got a certificate of a kind that comes first chooses another key, and
// nobody has told the service. Its recovery is that of the machine as it is known.
func TestABoxIsKnownByTheMachineThatItsDiskWasReleasedTo(t *testing.T) {
	good := goodToken()
	good.Machine = noted(e0.String())
	garbled := good
	garbled.Machine = "e0"
	for claim, c := range map[string]struct {
		tokens []token
		tpm    fakeTPM
		own    attest.MachineID
		want   attest.MachineID
		fails  bool
	}{
		"which it chooses to be":                     {[]token{good}, fakeTPM{forget: true}, e0, e0, false},
		"which it would not choose to be":            {[]token{good}, fakeTPM{}, e1, e0, false},
		"not if the disk is another box's":           {[]token{good}, fakeTPM{forget: true}, e1, e1, true},
		"not if an earlier agent made the disk":      {[]token{goodToken()}, fakeTPM{}, e1, e1, false},
		"not if what the disk says is no id":         {[]token{garbled}, fakeTPM{}, e1, e1, false},
		"not if the disk says two things":            {[]token{good, good}, fakeTPM{}, e1, e1, false},
		"not if the disk says nothing of its halves": {nil, fakeTPM{}, e1, e1, false},
	} {
		t.Run(claim, func(t *testing.T) {
			disk, table, node := fakeDisk(t, Label)
			format(t, node, table.Disk.String(), half(1), half(2), c.tokens...)
			got, err := nameFor(t, disk, table, &c.tpm, c.own)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("got machine %s, %v", got, err)
			}
		})
	}
	t.Run("not on a disk without a state", func(t *testing.T) {
		disk, table, _ := fakeDisk(t, Label)
		if got, err := nameFor(t, disk, table, &fakeTPM{}, e1); got != e1 || err != nil {
			t.Errorf("got machine %s, %v", got, err)
		}
	})
}

// note opens the volume as Open does, up to its activation.
func note(t *testing.T, disk blockdev.Disk, table *gpt.Table, d luks2.Device, k Keys) error {
	t.Helper()
	s, err := Inspect(disk, table)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.unlock(d, k)
	if err != nil {
		t.Fatal(err)
	}
	if !s.notes(k) {
		return nil
	}
	return s.note(d, o.Volume, k.Machine)
}

func TestTheMachineOfAReleaseIsNotedOnTheDisk(t *testing.T) {
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content := func() []byte {
		t.Helper()
		b, err := os.ReadFile(node)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	service := half(2)
	for _, c := range []struct {
		claim   string
		keys    Keys
		want    attest.MachineID // zero: none
		written bool
	}{
		{"a recovery notes nothing", Keys{Machine: e0, Either: true}, attest.MachineID{}, false},
		{"the first release notes its machine", Keys{Machine: e0}, e0, true},
		{"the same machine writes nothing", Keys{Machine: e0}, e0, false},
		{"so does a release of an agent that names none", Keys{}, e0, false},
		{"another machine is noted", Keys{Machine: e1}, e1, true},
		{"with a change of the key", Keys{Machine: e0, NextHalf: half(3)}, e0, true},
	} {
		before := content()
		c.keys.TPM, c.keys.ServiceHalf = &fakeTPM{}, bytes.Clone(service)
		if err := note(t, disk, table, f, c.keys); err != nil {
			t.Fatalf("%s: %v", c.claim, err)
		}
		if c.keys.NextHalf != nil {
			service = half(3)
		}
		if written := !bytes.Equal(before, content()); written != c.written {
			t.Errorf("%s: written %t", c.claim, written)
		}
		own := attest.MachineID{1}
		if c.want.IsZero() {
			c.want = own
		}
		if got, err := nameFor(t, disk, table, &fakeTPM{}, own); got != c.want || err != nil {
			t.Errorf("%s: named %s, %v", c.claim, got, err)
		}
		if o, err := boot(t, disk, table, f, Keys{TPM: &fakeTPM{}, ServiceHalf: bytes.Clone(service)}); err != nil || o.Volume == nil {
			t.Fatalf("%s: %v", c.claim, err)
		}
	}
}

func TestAMachineThatCannotBeNotedDoesNotKeepTheDiskShut(t *testing.T) {
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	k := Keys{TPM: &fakeTPM{}, ServiceHalf: half(2), Machine: e0}
	for _, done := range []bool{false, true} {
		if err := note(t, disk, table, &powered{Device: f, at: 1, done: done}, k); !errors.Is(err, errCut) {
			t.Fatalf("got %v", err)
		}
		if o, err := boot(t, disk, table, f, k); err != nil || o.Volume == nil {
			t.Fatal(err)
		}
	}
	if err := note(t, disk, table, f, k); err != nil {
		t.Fatal(err)
	}
}

// Whoever has the disk can write into the token what he likes.
func TestAPlantedNoteIsReplacedOnceAndKeepsNoDiskShut(t *testing.T) {
	other := attest.MachineID{0xbb}.String()
	for claim, planted := range map[string]string{
		"another machine's":           `"sealift-machine":"` + other + `"`,
		"no id":                       `"sealift-machine":"` + strings.Repeat("g", 64) + `"`,
		"long":                        `"sealift-machine":"` + strings.Repeat("e", 9000) + `"`,
		"a number":                    `"sealift-machine":1e999999`,
		"a list":                      `"sealift-machine":["` + e0.String() + `"]`,
		"an object":                   `"sealift-machine":{"sealift-machine":"` + e0.String() + `"}`,
		"null":                        `"sealift-machine":null`,
		"given twice":                 `"sealift-machine":"` + e0.String() + `","sealift-machine":"` + other + `"`,
		"in large letters":            `"SEALIFT-MACHINE":"` + other + `"`,
		"with a letter that folds":    `"ſealift-machine":"` + other + `"`,
		"and one with two that do so": `"sealift-machine":"` + e0.String() + `","ſealift-machine":"` + other + `"`,
	} {
		t.Run(claim, func(t *testing.T) {
			disk, table, node := fakeDisk(t, Label)
			format(t, node, table.Disk.String(), half(1), half(2), goodToken())
			f, err := os.OpenFile(node, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			k := Keys{TPM: &fakeTPM{}, ServiceHalf: half(2), Machine: e0}
			s, err := Inspect(disk, table)
			if err != nil {
				t.Fatal(err)
			}
			o, err := s.unlock(f, k)
			if err != nil {
				t.Fatal(err)
			}
			_, raw, err := readToken(s.header)
			if err != nil {
				t.Fatal(err)
			}
			token := strings.TrimSuffix(string(raw.JSON), "}") + "," + planted + "}"
			if err := o.Volume.SetToken(f, raw.ID, []byte(token)); err != nil {
				t.Fatal(err)
			}
			for boot := range 3 {
				before, err := os.ReadFile(node)
				if err != nil {
					t.Fatal(err)
				}
				if err := note(t, disk, table, f, k); err != nil {
					t.Fatal(err)
				}
				after, err := os.ReadFile(node)
				if err != nil {
					t.Fatal(err)
				}
				if boot > 0 && !bytes.Equal(before, after) {
					t.Errorf("boot %d: the header was written again", boot)
				}
				if got, err := nameFor(t, disk, table, &fakeTPM{}, e1); got != e0 || err != nil {
					t.Errorf("boot %d: named %s, %v", boot, got, err)
				}
			}
		})
	}
}
