package server

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Bounds are what a listener's connections are held to.
type Bounds struct {
	Connections        int // open at once
	AddressConnections int // of one address (IPv6: /64) among them
	// Proxies are the networks of trusted proxies. A connection from there begins
	// with a header of the PROXY protocol, version 1 or 2, which says whose it is,
	// and is counted as that peer's. One without is closed. Connections from
	// elsewhere have no header. Optional.
	Proxies []netip.Prefix
	Refused func(limit string) // told of each connection that was closed, and by which limit
	Log     *slog.Logger
}

// boundedListener is a listener that closes connections past a limit at once: a
// connection costs memory from its first byte on, before anything is known of
// the peer. Waiting in the kernel's backlog instead would let whoever holds
// the connections keep everybody out without a trace.
type boundedListener struct {
	net.Listener
	bounds  Bounds
	without *limiter // what is logged of connections without a header

	mu    sync.Mutex
	by    map[string]int // open, by addressKey; guarded by mu
	crowd crowd          // guarded by mu
}

// BoundListener bounds the connections that are open at once over ln. RemoteAddr
// of its connections is the peer that a proxy names, and may wait for that: ask
// it first, and not where connections are accepted.
func BoundListener(ln net.Listener, b Bounds) net.Listener { return newBoundedListener(ln, b) }

func newBoundedListener(ln net.Listener, b Bounds) *boundedListener {
	return &boundedListener{Listener: ln, bounds: b, without: newLimiter(time.Minute, 1), by: map[string]int{}, crowd: newCrowd(b.Connections)}
}

// Accept returns the next connection within the limits, as a *guest.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &guest{Conn: raw, list: l, addr: raw.RemoteAddr()}
		c.proxied = trusted(l.bounds.Proxies, c.addr)
		if limit := l.enter(c); limit != "" {
			l.bounds.Refused(limit)
			// The peer is told nothing, so it does not matter how this ends.
			_ = raw.Close()
			continue
		}
		return c, nil
	}
}

// enter counts a connection, or names the limit that is reached. One whose peer
// a proxy has yet to name is counted as the proxy's, of which there may be as
// many as there may be in all.
func (l *boundedListener) enter(c *guest) (limit string) {
	remote := c.addr.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.proxied {
		return l.admit(c, "proxy "+addressKey(remote), "proxy "+addressKey(remote), l.bounds.Connections, true)
	}
	return l.admit(c, addressKey(remote), networkKey(remote), l.bounds.AddressConnections, false)
}

// named counts a connection as that of the peer that its proxy names, unless it
// was closed meanwhile.
func (l *boundedListener) named(c *guest, addr net.Addr) (limit string) {
	remote := addr.String()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.forget(c) {
		return ""
	}
	return l.admit(c, addressKey(remote), networkKey(remote), l.bounds.AddressConnections, false)
}

// admit counts c, for which another may be closed. The caller holds mu.
func (l *boundedListener) admit(c *guest, key, network string, most int, unnamed bool) (limit string) {
	if l.by[key] >= most {
		return limitAddressConnections
	}
	limit, other := l.crowd.room(network, key, unnamed)
	if limit != "" {
		return limit
	}
	if other != nil {
		l.forget(other)
		l.bounds.Refused(limitEvicted)
		// Who has it open learns of it by that.
		_ = other.Conn.Close()
	}
	c.key = key
	l.by[key]++
	l.crowd.enter(c, network, key)
	return ""
}

// forget counts c no more, and reports whether it was counted. The caller holds
// mu.
func (l *boundedListener) forget(c *guest) bool {
	if c.key == "" {
		return false
	}
	if l.by[c.key]--; l.by[c.key] == 0 {
		delete(l.by, c.key)
	}
	c.key = ""
	l.crowd.leave(c)
	return true
}

// guest is a connection that is counted until it is closed.
type guest struct {
	net.Conn
	list    *boundedListener
	proxied bool // a header of the PROXY protocol comes first

	once  sync.Once // guards addr, ahead and fault, if proxied
	addr  net.Addr  // of the peer
	ahead []byte    // read with the header
	fault error     // why the connection is of no use

	key   string // it is counted by, empty if it is not; guarded by list.mu
	place place  // guarded by list.mu
}

// RemoteAddr returns the peer's address. It waits for a proxy to name it, for
// at most proxyTimeout.
func (c *guest) RemoteAddr() net.Addr {
	c.identify()
	return c.addr
}

// Read reads what follows the proxy's header, if there is one.
func (c *guest) Read(p []byte) (int, error) {
	c.identify()
	if c.fault != nil {
		return 0, c.fault
	}
	if len(c.ahead) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil
	}
	return n, nil
}

// SyscallConn implements syscall.Conn, to wait for what Read would read once it has
// read what came with a proxy's header.
func (c *guest) SyscallConn() (syscall.RawConn, error) {
	if sys, ok := c.Conn.(syscall.Conn); ok {
		return sys.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// unusable is why the connection is of no use: its proxy said nothing that is right, or
// the peer that it named has too many. RemoteAddr was asked before.
func (c *guest) unusable() error {
	if c == nil {
		return nil
	}
	return c.fault
}

func (c *guest) Close() error {
	err := c.Conn.Close()
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	c.list.forget(c)
	return err
}

// busy says that the service has something to do for the peer: the connection is
// not closed for another's sake.
func (c *guest) busy() { c.is(func(l *crowd) { l.busy(c) }) }

// asks says that the peer answers its challenge, and waits for the service.
func (c *guest) asks() { c.is(func(l *crowd) { l.asks(c) }) }

// idle says that the peer could as well come back over another connection.
func (c *guest) idle() { c.is(func(l *crowd) { l.idle(c) }) }

// answering says that the peer, who says that it is a machine, needs this
// connection until then.
func (c *guest) answering(until time.Time, who claim) {
	c.is(func(l *crowd) { l.answering(c, until, who) })
}

// calm reports whether it does not matter yet what connections are worth.
func (c *guest) calm() bool {
	calm := true
	c.is(func(l *crowd) { calm = l.calm() })
	return calm
}

func (c *guest) is(what func(*crowd)) {
	if c == nil {
		return
	}
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	if c.key != "" {
		what(&c.list.crowd)
	}
}

// guestOf returns the guest that is below a connection, nil if there is none.
func guestOf(c net.Conn) *guest {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	g, _ := c.(*guest)
	return g
}

// Occupied is the http.Server.ConnState of a server that listens with a
// BoundListener: a connection with a request is not closed for another's sake.
func Occupied(c net.Conn, s http.ConnState) {
	switch s {
	case http.StateActive:
		guestOf(c).busy()
	case http.StateIdle:
		guestOf(c).idle()
	}
}
