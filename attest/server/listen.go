package server

import (
	"net"
	"sync"
)

// boundedListener is a listener that closes connections past a limit at once: a
// connection costs memory from its first byte on, before anything is known of
// the peer. Waiting in the kernel's backlog instead would let whoever holds
// the connections keep everybody out without a trace.
type boundedListener struct {
	net.Listener
	total, each int                // limits
	refused     func(limit string) // told of each connection that was closed

	mu   sync.Mutex
	open int            // guarded by mu
	by   map[string]int // by addressKey; guarded by mu
}

// BoundListener bounds the connections that are open at once over ln, and those
// of one address (IPv6: /64) among them. One more is closed at once, and refused
// is told of which limit.
func BoundListener(ln net.Listener, total, each int, refused func(limit string)) net.Listener {
	return newBoundedListener(ln, total, each, refused)
}

func newBoundedListener(ln net.Listener, total, each int, refused func(limit string)) *boundedListener {
	return &boundedListener{Listener: ln, total: total, each: each, refused: refused, by: map[string]int{}}
}

// Accept returns the next connection within the limits.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		key := addressKey(c.RemoteAddr().String())
		limit := l.enter(key)
		if limit == "" {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { l.leave(key) })}, nil
		}
		l.refused(limit)
		// The peer is told nothing, so it does not matter how this ends.
		_ = c.Close()
	}
}

// enter counts a connection, or names the limit that is reached.
func (l *boundedListener) enter(key string) (limit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.by[key] >= l.each:
		return limitAddressConnections
	case l.open >= l.total:
		return limitConnections
	}
	l.open++
	l.by[key]++
	return ""
}

func (l *boundedListener) leave(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.by[key]--; l.by[key] == 0 {
		delete(l.by, key)
	}
}

// counted is a connection that is counted until it is closed.
type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.leave()
	return err
}
