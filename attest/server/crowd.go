package server

import (
	"container/heap"
	"container/list"
	"slices"
	"time"

	"github.com/sealift/sealift/attest"
)

const (
	// shareOfFree bounds the connections of one network (networkKey): it has at most
	// so many times as many as are free. One network alone gets four fifths of all,
	// N of them 4/(4N+1) each, so that whoever comes from elsewhere finds some free
	// as long as fewer networks than a quarter of all connections take part.
	shareOfFree = 4
	// strangerTime is for how long after its first challenge a connection cannot be
	// replaced whose challenge is for no machine on record. Most TPMs need less.
	strangerTime = 10 * time.Second
	// shareHeld is the part of all connections that challenges hold, one in so many,
	// of those who are not where the machine that they name was before. So whoever
	// comes gets in, however many strangers come at once, and has the time to ask.
	shareHeld = 2
	// shareCalm is the part of all connections, one in so many, up to which nobody
	// looks who is on record: it takes a read of the store for each challenge.
	shareCalm = 8
	// claimsOfOne is how many connections count as one machine's: the one that its
	// agent uses, and one of before that has not ended yet.
	claimsOfOne = 2
)

// claim is the machine that the sender of a request for a challenge says it is. An
// endorsement key is no secret, so this is no proof; but there are only as many of
// them as machines are on record.
type claim struct {
	machine attest.MachineID // zero if it is none on record
	home    bool             // the sender is in the network that the machine last proved itself from
	early   bool             // there were few connections, and nobody looked which machine it is
}

// lasts reports whether it keeps a connection held for as long as its challenge is
// good. Of early ones there are few.
func (c claim) lasts() bool { return c.early || !c.machine.IsZero() }

// crowd knows who is to go when there is no room for another connection.
//   - a connection with a request in work is never closed for another
//   - one with a challenge that can be answered is held: that of a machine on record
//     for as long as its challenge is good, that of any other for strangerTime, once.
//     Of what is held not more than one in shareHeld is not home; strangers first
//     are held no more, and then those whose time is over first
//   - a connection is backed while it is held by a machine on record: claimsOfOne of
//     each machine, the last, and as many from its home, which is the network that it
//     last proved itself from. Those elsewhere that name its key do not take that away
//   - it goes by networks, and in a network by addresses. One that weighs more gives
//     way to one that weighs less, never the reverse. Its weight is the number of
//     its connections that are not backed, less that of those that are: a network
//     of machines on record does not give way to any number of networks of strangers
//   - of equal weight those go first that had their chance, as in one address, and
//     of those the one that was idle for longest
//   - one that comes takes the place of one of its own address that had its chance
//
// Machines that all come back at once from one address do not push out each
// other.
type crowd struct {
	total, open int
	networks    map[string]*network
	heaviest    byWeight // *network with something that can go
	held        [kinds]byEnd
	claims      map[claim][]*guest // backed, the one since longest in front
	turn        int64              // counts what became idle
	now         func() time.Time
}

// group is what networks and addresses have in common.
type group struct {
	open, backed int
	at           int // in a byWeight; -1: not in it
}

func (g *group) weight() int { return g.open - 2*g.backed }
func (g *group) index() *int { return &g.at }

type network struct {
	group
	key       string
	addresses map[string]*address
	heaviest  byWeight // *address with something that can go
}

type address struct {
	group
	key          string
	fresh, spent list.List // *guest that can go, the longest idle in front; spent are those that had their chance
}

// first returns who is to go, nil if nobody can.
func (n *network) first() *guest {
	if len(n.heaviest) == 0 {
		return nil
	}
	return n.heaviest[0].first()
}

func (a *address) first() *guest {
	for _, l := range []*list.List{&a.spent, &a.fresh} {
		if e := l.Front(); e != nil {
			return e.Value.(*guest)
		}
	}
	return nil
}

// place is where a guest is in the crowd: in a list of its address, in crowd.held,
// or in neither if it is busy.
type place struct {
	network *network
	address *address
	in      *list.List
	spot    *list.Element
	held    *byEnd
	at      int       // in held
	turn    int64     // of becoming idle
	tried   bool      // it had its chance: a challenge or another answer
	until   time.Time // it is held, or was to be
	strange time.Time // until when it is held without being backed; zero if it never was
	claim   claim     // that backs it, if its machine is not zero
}

