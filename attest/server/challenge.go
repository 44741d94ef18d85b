package server

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/sealift/sealift/attest"
)

// connection is what the service keeps with a node's connection: the challenge
// that was given over it last, until it is answered. Evidence is bound to the
// TLS connection that it comes over, and so is the challenge: it can be
// answered over the connection that it was given over and no other. It goes
// with the connection and with the process, so that nothing, not a crash and
// not a database that was restored, brings back one that was taken; and it
// costs the store nothing.
type connection struct {
	open atomic.Pointer[attest.Challenge]
}

type connectionKey struct{}

// withConnection is the http.Server.ConnContext of the node API.
func withConnection(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, new(connection))
}

// connectionOf returns the connection of a request. One that did not come
// through ServeNodes has none that lasts: its challenges are never answered.
func connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c
	}
	return new(connection)
}

// put opens a challenge in place of the one that was open.
func (c *connection) put(ch *attest.Challenge) { c.open.Store(ch) }

// take returns the open challenge if it has that id. However many requests ask
// for it, one gets it.
func (c *connection) take(id string) (*attest.Challenge, bool) {
	ch := c.open.Load()
	if ch == nil || ch.ID != id || !c.open.CompareAndSwap(ch, nil) {
		return nil, false
	}
	return ch, true
}
