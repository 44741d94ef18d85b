package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// secure makes the handshake, within headerTimeout and with the wait for its
// turn, and lets the connection wait for a request.
func (f *front) secure(ctx context.Context, raw net.Conn) {
	peer := raw.RemoteAddr().String() // which a proxy says in its own time
	if err := guestOf(raw).unusable(); err != nil {
		f.log.Debug("connection closed before its TLS handshake", "peer", addressText(peer), "error", err)
		// It may be counted no more, and must not wait for its turn.
		_ = raw.Close()
		return
	}
	c := &nodeConn{Conn: tls.Server(raw, f.cfg), guest: guestOf(raw), key: addressKey(peer), front: f}
	c.open.guest = c.guest
	if !f.enter(c) {
		_ = raw.Close() // the service ends
		return
	}
	// A handshake that has begun is finished, so that the peer can be told that
	// the service ends.
	timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), headerTimeout)
	defer cancel()
	if err := f.handshake(timeout, c); err != nil {
		f.log.Debug("TLS handshake failed", "peer", addressText(peer), "error", err)
		c.guest.tellOfStranger(err)
		// The peer was told what there is to tell.
		_ = raw.Close()
		f.left(c)
		return
	}
	c.state = c.ConnectionState()
	// Key updates that came with the end of the handshake are answered in look, and
	// the peer need not take the answers.
	_ = c.SetWriteDeadline(time.Now().Add(headerTimeout))
	f.await(ctx, c)
}

var errNoTurn = errors.New("too many handshakes at once")

func (f *front) handshake(ctx context.Context, c *nodeConn) error {
	leave, ok := f.handshakeShares.take(ctx, c.key, headerTimeout)
	if !ok {
		return errNoTurn
	}
	defer leave()
	for wait := slowHandshake; !f.handshakes.take(ctx, wait); wait = time.Second {
		if ctx.Err() != nil {
			return errNoTurn
		}
		f.cutHandshake()
	}
	defer f.handshakes.release()
	growStack(0) // not before: thousands may wait for their turn
	done := f.shakes(c, time.Now())
	err := c.HandshakeContext(ctx)
	done(err == nil)
	return err
}

// shake is a handshake that is under way.
type shake struct {
	conn  *nodeConn
	since time.Time
}

// shakes notes that a handshake is under way until done is called.
func (f *front) shakes(c *nodeConn, since time.Time) (done func(well bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.shaking.PushBack(shake{c, since})
	return func(well bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.shaking.Remove(e) // nothing, if it was cut
		if well {
			f.usual += (time.Since(since) - f.usual) / 16
		}
	}
}

// cutHandshake makes room for a handshake that waits: it cuts the one that began
// first if that is slow. Thousands may wait, so it must cost little.
func (f *front) cutHandshake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := f.shaking.Front()
	if first == nil {
		return
	}
	// Peers who end theirs late on purpose raise what is usual.
	if slow := first.Value.(shake); time.Since(slow.since) >= min(slowHandshake+timesUsual*f.usual, slowestHandshake) {
		f.shaking.Remove(first)
		f.refused(limitHandshake)
		_ = slow.conn.NetConn().Close()
	}
}