// Kinds of what is held, in the order of what they are worth.
const (
	strange = iota // not backed
	away           // backed, and not home; or early
	home
	kinds
)

func (p *place) kind() int {
	switch {
	case !p.claim.lasts():
		return strange
	case p.claim.home:
		return home
	}
	return away
}

func newCrowd(total int) crowd {
	return crowd{total: total, networks: map[string]*network{}, claims: map[claim][]*guest{}, now: time.Now}
}

// calm reports whether there are so few that it does not matter yet what each is worth.
func (c *crowd) calm() bool { return c.open <= c.total/shareCalm }

// room reports whether an address may have one connection more: not if limit is
// set, and else once other is closed, if that is not nil. Those that a proxy has
// not named yet have no share of their own, and give way to each other: none has
// a reason to be unnamed for long.
func (c *crowd) room(networkKey, addressKey string, unnamed bool) (limit string, other *guest) {
	n := c.networks[networkKey]
	has := 0
	if n != nil {
		has = n.open
	}
	free := c.total - c.open
	switch {
	case free <= 0:
		limit = limitConnections
	case has >= shareOfFree*free && !unnamed:
		limit = limitNetworkConnections
	default:
		return "", nil
	}
	for h := range c.held {
		for len(c.held[h]) > 0 && c.now().After(c.held[h][0].place.until) {
			c.idle(c.held[h][0])
		}
	}
	var own *address
	weight, ownWeight := 0, 0
	if n != nil {
		weight, own = n.weight(), n.addresses[addressKey]
	}
	if own != nil {
		ownWeight = own.weight()
	}
	if unnamed {
		weight--
	}
	switch {
	case len(c.heaviest) > 0 && c.heaviest[0].weight() > weight:
		return "", c.heaviest[0].first()
	case n == nil:
	case len(n.heaviest) > 0 && n.heaviest[0].weight() > ownWeight+1: // it still has as many afterwards
		return "", n.first()
	case own != nil && own.spent.Len() > 0:
		// Not one whose challenge is good and was too many.
		if oldest := own.spent.Front().Value.(*guest); c.now().After(oldest.place.until) {
			return "", oldest
		}
	}
	return limit, nil
}

// enter counts a connection, which is idle at first.
func (c *crowd) enter(g *guest, networkKey, addressKey string) {
	n := c.networks[networkKey]
	if n == nil {
		n = &network{group: group{at: -1}, key: networkKey, addresses: map[string]*address{}}
		c.networks[networkKey] = n
	}
	a := n.addresses[addressKey]
	if a == nil {
		a = &address{group: group{at: -1}, key: addressKey}
		n.addresses[addressKey] = a
	}
	c.open++
	n.open++
	a.open++
	g.place = place{network: n, address: a}
	c.idle(g)
}

// leave counts it no more.
func (c *crowd) leave(g *guest) {
	c.back(g, claim{})
	n, a := g.place.network, g.place.address
	c.open--
	n.open--
	a.open--
	c.move(g, nil)
	g.place = place{}
	if a.open == 0 {
		delete(n.addresses, a.key)
	}
	if n.open == 0 {
		delete(c.networks, n.key)
	}
}

// busy is for one with a request in work.
func (c *crowd) busy(g *guest) {
	g.place.tried = true
	c.move(g, nil)
}

// asks is for one whose request begins and has to wait for room: if it is backed,
// that is not its fault.
func (c *crowd) asks(g *guest) {
	if g.place.held != nil && g.place.claim.lasts() && !c.now().After(g.place.until) {
		c.busy(g)
	}
}

func (c *crowd) idle(g *guest) {
	c.back(g, claim{})
	to := &g.place.address.spent
	if !g.place.tried {
		to = &g.place.address.fresh
		if g.place.in == to {
			return // a handshake gives it no more time
		}
	}
	c.turn++
	g.place.turn = c.turn
	c.move(g, to)
}

// answering is for one with a challenge that can be answered until then.
func (c *crowd) answering(g *guest, until time.Time, who claim) {
	g.place.tried = true
	c.move(g, nil)
	c.back(g, who)
	if !who.lasts() {
		until = c.strangers(g, until)
	}
	c.hold(g, until)
}

