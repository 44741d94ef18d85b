package luks2

import (
	"bytes"
	"fmt"
	"testing"
)

// A second power cut meets whatever the first has left: one copy of the header may be
// torn, and the other is then the only one.
func TestASecondPowerCutLeavesAVolumeThatOpens(t *testing.T) {
	t.Parallel()
	start, volumeKey := newWhole(t)
	first := map[string]func(Device) error{
		"token": func(d Device) error { return setToken(d, otherToken) },
		"key":   func(d Device) error { return rekey(d, testKey(1), testKey(2)) },
	}
	// Both go on from the key that opens it, to something else than the first.
	second := map[string]func(d Device, opens byte) error{
		"token": func(d Device, opens byte) error {
			v, err := Open(d, testSize, testKey(opens))
			if err != nil {
				return err
			}
			return v.SetToken(d, 0, []byte(`{"type":"sealift-tpm2","keyslots":["0"],"note":"y"}`))
		},
		"key": func(d Device, opens byte) error { return rekey(d, testKey(opens), testKey(3)) },
	}
	opens := func(d Device, keys ...byte) (byte, error) {
		err := fmt.Errorf("no key")
		for _, n := range keys {
			var v *Volume
			if v, err = Open(d, testSize, testKey(n)); err == nil {
				if !bytes.Equal(v.Key, volumeKey) {
					return 0, fmt.Errorf("key %d gives another volume key", n)
				}
				return n, nil
			}
		}
		return 0, err
	}
	traced := func(d *memory, f func(Device) error) []event {
		t.Helper()
		var trace []event
		dev := d.clone()
		dev.trace = &trace
		if err := f(dev); err != nil {
			t.Fatal(err)
		}
		return trace
	}
	// What is written elsewhere is whole or not named by a header: see the single cuts.
	headers := func(trace []event, cut int) bool { return cut > 0 && len(trace[cut-1].data) == headerSize }
	for a, f := range first {
		begun := traced(start, f)
		cuts(start, begun, func(one int, disk *memory) {
			if !headers(begun, one) {
				return
			}
			primary, err := readCopy(disk, magicPrimary, 0)
			secondary, err2 := readCopy(disk, magicSecondary, headerSize)
			if err == nil && err2 == nil && primary.sequence == secondary.sequence {
				return
			}
			key, err := opens(disk, 1, 2)
			if err != nil {
				t.Fatal(err)
			}
			for b, g := range second {
				again := traced(disk, func(d Device) error { return g(d, key) })
				cuts(disk, again, func(two int, disk *memory) {
					if !headers(again, two) {
						return
					}
					if _, err := opens(disk, key, 3); err != nil {
						t.Errorf("%s cut after event %d, then %s cut after event %d: %v", a, one, b, two, err)
					}
				})
			}
		})
	}
}
