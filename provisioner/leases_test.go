package provisioner

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestALeaseSurvivesARestart(t *testing.T) {
	pool := Range{addr("10.0.0.10"), addr("10.0.0.12")}
	table := newLeaseTable(pool)
	var lines [][]byte
	keep := func(line []byte, ok bool) {
		t.Helper()
		if !ok {
			t.Fatal("refused")
		}
		lines = append(lines, line)
	}
	a, b, c := macAddr{2, 1}, macAddr{2, 2}, macAddr{2, 3}
	until := dayOne.Add(time.Hour)
	keep(table.claim(dayOne, a, addr("10.0.0.10"), until))
	keep(table.claim(dayOne, b, addr("10.0.0.11"), until))
	keep(table.release(dayOne, b, addr("10.0.0.11")))
	keep(table.claim(dayOne, c, addr("10.0.0.12"), until))
	keep(table.decline(dayOne, c, addr("10.0.0.12")))

	for name, from := range map[string][][]byte{"from the log": lines, "from a snapshot": table.lines()} {
		t.Run(name, func(t *testing.T) {
			again := newLeaseTable(pool)
			for _, line := range from {
				if err := again.load(line); err != nil {
					t.Fatal(err)
				}
			}
			if mac, ok := again.holder(dayOne, addr("10.0.0.10")); !ok || mac != a {
				t.Errorf("10.0.0.10 is held by %s %v, want %s", mac, ok, a)
			}
			if _, ok := again.holder(dayOne, addr("10.0.0.11")); ok {
				t.Error("a released address has a holder")
			}
			if got, ok := again.offer(dayOne, b, netip.Addr{}); !ok || got != addr("10.0.0.11") {
				t.Errorf("the client that released 10.0.0.11 is offered %s", got)
			}
			if got, ok := again.offer(dayOne, c, netip.Addr{}); ok {
				t.Errorf("%s is offered, want none: one is leased, one offered, one declined", got)
			}
		})
	}

	smaller := newLeaseTable(Range{addr("10.0.0.11"), addr("10.0.0.11")})
	for _, line := range lines {
		if err := smaller.load(line); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := smaller.holder(dayOne, addr("10.0.0.10")); ok {
		t.Error("an address outside of the range is leased")
	}
	for _, bad := range []string{`{}`, `[]`, `{"address":"10.0.0.11","state":"active","mac":"x"}`, `{"address":"x","state":"declined"}`, `{"address":"10.0.0.11","state":"offered"}`} {
		if err := smaller.load([]byte(bad)); err == nil {
			t.Errorf("line %s is accepted", bad)
		}
	}
}

// Whatever clients do, one address has one holder and one client one address.
func TestNoAddressHasTwoHolders(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pool := Range{addr("10.0.0.10"), addr("10.0.0.29")}
	table := newLeaseTable(pool, addr("10.0.0.15"))
	now := dayOne
	told := make(map[netip.Addr]macAddr) // what an ACK promised
	until := make(map[netip.Addr]time.Time)
	for step := range 50000 {
		now = now.Add(time.Duration(r.IntN(20)) * time.Second)
		mac := macAddr{2, byte(r.IntN(30))}
		at := addr(fmt.Sprintf("10.0.0.%d", 8+r.IntN(24)))
		switch r.IntN(8) {
		case 0, 1, 2:
			if got, ok := table.offer(now, mac, at); ok {
				at = got
				if holder := told[got]; holder != mac && now.Before(until[got]) {
					t.Fatalf("step %d: %s is offered to %s, but is leased to %s", step, got, mac, holder)
				}
			}
			fallthrough
		case 3, 4:
			if _, ok := table.claim(now, mac, at, now.Add(10*time.Minute)); ok {
				if holder := told[at]; holder != mac && now.Before(until[at]) {
					t.Fatalf("step %d: %s is leased to %s and to %s", step, at, mac, holder)
				}
				for other, holder := range told {
					if holder == mac && other != at && now.Before(until[other]) {
						t.Fatalf("step %d: %s has %s and %s", step, mac, other, at)
					}
				}
				if !table.usable(at) {
					t.Fatalf("step %d: %s is leased, which is not usable", step, at)
				}
				told[at], until[at] = mac, now.Add(10*time.Minute)
			}
		case 5:
			if _, ok := table.release(now, mac, at); ok {
				delete(told, at)
				delete(until, at)
			}
		case 6:
			if _, ok := table.decline(now, mac, at); ok {
				told[at], until[at] = macAddr{}, now.Add(declineHold)
			}
		case 7:
			table.forget(now, mac)
		}
		if len(table.byAddr) != len(table.queue) || len(table.byAddr) > 19 {
			t.Fatalf("step %d: %d addresses, %d in the queue, want at most 19", step, len(table.byAddr), len(table.queue))
		}
	}
}