// hold holds g, and if that are too many one less.
func (c *crowd) hold(g *guest, until time.Time) {
	c.move(g, nil)
	g.place.until, g.place.held = until, &c.held[g.place.kind()]
	heap.Push(g.place.held, g)
	switch s, a := c.held[strange], c.held[away]; {
	case len(s)+len(a) <= c.total/shareHeld:
	case len(s) > 0:
		c.idle(s[0])
	default:
		c.idle(a[0])
	}
}

// strangers is until when one that is not backed is held.
func (c *crowd) strangers(g *guest, until time.Time) time.Time {
	if g.place.strange.IsZero() {
		g.place.strange = c.now().Add(strangerTime)
	}
	if g.place.strange.Before(until) {
		return g.place.strange
	}
	return until
}

// back has a claim back a connection in place of the one that did. The oldest of
// more than claimsOfOne is backed no more.
func (c *crowd) back(g *guest, who claim) {
	if former := g.place.claim; former != who && !former.machine.IsZero() {
		rest := slices.DeleteFunc(c.claims[former], func(o *guest) bool { return o == g })
		if c.claims[former] = rest; len(rest) == 0 {
			delete(c.claims, former)
		}
		c.backed(g, -1)
	}
	if who != g.place.claim && !who.machine.IsZero() {
		c.claims[who] = append(c.claims[who], g)
		c.backed(g, 1)
	}
	g.place.claim = who
	if all := c.claims[who]; len(all) > claimsOfOne {
		oldest := all[0]
		c.back(oldest, claim{})
		if oldest.place.held != nil {
			c.hold(oldest, c.strangers(oldest, oldest.place.until))
		}
	}
}

func (c *crowd) backed(g *guest, more int) {
	g.place.network.backed += more
	g.place.address.backed += more
	c.settle(g)
}

// move puts g at the end of a list of its address, or in none, and takes it out of
// where it is.
func (c *crowd) move(g *guest, to *list.List) {
	if g.place.spot != nil {
		g.place.in.Remove(g.place.spot)
	}
	if g.place.held != nil {
		heap.Remove(g.place.held, g.place.at)
	}
	g.place.in, g.place.spot = to, nil
	if to != nil {
		g.place.spot = to.PushBack(g)
	}
	c.settle(g)
}

// settle puts g's address and network where they belong.
func (c *crowd) settle(g *guest) {
	n, a := g.place.network, g.place.address
	n.heaviest.settle(a)
	c.heaviest.settle(n)
}

// weighed is a *network or an *address.
type weighed interface {
	weight() int
	first() *guest
	index() *int
}

// byWeight is a heap (container/heap): first what weighs most, and of equals what
// has somebody who had his chance, and was idle for longest.
type byWeight []weighed

// settle puts w where it belongs, which is nowhere if nobody in it can go.
func (h *byWeight) settle(w weighed) {
	switch present, can := *w.index() >= 0, w.first() != nil; {
	case present && !can:
		heap.Remove(h, *w.index())
	case present:
		heap.Fix(h, *w.index())
	case can:
		heap.Push(h, w)
	}
}

func (h byWeight) Len() int { return len(h) }
func (h byWeight) Less(i, j int) bool {
	if wi, wj := h[i].weight(), h[j].weight(); wi != wj {
		return wi > wj
	}
	fi, fj := h[i].first().place, h[j].first().place
	if fi.tried != fj.tried {
		return fi.tried
	}
	return fi.turn < fj.turn
}
func (h byWeight) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	*h[i].index(), *h[j].index() = i, j
}
func (h *byWeight) Push(x any) {
	w := x.(weighed)
	*w.index() = len(*h)
	*h = append(*h, w)
}
func (h *byWeight) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*w.index() = -1
	*h = old[:len(old)-1]
	return w
}

// byEnd is a heap (container/heap) of those that are held, first the one whose time
// is over first.
type byEnd []*guest

func (h byEnd) Len() int           { return len(h) }
func (h byEnd) Less(i, j int) bool { return h[i].place.until.Before(h[j].place.until) }
func (h byEnd) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place.at, h[j].place.at = i, j
}
func (h *byEnd) Push(x any) {
	g := x.(*guest)
	g.place.at = len(*h)
	*h = append(*h, g)
}
func (h *byEnd) Pop() any {
	old := *h
	g := old[len(old)-1]
	old[len(old)-1] = nil
	g.place.held = nil
	*h = old[:len(old)-1]
	return g
}
