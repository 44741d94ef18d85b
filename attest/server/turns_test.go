package server_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/sealift/sealift/attest/server"
)

// A connection that is counted no more, since the peer that its proxy named has too
// many, does not wait for the turn of its handshake: whoever has all turns could else
// have any number of connections open.
func TestARefusedConnectionWaitsForNoTurn(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := proxied(t, g, func(c *server.Config) { c.Limits = server.Limits{Connections: 1000, AddressConnections: 1} })
	dial := func(address int) net.Conn {
		c, err := saying(v1(fmt.Sprintf("10.0.%d.1", address))+"\x16\x03\x01\x02\x00\x01")(t.Context(), "tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// Of two one is refused; the other one begins its handshake.
	for address := range 64 {
		ended := make(chan struct{}, 2)
		for range 2 {
			c := dial(address)
			go func() {
				_, _ = io.Copy(io.Discard, c)
				ended <- struct{}{}
			}()
		}
		<-ended
	}
	for range 8 {
		if err := closed(dial(0)); err != nil {
			t.Error(err)
		}
	}
	if n := g.count("limited node handshake"); n != 0 {
		t.Errorf("%d handshakes were cut before all were closed", n)
	}
}
