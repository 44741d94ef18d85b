package provisioner

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// How long an address is held without a lease.
const (
	offerHold   = time.Minute      // from OFFER to REQUEST; edk2 collects offers for 4 s, or 60 s in all
	declineHold = 10 * time.Minute // after DECLINE: somebody else uses it
)

// Range is an inclusive range of IPv4 addresses.
type Range struct {
	First, Last netip.Addr
}

// macAddr is an Ethernet address. Leases are keyed by it and not by the client
// identifier (option 61): edk2 sends none, iPXE sends type and MAC, Linux a
// DUID, and one box that boots through all three would hold three addresses.
type macAddr [6]byte

func (m macAddr) String() string { return net.HardwareAddr(m[:]).String() }

type leaseState string

const (
	leaseOffered  leaseState = "offered" // held in memory only
	leaseActive   leaseState = "active"
	leaseReleased leaseState = "released" // expired, kept so that the box gets it again
	leaseDeclined leaseState = "declined"
	leaseFree     leaseState = "" // had a holder that has another address now
)

type lease struct {
	addr    netip.Addr
	mac     macAddr // zero if declined or free
	state   leaseState
	expires time.Time
	index   int // in leaseTable.queue
}

// leaseLine is a lease in the lease file.
type leaseLine struct {
	Address netip.Addr `json:"address"`
	MAC     string     `json:"mac,omitempty"`
	State   leaseState `json:"state"`
	Expires time.Time  `json:"expires"`
}

func (l *lease) line() []byte {
	out := leaseLine{Address: l.addr, State: l.state, Expires: l.expires.UTC().Truncate(time.Second)}
	if l.state != leaseDeclined {
		out.MAC = l.mac.String()
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic("provisioner: BUG: marshal a lease: " + err.Error())
	}
	return b
}

// leaseTable hands out the addresses of one range. Every operation takes
// logarithmic time in the number of leases, whatever the clients do.
type leaseTable struct {
	pool     Range
	reserved map[netip.Addr]bool // addresses in pool that are never handed out

	mu     sync.Mutex
	byMAC  map[macAddr]*lease
	byAddr map[netip.Addr]*lease // only grows
	queue  leaseQueue            // all of byAddr, the first to expire first
	next   netip.Addr            // lowest address that was never considered; only grows
}

func newLeaseTable(pool Range, reserved ...netip.Addr) *leaseTable {
	t := &leaseTable{
		pool:     pool,
		reserved: make(map[netip.Addr]bool),
		byMAC:    make(map[macAddr]*lease),
		byAddr:   make(map[netip.Addr]*lease),
		next:     pool.First,
	}
	for _, a := range reserved {
		t.reserved[a] = true
	}
	return t
}

func (t *leaseTable) usable(a netip.Addr) bool {
	return a.Is4() && t.pool.First.Compare(a) <= 0 && a.Compare(t.pool.Last) <= 0 && !t.reserved[a]
}

