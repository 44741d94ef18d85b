package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client"
	"github.com/sealift/sealift/attest/server"
)

func TestNetworksAreThoseOfOneSite(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.7:1":               "192.0.2.0/24",
		"[::ffff:192.0.2.7]:1":      "192.0.2.0/24",
		"[2001:db8:1:2:3::4]:1":     "2001:db8:1::/48",
		"[2001:db8:1:ffff::4]:1":    "2001:db8:1::/48",
		"[64:ff9b::192.0.2.7]:1":    "192.0.2.0/24",
		"[fe80::1%eth0]:1":          "fe80::/48",
		"something else altogether": "unknown",
	} {
		if got := server.NetworkKey(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

// closing is a connection that knows whether it was closed.
type closing struct {
	net.Conn
	from   string
	closed atomic.Bool
}

func (c *closing) RemoteAddr() net.Addr { return fakeConn{from: c.from}.RemoteAddr() }
func (c *closing) Close() error         { c.closed.Store(true); return nil }

type one struct {
	net.Listener
	next *closing
}

func (l *one) Accept() (net.Conn, error) {
	if l.next == nil {
		return nil, net.ErrClosed
	}
	c := l.next
	l.next = nil
	return c, nil
}

// What goes when there is no room is what the rules say, found here by looking at
// all connections each time.
func TestWhoGoesWhenThereIsNoRoom(t *testing.T) {
	t.Parallel()
	const total, share = 40, 4
	type known struct {
		*closing
		conn    net.Conn
		network int
		state   string // idle, busy or answering
		turn    int    // of becoming idle
		given   int    // turn of its challenge
		until   time.Time
	}
	seeds := rand.New(rand.NewPCG(1, 2))
	for round := range 60 {
		r := rand.New(rand.NewPCG(seeds.Uint64(), seeds.Uint64()))
		ln, now, turn := &one{}, time.Unix(0, 0), 0
		counted := map[string]int{}
		b := server.NewBoundedListener(ln, server.Bounds{Connections: total, AddressConnections: total, Refused: func(l string) { counted[l]++ }})
		b.At(func() time.Time { return now })
		var all []*known
		expected := map[string]int{}
		tick := func() int { turn++; return turn }
		for step := range 400 {
			now = now.Add(time.Second)
			if len(all) > 0 && r.IntN(3) == 0 {
				k := all[r.IntN(len(all))]
				switch r.IntN(4) {
				case 0:
					server.Idle(k.conn)
					k.state, k.turn = "idle", tick()
				case 1:
					server.Busy(k.conn)
					k.state = "busy"
				case 2:
					// Challenges are given for the same time.
					k.state, k.given, k.until = "answering", tick(), now.Add(time.Minute)
					server.Answering(k.conn, k.until)
				default:
					k.conn.Close()
					k.conn.Close()
					all = without(all, k)
				}
				continue
			}
			network := r.IntN(2 + round%9)
			has := map[int]int{}
			for _, k := range all {
				has[k.network]++
			}
			free := total - len(all)
			var goes *known
			limit := ""
			switch {
			case free == 0:
				limit = "connections"
			case has[network] >= share*free:
				limit = "network-connections"
			}
			if limit != "" {
				// Those whose challenge ran out became idle, in that order.
				for {
					var out *known
					for _, k := range all {
						if k.state == "answering" && now.After(k.until) && (out == nil || k.given < out.given) {
							out = k
						}
					}
					if out == nil {
						break
					}
					out.state, out.turn = "idle", tick()
				}
				for _, k := range all {
					if k.state != "idle" {
						continue
					}
					if goes == nil || has[k.network] > has[goes.network] || has[k.network] == has[goes.network] && k.turn < goes.turn {
						goes = k
					}
				}
				if goes != nil && has[goes.network] <= has[network] {
					goes = nil
				}
				if goes != nil {
					limit = ""
					expected["evicted"]++
				} else {
					expected[limit]++
				}
			}
			came := &closing{from: fmt.Sprintf("10.0.%d.%d:1", network, r.IntN(250))}
			ln.next = came
			conn, err := b.Accept()
			if (err == nil) != (limit == "") {
				t.Fatalf("round %d, step %d: network %d of %v, %d free: accepted %t, want limit %q", round, step, network, has, free, err == nil, limit)
			}
			if goes != nil {
				all = without(all, goes)
				if !goes.closed.Load() {
					t.Fatalf("round %d, step %d: another than %s was closed", round, step, goes.from)
				}
				goes.conn.Close() // whoever had it learns of it
			}
			for _, k := range all {
				if k.closed.Load() {
					t.Fatalf("round %d, step %d: %s, %s, was closed", round, step, k.from, k.state)
				}
			}
			if err == nil {
				all = append(all, &known{closing: came, conn: conn, network: network, state: "idle", turn: tick()})
			}
			if n, _ := b.Open(); n != len(all) {
				t.Fatalf("round %d, step %d: %d are counted, %d are open", round, step, n, len(all))
			}
		}
		if fmt.Sprint(counted) != fmt.Sprint(expected) {
			t.Fatalf("round %d: counted %v, want %v", round, counted, expected)
		}
		for _, k := range all {
			k.conn.Close()
		}
		if n, keys := b.Open(); n != 0 || keys != 0 {
			t.Fatalf("round %d: at the end %d of %d addresses are counted", round, n, keys)
		}
	}
}

func without[T comparable](all []T, one T) []T {
	var rest []T
	for _, v := range all {
		if v != one {
			rest = append(rest, v)
		}
	}
	return rest
}

// Whoever fills the table with connections that ask for nothing, or for nothing
// that leads anywhere, keeps no machine out, and cuts off none that is in the
// middle of its release.
func TestHeldConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	const total, networks = 120, 12
	// Each opens a connection and keeps it.
	for name, hold := range map[string]func(t *testing.T, s *scene, from string){
		"silent": func(t *testing.T, s *scene, from string) {
			c, err := saying(v1(from))(t.Context(), "tcp", s.nodes)
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
		},
		"silent before a header": func(t *testing.T, s *scene, _ string) {
			c, err := net.Dial("tcp", s.nodes)
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
		},
		"handshake begun": func(t *testing.T, s *scene, from string) {
			c, err := saying(v1(from)+"\x16\x03\x01\x02\x00\x01")(t.Context(), "tcp", s.nodes)
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
		},
		"silent after the handshake": func(t *testing.T, s *scene, from string) { s.tryProxy(t, from) },
		"request begun": func(t *testing.T, s *scene, from string) {
			if c := s.tryProxy(t, from); c != nil {
				_, _ = io.WriteString(c, "P")
			}
		},
		"nonsense asked": func(t *testing.T, s *scene, from string) {
			if c := s.tryProxy(t, from); c != nil {
				_, _ = io.WriteString(c, post(api.PathConfirm, "{}"))
				_, _ = c.Read(make([]byte, 100))
			}
		},
		"challenge asked": func(t *testing.T, s *scene, from string) {
			if c := s.tryProxy(t, from); c != nil {
				b := s.stranger
				_, _ = io.WriteString(c, post(api.PathChallenge, string(mustJSON(t, &api.ChallengeRequest{
					Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic,
				}))))
				_, _ = c.Read(make([]byte, 100))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &gauge{all: map[string]int{}}
			s := proxied(t, g, func(c *server.Config) {
				c.Limits = server.Limits{Connections: total, AddressConnections: total, EKBurst: 1000, AddressBurst: 10000, Queue: time.Millisecond}
			})
			s.stranger = newBox(t, s.tpmCA)
			middle, guid := s.another(0)
			var dialled atomic.Int32
			at := func(from string) *client.Client {
				dial := saying(v1(from))
				return &client.Client{URL: "https://" + s.nodes, CA: s.pool(), ReleaseKey: &s.release.PublicKey, Patience: patience,
					Dial: func(ctx context.Context, network, to string) (net.Conn, error) {
						dialled.Add(1)
						return dial(ctx, network, to)
					}}
			}
			sess, err := at("203.0.113.1").Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer sess.Close()
			ch, err := sess.Challenge(t.Context(), &api.ChallengeRequest{Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: middle.ekPublic, AKPublic: middle.akPublic})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 2 * total {
				hold(t, s, fmt.Sprintf("10.0.%d.%d", i%networks, i/networks))
			}
			for until := time.Now().Add(patience); g.count("limited node evicted")+g.count("limited node network-connections") == 0; {
				if time.Now().After(until) {
					t.Fatalf("the table was not filled: %v", g.all)
				}
				time.Sleep(time.Millisecond) // the meter tells nobody
			}
			// The one in the middle of its release ends it over its connection.
			req := s.answer(middle, ch)
			req.Evidence.Disk.GUID = guid
			if _, _, err := sess.Evidence(t.Context(), middle.id, req); err != nil {
				t.Errorf("the one in the middle: %v", err)
			}
			if n := dialled.Load(); n != 1 {
				t.Errorf("it dialled %d times", n)
			}
			// One that comes now is served.
			b, guid := s.another(1)
			if _, err := s.boots(at("203.0.113.2"), b, guid); err != nil {
				t.Errorf("another: %v", err)
			}
		})
	}
}

// tryProxy makes a connection from an address, nil if that cannot be.
func (s *scene) tryProxy(t *testing.T, from string) net.Conn {
	raw, err := saying(v1(from))(t.Context(), "tcp", s.nodes)
	if err != nil {
		return nil
	}
	t.Cleanup(func() { raw.Close() })
	c := tls.Client(raw, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
	if c.HandshakeContext(t.Context()) != nil {
		return nil
	}
	return c
}

// Handshakes that do not end, of as many addresses as it takes to have all turns,
// give way to one that waits.
func TestSlowHandshakesGiveWay(t *testing.T) {
	t.Parallel()
	g := &gauge{all: map[string]int{}}
	s := newScene(t, func(c *server.Config) { c.Meter, c.Limits.Connections = g, 1024 }) // 64 handshakes
	for i := range 3 * 32 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i/32), 1)}}
		c, err := d.DialContext(t.Context(), "tcp", s.nodes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "\x16\x03\x01\x02\x00\x01"); err != nil {
			t.Fatal(err)
		}
	}
	n := s.node(t)
	n.say(post(api.PathConfirm, "{}"))
	if status, code := n.hear(); status != 400 {
		t.Errorf("HTTP %d %s", status, code)
	}
	if g.count("limited node handshake") == 0 {
		t.Error("no handshake was cut")
	}
}

// A connection that another has to give way to, in a full table of 16,384.
func BenchmarkConnectionsGiveWay(b *testing.B) {
	for _, networks := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d networks", networks), func(b *testing.B) {
			const total = 16384
			ln := &one{}
			l := server.NewBoundedListener(ln, server.Bounds{Connections: total, AddressConnections: total, Refused: func(string) {}})
			from := func(i int) string { return fmt.Sprintf("10.%d.%d.1:1", i%networks/250, i%networks%250) }
			for i := range 2 * total {
				ln.next = &closing{from: from(i)}
				_, _ = l.Accept() // as far as they share
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				ln.next = &closing{from: fmt.Sprintf("172.%d.%d.1:1", i/250%250, i%250)}
				_, _ = l.Accept() // refused once all networks have the same
			}
		})
	}
}
