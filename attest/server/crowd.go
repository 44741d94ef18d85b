package server

import (
	"container/heap"
	"container/list"
	"time"
)

// shareOfFree bounds the connections of one network (networkKey): it has at most
// so many times as many as are free. One network alone gets four fifths of all,
// N of them 4/(4N+1) each, so that whoever comes from elsewhere finds some free
// as long as fewer networks than a quarter of all connections take part.
const shareOfFree = 4

// crowd knows who is to go when there is no room for another connection. What a
// peer proved does not tell: anybody can have a challenge. So it goes by networks:
//   - one that has more gives way to one that has less, never the reverse
//   - what goes is the connection that was idle for longest
//   - none goes that has a request in work, or a challenge that can be answered:
//     a machine in the middle of a release is never among them
//
// Machines that all come back at once from one network do not push out each
// other.
type crowd struct {
	total, open int
	networks    map[string]*network
	heaviest    byWeight  // networks with something idle
	challenged  list.List // *guest, the one that was given its challenge first in front
	turn        int64     // counts what became idle
	now         func() time.Time
}

type network struct {
	key  string
	open int
	idle list.List // *guest, the longest idle in front
	at   int       // in crowd.heaviest; -1: not in it
}

// place is where a guest is in the crowd.
type place struct {
	network *network
	in      *list.List // network.idle, crowd.challenged, or nil if it is busy
	spot    *list.Element
	turn    int64     // of becoming idle
	until   time.Time // of its challenge
}

func newCrowd(total int) crowd {
	return crowd{total: total, networks: map[string]*network{}, now: time.Now}
}

// room reports whether a network may have one connection more: not if limit is
// set, and else once other is closed, if that is not nil. Those that a proxy has
// not named yet have no share of their own, and give way to each other: none has
// a reason to be unnamed for long.
func (c *crowd) room(key string, unnamed bool) (limit string, other *guest) {
	has := 0
	if n := c.networks[key]; n != nil {
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
	for e := c.challenged.Front(); e != nil && c.now().After(e.Value.(*guest).place.until); e = c.challenged.Front() {
		c.idle(e.Value.(*guest)) // it cannot be answered any more
	}
	if unnamed {
		has--
	}
	if len(c.heaviest) == 0 || c.heaviest[0].open <= has {
		return limit, nil
	}
	return "", c.heaviest[0].idle.Front().Value.(*guest)
}

// enter counts a connection, which is idle at first.
func (c *crowd) enter(g *guest, key string) {
	n := c.networks[key]
	if n == nil {
		n = &network{key: key, at: -1}
		c.networks[key] = n
	}
	c.open++
	n.open++
	g.place.network = n
	c.idle(g)
}

// leave counts it no more.
func (c *crowd) leave(g *guest) {
	n := g.place.network
	c.open--
	n.open--
	c.move(g, nil)
	g.place = place{}
	if n.open == 0 {
		delete(c.networks, n.key)
	}
}

func (c *crowd) busy(g *guest) { c.move(g, nil) }

func (c *crowd) idle(g *guest) {
	c.turn++
	g.place.turn = c.turn
	c.move(g, &g.place.network.idle)
}

func (c *crowd) answering(g *guest, until time.Time) {
	g.place.until = until
	c.move(g, &c.challenged)
}

// move puts g at the end of a list, and its network where it belongs.
func (c *crowd) move(g *guest, to *list.List) {
	if g.place.spot != nil {
		g.place.in.Remove(g.place.spot)
	}
	g.place.in, g.place.spot = to, nil
	if to != nil {
		g.place.spot = to.PushBack(g)
	}
	n := g.place.network
	switch present := n.at >= 0; {
	case present && n.idle.Len() == 0:
		heap.Remove(&c.heaviest, n.at)
	case present:
		heap.Fix(&c.heaviest, n.at)
	case n.idle.Len() > 0:
		heap.Push(&c.heaviest, n)
	}
}

// byWeight is a heap (container/heap): first the network with most connections,
// and of equals the one with what was idle for longest.
type byWeight []*network

func (h byWeight) Len() int { return len(h) }
func (h byWeight) Less(i, j int) bool {
	if h[i].open != h[j].open {
		return h[i].open > h[j].open
	}
	first := func(n *network) int64 { return n.idle.Front().Value.(*guest).place.turn }
	return first(h[i]) < first(h[j])
}
func (h byWeight) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *byWeight) Push(x any) {
	n := x.(*network)
	n.at = len(*h)
	*h = append(*h, n)
}
func (h *byWeight) Pop() any {
	old := *h
	n := old[len(old)-1]
	old[len(old)-1] = nil
	n.at = -1
	*h = old[:len(old)-1]
	return n
}