// load takes one line of the lease file. Addresses that are no longer in the
// range are forgotten.
func (t *leaseTable) load(line []byte) error {
	var in leaseLine
	if err := json.Unmarshal(line, &in); err != nil {
		return err
	}
	var mac macAddr
	switch in.State {
	case leaseActive, leaseReleased:
		hw, err := net.ParseMAC(in.MAC)
		if err != nil || len(hw) != len(mac) {
			return fmt.Errorf("lease of %s: MAC is %.32q", in.Address, in.MAC)
		}
		mac = macAddr(hw)
	case leaseDeclined:
	default:
		return fmt.Errorf("lease of %s: state is %.32q", in.Address, in.State)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.usable(in.Address) {
		return nil
	}
	t.put(in.Address, mac, in.State, in.Expires)
	return nil
}

// lines returns what the lease file must hold, and forgets nothing.
func (t *leaseTable) lines() [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := make([][]byte, 0, len(t.byAddr))
	for _, l := range t.byAddr {
		if l.state != leaseOffered && l.state != leaseFree {
			lines = append(lines, l.line())
		}
	}
	return lines
}

// put makes addr the one lease of mac, and mac the one holder of addr.
func (t *leaseTable) put(addr netip.Addr, mac macAddr, state leaseState, expires time.Time) *lease {
	if old := t.byMAC[mac]; old != nil && old.addr != addr && state != leaseDeclined {
		delete(t.byMAC, mac)
		old.mac, old.state, old.expires = macAddr{}, leaseFree, time.Time{}
		heap.Fix(&t.queue, old.index)
	}
	l := t.byAddr[addr]
	if l == nil {
		l = &lease{addr: addr}
		t.byAddr[addr] = l
		heap.Push(&t.queue, l)
	} else if t.byMAC[l.mac] == l {
		delete(t.byMAC, l.mac)
	}
	l.mac, l.state, l.expires = mac, state, expires
	if state == leaseDeclined {
		l.mac = macAddr{}
	} else {
		t.byMAC[mac] = l
	}
	heap.Fix(&t.queue, l.index)
	return l
}

// free reports whether mac could have addr now.
func (t *leaseTable) free(now time.Time, mac macAddr, addr netip.Addr) bool {
	if !t.usable(addr) {
		return false
	}
	l := t.byAddr[addr]
	return l == nil || (l.mac == mac && l.state != leaseDeclined) || !now.Before(l.expires)
}

// offer chooses an address for mac and holds it: the one it has or had, the
// one it asks for, one that nobody had yet, or the one that expired first
// (RFC 2131 4.3.1). It reports false if there is none.
func (t *leaseTable) offer(now time.Time, mac macAddr, want netip.Addr) (netip.Addr, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byMAC[mac]; l != nil {
		if l.state == leaseOffered || !now.Before(l.expires) {
			t.put(l.addr, mac, leaseOffered, now.Add(offerHold))
		}
		return l.addr, true
	}
	addr, ok := want, t.free(now, mac, want)
	for !ok && t.next.Compare(t.pool.Last) <= 0 {
		addr, t.next = t.next, t.next.Next()
		ok = t.usable(addr) && t.byAddr[addr] == nil
	}
	if !ok && len(t.queue) > 0 && !now.Before(t.queue[0].expires) {
		addr, ok = t.queue[0].addr, true
	}
	if !ok {
		return netip.Addr{}, false
	}
	t.put(addr, mac, leaseOffered, now.Add(offerHold))
	return addr, true
}

// claim gives addr to mac until expires. It reports false if mac may not have
// it. The line returned has to be durable before the client is told.
func (t *leaseTable) claim(now time.Time, mac macAddr, addr netip.Addr, expires time.Time) ([]byte, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byMAC[mac]; l != nil && l.addr != addr && l.state == leaseActive && now.Before(l.expires) {
		return nil, false
	}
	if !t.free(now, mac, addr) {
		return nil, false
	}
	return t.put(addr, mac, leaseActive, expires).line(), true
}

// forget ends an offer that the client did not take.
func (t *leaseTable) forget(now time.Time, mac macAddr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byMAC[mac]; l != nil && l.state == leaseOffered {
		t.put(l.addr, mac, leaseOffered, now)
	}
}

// release ends the lease of mac on addr; mac gets it again if it comes back in time.
func (t *leaseTable) release(now time.Time, mac macAddr, addr netip.Addr) ([]byte, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byMAC[mac]
	if l == nil || l.addr != addr || l.state != leaseActive {
		return nil, false
	}
	return t.put(addr, mac, leaseReleased, now).line(), true
}

// decline takes addr out of use for a while: mac found somebody else using it.
func (t *leaseTable) decline(now time.Time, mac macAddr, addr netip.Addr) ([]byte, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byMAC[mac]
	if l == nil || l.addr != addr {
		return nil, false
	}
	return t.put(addr, mac, leaseDeclined, now.Add(declineHold)).line(), true
}

// holder returns the MAC that has a lease on addr.
func (t *leaseTable) holder(now time.Time, addr netip.Addr) (macAddr, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byAddr[addr]
	if l == nil || l.state != leaseActive || !now.Before(l.expires) {
		return macAddr{}, false
	}
	return l.mac, true
}

// leaseQueue is a heap of leases, the first to expire on top.
type leaseQueue []*lease

func (q leaseQueue) Len() int           { return len(q) }
func (q leaseQueue) Less(i, j int) bool { return q[i].expires.Before(q[j].expires) }
func (q leaseQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *leaseQueue) Push(x any) {
	l := x.(*lease)
	l.index = len(*q)
	*q = append(*q, l)
}
func (q *leaseQueue) Pop() any {
	old := *q
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return l
}
