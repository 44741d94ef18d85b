package provisioner

import (
	"bytes"
	"net/netip"
	"testing"
)

func TestUDPFrameHasCorrectChecksums(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.0.0.1:67"), netip.MustParseAddrPort("10.0.0.2:68")
	frame := udpFrame(macAddr{2, 0, 0, 0, 0, 1}, macAddr{2, 0, 0, 0, 0, 2}, src, dst, []byte("hello"))
	from, to, payload, ok := parseUDPFrame(frame)
	if !ok || from != src || to != dst || string(payload) != "hello" {
		t.Errorf("parsed %v to %v %q %v", from, to, payload, ok)
	}
	// A correct checksum sums to all ones with what it covers.
	if got := onesSum(0, frame[ethHeader:ethHeader+ipv4Header]); got != 0xffff {
		t.Errorf("IPv4 checksum sums to %#x, want 0xffff", got)
	}
	pseudo := append([]byte{10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 13}, frame[ethHeader+ipv4Header:]...)
	if got := onesSum(0, pseudo); got != 0xffff {
		t.Errorf("UDP checksum sums to %#x, want 0xffff", got)
	}
}

func FuzzUDPFrame(f *testing.F) {
	f.Add(udpFrame(macAddr{2}, macAddr{4}, netip.MustParseAddrPort("10.0.0.1:67"), netip.MustParseAddrPort("10.0.0.2:68"), []byte("x")))
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, b []byte) {
		from, to, payload, ok := parseUDPFrame(b)
		if !ok {
			return
		}
		again := udpFrame(macAddr{2}, macAddr{4}, from, to, payload)
		if f2, t2, p2, ok := parseUDPFrame(again); !ok || f2 != from || t2 != to || !bytes.Equal(p2, payload) {
			t.Errorf("%v to %v changed to %v to %v", from, to, f2, t2)
		}
	})
}
