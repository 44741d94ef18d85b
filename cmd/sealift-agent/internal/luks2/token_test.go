package luks2

import (
	"bytes"
	"encoding/json"
	"testing"
)

// setToken opens the volume and sets its token 0.
func setToken(d Device, token string) error {
	v, err := Open(d, testSize, testKey(1))
	if err != nil {
		return err
	}
	return v.SetToken(d, 0, json.RawMessage(token))
}

const otherToken = `{"type":"sealift-tpm2","keyslots":["0"],"sealed":"AAEC","note":"x"}`

// tokenOf returns the token of the header that counts.
func tokenOf(t *testing.T, d Device) string {
	t.Helper()
	h, err := ReadHeader(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Tokens) != 1 {
		t.Fatalf("%d tokens", len(h.Tokens))
	}
	return string(h.Tokens[0].JSON)
}

func TestSetTokenChangesTheTokenAndNothingElse(t *testing.T) {
	t.Parallel()
	dev, volumeKey := newWhole(t)
	before := dev.clone()
	for range 2 {
		if err := setToken(dev, otherToken); err != nil {
			t.Fatal(err)
		}
		for _, c := range copies() {
			h, err := readCopy(dev, c.magic, c.at)
			if err != nil {
				t.Fatal(err)
			}
			if h.sequence != 2 {
				t.Errorf("the header at %d has sequence %d, want 2", c.at, h.sequence)
			}
		}
	}
	if got := tokenOf(t, dev); got != otherToken {
		t.Errorf("token is %s", got)
	}
	if !bytes.Equal(before.start[2*headerSize:], dev.start[2*headerSize:]) {
		t.Error("more than the headers changed")
	}
	v, err := Open(dev, testSize, testKey(1))
	if err != nil || !bytes.Equal(v.Key, volumeKey) {
		t.Fatal(err)
	}
	if err := rekey(dev, testKey(1), testKey(2)); err != nil {
		t.Fatal(err)
	}
	if got := tokenOf(t, dev); got != otherToken {
		t.Errorf("after a change of the key the token is %s", got)
	}
}

func TestSetTokenRefuses(t *testing.T) {
	t.Parallel()
	for claim, c := range map[string]struct {
		id    int
		token string
		alter func(*Volume)
	}{
		"a number without a token":  {1, otherToken, nil},
		"what is no token":          {0, `{"type":"sealift-tpm2"}`, nil},
		"what is too long":          {0, `{"type":"t","keyslots":[],"x":"` + string(bytes.Repeat([]byte("x"), jsonSize)) + `"}`, nil},
		"a header of another UUID":  {0, otherToken, func(v *Volume) { v.UUID = "00000000-0000-0000-0000-000000000000" }},
		"a volume with another key": {0, otherToken, func(v *Volume) { v.Key = bytes.Clone(v.Key); v.Key[0] ^= 1 }},
	} {
		t.Run(claim, func(t *testing.T) {
			dev, _ := newWhole(t)
			before := dev.clone()
			v, err := Open(dev, testSize, testKey(1))
			if err != nil {
				t.Fatal(err)
			}
			if c.alter != nil {
				c.alter(v)
			}
			if err := v.SetToken(dev, c.id, json.RawMessage(c.token)); err == nil {
				t.Error("no error")
			}
			if !bytes.Equal(before.start, dev.start) {
				t.Error("the volume changed")
			}
		})
	}
}

func TestAPowerCutDuringSetTokenLeavesTheOldTokenOrTheNew(t *testing.T) {
	t.Parallel()
	start, volumeKey := newWhole(t)
	old := tokenOf(t, start)
	dev := start.clone()
	var trace []event
	dev.trace = &trace
	if err := setToken(dev, otherToken); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	cuts(start, trace, func(cut int, disk *memory) {
		got := tokenOf(t, disk)
		if got != old && got != otherToken {
			t.Fatalf("cut after event %d: token is %s", cut, got)
		}
		seen[got]++
		v, err := Open(disk, testSize, testKey(1))
		if err != nil || !bytes.Equal(v.Key, volumeKey) {
			t.Fatalf("cut after event %d: %v", cut, err)
		}
		if err := setToken(disk, otherToken); err != nil || tokenOf(t, disk) != otherToken {
			t.Fatalf("cut after event %d: go on: %v", cut, err)
		}
	})
	if len(seen) != 2 {
		t.Errorf("outcomes met: %v", seen)
	}
}
