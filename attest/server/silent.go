package server

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// shortRecord is as long as a TLS record without a request in it usually is, bytes:
// an alert has 19, a key update 22 (RFC 8446 5.2, 6, 4.6.3).
const shortRecord = 40

// look takes from crypto/tls what it has read already of the next request. Reading
// on needs a deep stack, and here is one: that of wait stays small.
func (c *nodeConn) look() error {
	if len(c.pending) > 0 {
		return nil
	}
	first := make([]byte, 1)
	// Nothing is read from the network past any deadline.
	_ = c.SetReadDeadline(time.Unix(1, 0))
	switch n, err := c.Conn.Read(first); {
	case n > 0:
		c.pending = first
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	}
	// A connection whose deadline cannot be set fails when it is read from.
	_ = c.SetReadDeadline(time.Time{})
	return nil
}

// begins waits until a request begins to arrive over a connection that look found
// silent. As long as it can it reads nothing: crypto/tls keeps what it has read
// ahead, and needs a deep stack to read. After a power cut thousands of machines
// are silent, and then wait for room, at once.
func (c *nodeConn) begins(until time.Time) error {
	// It is for writes too: a key update is answered in Read (RFC 8446 4.6.3).
	_ = c.SetDeadline(until)
	if !c.arrives() {
		if err := c.readFirst(); err != nil {
			return err
		}
	}
	return c.SetReadDeadline(time.Time{})
}

// readFirst reads what is no request, and then the first byte of one.
//
//go:noinline
func (c *nodeConn) readFirst() error {
	first := make([]byte, 1)
	if _, err := io.ReadFull(c.Conn, first); err != nil {
		return err
	}
	c.pending = first
	return nil
}

// arrives waits until there is something to read, or the connection's deadline, and
// reports whether that is sure to be of a request. It reads nothing.
func (c *nodeConn) arrives() bool {
	sys, ok := c.NetConn().(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return false
	}
	var header [5]byte // of the next record: its type, version and length
	n := 0
	err = raw.Read(func(fd uintptr) bool {
		var err error
		for {
			if n, _, err = syscall.Recvfrom(int(fd), header[:], syscall.MSG_PEEK); err != syscall.EINTR {
				return err != syscall.EAGAIN
			}
		}
	})
	const applicationData = 23
	return err == nil && n == len(header) && header[0] == applicationData && (int(header[3])<<8|int(header[4])) > shortRecord
}

// room waits for room for the request that begins. leave gives it back.
func (f *front) room(ctx context.Context, c *nodeConn) (leave func(), ok bool) {
	// The share first: who waits for it holds nothing of others.
	if machine := c.open.released; !machine.IsZero() {
		// It was just released to, and most likely confirms that. Behind all others it
		// would wait as long as for the release, with what crypto/tls keeps of the
		// evidence, up to 20 kB: half of the service's memory when thousands come at
		// once. There is one such request for a release, and a machine that boots over
		// and over has no more than its share.
		share, ok := f.confirmShares.take(ctx, string(machine[:]), f.queue)
		if !ok {
			return nil, false
		}
		if !f.takeOrCut(ctx, f.confirmations, true) {
			share()
			return nil, false
		}
		return func() {
			f.confirmations.release()
			share()
		}, true
	}
	share, ok := f.requestShares.take(ctx, c.key, f.queue)
	if !ok {
		return nil, false
	}
	if !f.takeOrCut(ctx, f.requests, false) {
		share()
		return nil, false
	}
	return func() {
		f.requests.release()
		share()
	}, true
}

// takeOrCut waits for a slot of requests, or of confirmations, for which one of those
// that hold them may be cut.
func (f *front) takeOrCut(ctx context.Context, s slots, confirms bool) bool {
	if s.take(ctx, min(f.queue, slowAfter)) {
		return true
	}
	f.cutSlow(confirms)
	return s.take(ctx, f.queue)
}
