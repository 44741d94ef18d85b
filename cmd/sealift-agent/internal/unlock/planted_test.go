package unlock

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/recovery"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/luks2"
)

// A thief can have a box ask under another's name, and for the other's disk. What
// people would give him is a code for a key that this box has half of, and no more
// than he gets with a request that he made up.
func TestACodeForThePlantedNameOfAnotherBoxOpensNothing(t *testing.T) {
	disk, table, node := fakeDisk(t, Label)
	planted := goodToken()
	planted.Machine = noted(e1.String())
	format(t, node, table.Disk.String(), half(1), half(2), planted)
	asked, err := nameFor(t, disk, table, &fakeTPM{}, e0)
	if err != nil || asked != e1 {
		t.Fatalf("asked as %s, %v", asked, err)
	}
	victims := newGUID(t).String()
	for claim, c := range map[string]struct {
		request   string // disk of the request
		machine   attest.MachineID
		disk      string
		requested bool
	}{
		"the box itself, asked as the other": {table.Disk.String(), e0, table.Disk.String(), false},
		"the other box with its own disk":    {table.Disk.String(), e1, victims, false},
		"the other box, and its disk's GUID": {victims, e1, victims, true},
		"the other box, if it had this disk": {table.Disk.String(), e1, table.Disk.String(), true},
	} {
		boot, err := recovery.NewBootKey(asked, c.request)
		if err != nil {
			t.Fatal(err)
		}
		// The service knows whose disk is which.
		bootKey, err := recovery.ParseRequest(strings.Join(boot.Request(), "\n"), c.machine, c.disk)
		if (err == nil) != c.requested {
			t.Errorf("%s: the request is taken %t: %v", claim, err == nil, err)
		}
		if err != nil {
			continue
		}
		now := time.Now()
		code, err := recovery.Seal(bootKey, c.machine, c.disk, &recovery.Secrets{DiskKey: half(4), NameDigits: 10}, now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		reader := boot.Reader()
		var s *recovery.Secrets
		for line := range strings.Lines(string(code)) {
			if _, s, err = reader.Line(line, now); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadFile(node)
		if err != nil {
			t.Fatal(err)
		}
		state, err := Inspect(disk, table)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := state.Open(Keys{TPM: &fakeTPM{}, ServiceHalf: s.DiskKey, Either: true, Machine: e0}); !errors.Is(err, luks2.ErrWrongKey) {
			t.Errorf("%s: the disk opens: %v", claim, err)
		}
		after, err := os.ReadFile(node)
		if err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the disk was written to: %v", claim, err)
		}
	}
}

// A header that has no room for the machine is left as it is.
func TestAFullHeaderIsNotNotedAndOpens(t *testing.T) {
	disk, table, node := fakeDisk(t, Label)
	format(t, node, table.Disk.String(), half(1), half(2), goodToken())
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	k := Keys{TPM: &fakeTPM{}, ServiceHalf: half(2), Machine: e0}
	// Fill it as far as it goes.
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
	full := 0
	for n := 12288; n > 0 && full == 0; n-- {
		token, err := json.Marshal(map[string]any{
			"type": tokenType, "keyslots": []string{"0"}, "sealift-device-half": goodToken().DeviceHalf, "x": strings.Repeat("x", n),
		})
		if err != nil {
			t.Fatal(err)
		}
		if o.Volume.SetToken(f, raw.ID, token) == nil {
			full = n
		}
	}
	if full == 0 {
		t.Fatal("no token fits")
	}
	before, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := note(t, disk, table, f, k); err == nil || !strings.Contains(err.Error(), "12288") {
			t.Errorf("got %v", err)
		}
	}
	if after, err := os.ReadFile(node); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the header was written: %v", err)
	}
	if o, err := boot(t, disk, table, f, k); err != nil || o.Volume == nil {
		t.Error(err)
	}
}
