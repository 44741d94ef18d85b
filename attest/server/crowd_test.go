package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
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

// member is what the model of the crowd knows of a connection.
type member struct {
	*closing
	conn             net.Conn
	network, address int
	state            string // idle, busy or held
	turn             int    // of becoming idle
	tried            bool
	until, strange   time.Time
	machine          byte // that it names; 0 is none
	home             bool
	backed           int // turn of being backed, 0 if it is not
}

type model []*member

func (m model) count(what func(*member) bool) (n int) {
	for _, k := range m {
		if what(k) {
			n++
		}
	}
	return n
}

func (m model) weight(what func(*member) bool) int {
	return m.count(what) - 2*m.count(func(k *member) bool { return k.backed > 0 && what(k) })
}

// goes returns who is to go for one that comes from an address, nil if none is.
func (m model) goes(network, address int, now time.Time) *member {
	inNetwork := func(n int) func(*member) bool { return func(k *member) bool { return k.network == n } }
	at := func(n, a int) func(*member) bool {
		return func(k *member) bool { return k.network == n && k.address == a }
	}
	// what had its chance, and then what is idle for longest
	before := func(a, b *member) bool { return a.tried && !b.tried || a.tried == b.tried && a.turn < b.turn }
	first := func(n, a int) (out *member) {
		for _, k := range m {
			if k.state != "idle" || k.network != n || k.address != a {
				continue
			}
			if out == nil || before(k, out) {
				out = k
			}
		}
		return out
	}
	heaviest := func(n int) (out *member, weight int) {
		for a := range addresses {
			f, w := first(n, a), m.weight(at(n, a))
			if f != nil && (out == nil || w > weight || w == weight && before(f, out)) {
				out, weight = f, w
			}
		}
		return out, weight
	}
	var out *member
	weight := 0
	for n := range 20 {
		f, _ := heaviest(n)
		w := m.weight(inNetwork(n))
		if f != nil && (out == nil || w > weight || w == weight && before(f, out)) {
			out, weight = f, w
		}
	}
	if out != nil && weight > m.weight(inNetwork(network)) {
		return out
	}
	if f, w := heaviest(network); f != nil && w > m.weight(at(network, address))+1 {
		return f
	}
	if f := first(network, address); f != nil && f.tried && now.After(f.until) {
		return f
	}
	return nil
}

const addresses = 3 // of a network in the model

// What goes when there is no room is what the rules say, found here by looking at
// all connections each time.
func TestWhoGoesWhenThereIsNoRoom(t *testing.T) {
	t.Parallel()
	const total, share, ofOne = 40, 4, 2
	seeds := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		r := rand.New(rand.NewPCG(seeds.Uint64(), seeds.Uint64()))
		ln, now, turn := &one{}, time.Unix(0, 0), 0
		counted := map[string]int{}
		b := server.NewBoundedListener(ln, server.Bounds{Connections: total, AddressConnections: total, Refused: func(l string) { counted[l]++ }})
		b.At(func() time.Time { return now })
		var all model
		expected := map[string]int{}
		tick := func() int { turn++; return turn }
		idle := func(k *member) {
			if k.state != "idle" || k.tried {
				k.turn = tick()
			}
			k.state, k.backed = "idle", 0
		}
		held := func(k *member, until time.Time) {
			k.state = "held"
			if k.backed == 0 {
				if k.strange.IsZero() {
					k.strange = now.Add(server.StrangerTime)
				}
				if k.strange.Before(until) {
					until = k.strange
				}
			}
			k.until = until
			// Half of all for those that are not home.
			var first *member
			strange := func(o *member) bool { return o.backed == 0 }
			if all.count(func(o *member) bool { return o.state == "held" && (strange(o) || !o.home) }) > total/2 {
				for _, o := range all {
					switch {
					case o.state != "held" || !strange(o) && o.home:
					case first == nil, strange(o) && !strange(first), strange(o) == strange(first) && o.until.Before(first.until):
						first = o
					}
				}
				idle(first)
			}
		}
		for step := range 400 {
			now = now.Add(time.Second + time.Duration(r.IntN(1000))) // no two times are the same
			if len(all) > 0 && r.IntN(2) == 0 {
				k := all[r.IntN(len(all))]
				switch r.IntN(6) {
				case 0:
					server.Idle(k.conn)
					idle(k)
				case 1:
					server.Busy(k.conn)
					k.state, k.tried = "busy", true
				case 2:
					server.Asks(k.conn)
					if k.state == "held" && k.backed > 0 && !now.After(k.until) {
						k.state = "busy"
					}
				case 3, 4:
					machine, home := byte(r.IntN(6)), r.IntN(2) == 0
					if machine == 0 {
						home = false
					}
					until := now.Add(time.Duration(r.IntN(60)) * time.Second)
					server.Answering(k.conn, until, attest.MachineID{machine}, home)
					switch {
					case machine == 0:
						k.backed = 0
					case k.backed == 0 || k.machine != machine || k.home != home:
						k.backed = tick()
					}
					k.state, k.tried, k.machine, k.home = "busy", true, machine, home
					// The last count.
					same := func(o *member) bool { return o.backed > 0 && o.machine == machine && o.home == home }
					if machine > 0 && all.count(same) > ofOne {
						var oldest *member
						for _, o := range all {
							if same(o) && (oldest == nil || o.backed < oldest.backed) {
								oldest = o
							}
						}
						oldest.backed = 0
						if oldest.state == "held" {
							held(oldest, oldest.until)
						}
					}
					held(k, until)
				default:
					k.conn.Close()
					k.conn.Close()
					all = without(all, k)
				}
				if err := b.Sound(); err != nil {
					t.Fatalf("round %d, step %d: %v", round, step, err)
				}
				continue
			}
			network, address := r.IntN(2+round%9), r.IntN(addresses)
			has := all.count(func(k *member) bool { return k.network == network })
			free := total - len(all)
			var goes *member
			limit := ""
			switch {
			case free == 0:
				limit = "connections"
			case has >= share*free:
				limit = "network-connections"
			}
			if limit != "" {
				// Those whose time is over became idle, in that order.
				for _, kind := range []func(*member) bool{
					func(k *member) bool { return k.backed == 0 },
					func(k *member) bool { return k.backed > 0 && !k.home },
					func(k *member) bool { return k.backed > 0 && k.home },
				} {
					for {
						var out *member
						for _, k := range all {
							if k.state == "held" && now.After(k.until) && kind(k) && (out == nil || k.until.Before(out.until)) {
								out = k
							}
						}
						if out == nil {
							break
						}
						idle(out)
					}
				}
				if goes = all.goes(network, address, now); goes != nil {
					limit = ""
					expected["evicted"]++
				} else {
					expected[limit]++
				}
			}
			came := &closing{from: fmt.Sprintf("10.0.%d.%d:1", network, address)}
			ln.next = came
			conn, err := b.Accept()
			if (err == nil) != (limit == "") {
				t.Fatalf("round %d, step %d: from address %d of network %d, which has %d, %d free: accepted %t, want limit %q", round, step, address, network, has, free, err == nil, limit)
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
				all = append(all, &member{closing: came, conn: conn, network: network, address: address, state: "idle", turn: tick()})
			}
			if n, _ := b.Open(); n != len(all) {
				t.Fatalf("round %d, step %d: %d are counted, %d are open", round, step, n, len(all))
			}
			if err := b.Sound(); err != nil {
				t.Fatalf("round %d, step %d: %v", round, step, err)
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
	const total = 60
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
		"challenge asked":                   askForChallenge,
		"challenge asked, of many networks": askForChallenge,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			networks := 12
			if strings.HasSuffix(name, "of many networks") {
				networks = 2 * total
			}
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
			for until := time.Now().Add(patience); g.count("limited node evicted")+g.count("limited node network-connections")+g.count("limited node connections") == 0; {
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

// askForChallenge asks for a challenge for a machine that is not on record.
func askForChallenge(t *testing.T, s *scene, from string) {
	if c := s.tryProxy(t, from); c != nil {
		b := s.stranger
		_, _ = io.WriteString(c, post(api.PathChallenge, string(mustJSON(t, &api.ChallengeRequest{
			Version: api.Version, Purpose: attest.PurposeUnlock, EKPublic: b.ekPublic, AKPublic: b.akPublic,
		}))))
		_, _ = c.Read(make([]byte, 100))
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
	ctx, cancel := context.WithCancel(t.Context())
	var peers sync.WaitGroup
	defer peers.Wait()
	defer cancel()
	for i := range 3 * 32 {
		peers.Go(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i/32), 1)}}
			for ctx.Err() == nil { // as often as it is cut
				c, err := d.DialContext(ctx, "tcp", s.nodes)
				if err != nil {
					continue
				}
				stop := context.AfterFunc(ctx, func() { c.Close() })
				_, _ = io.WriteString(c, "\x16\x03\x01\x02\x00\x01")
				_, _ = io.Copy(io.Discard, c)
				stop()
				c.Close()
			}
		})
	}
	// One gets its turn; where all is slow not at once, and others may end before
	// they are cut.
	for served := false; !served || g.count("limited node handshake") == 0; {
		c, err := tls.Dial("tcp", s.nodes, &tls.Config{RootCAs: s.pool(), ServerName: "127.0.0.1"})
		if err != nil {
			continue
		}
		if n := s.over(c); !served {
			n.say(post(api.PathConfirm, "{}"))
			if status, code := n.hear(); status != 400 {
				t.Errorf("HTTP %d %s", status, code)
			}
			served = true
		}
		c.Close()
	}
}

// Strangers of any number of networks, who ask for challenges as fast as they like
// and come again at once, keep no machine on record out, and cut off none whose TPM
// needs its time. Time is not that of a clock here, and eighty connections are one.
func TestStrangersKeepNoMachineOut(t *testing.T) {
	t.Parallel()
	const (
		total   = 200
		fleet   = 115 // of one address
		flood   = 100 // attempts of strangers each second: more than hold all for StrangerTime
		tpm     = 40 * time.Second
		life    = time.Minute // of a challenge
		longest = 10 * time.Minute
	)
	id := func(i int) attest.MachineID { return attest.MachineID{1, byte(i >> 8), byte(i)} }
	nobody := func(int) attest.MachineID { return attest.MachineID{} }
	for name, tt := range map[string]struct {
		attempts, machines int
		names              func(i int) attest.MachineID // that a stranger says it is
		home               bool                         // the machines were there before
	}{
		"they name made-up keys":                        {flood, fleet, nobody, false},
		"they name the key of one machine":              {flood, fleet, func(int) attest.MachineID { return id(0) }, true},
		"they name the keys of all machines":            {flood, fleet, func(i int) attest.MachineID { return id(i % fleet) }, true},
		"they name the keys of others":                  {flood, fleet, func(i int) attest.MachineID { return attest.MachineID{2, byte(i % 25)} }, true},
		"there are none, and too many machines at once": {0, 2 * total, nobody, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Unix(0, 0)
			ln := &one{}
			b := server.NewBoundedListener(ln, server.Bounds{Connections: total, AddressConnections: total, Refused: func(string) {}})
			b.At(func() time.Time { return now })
			enter := func(from string) (*closing, net.Conn) {
				came := &closing{from: from}
				ln.next = came
				conn, err := b.Accept()
				if err != nil {
					return nil, nil
				}
				return came, conn
			}
			type stranger struct {
				came *closing
				conn net.Conn
				says attest.MachineID
			}
			var strangers []stranger
			made := 0
			attack := func() {
				var left []stranger
				for _, a := range strangers {
					if !a.came.closed.Load() {
						server.Answering(a.conn, now.Add(life), a.says, false)
						left = append(left, a)
					} else {
						a.conn.Close()
					}
				}
				strangers = left
				for range tt.attempts {
					made++
					if came, conn := enter(fmt.Sprintf("[2001:%x:%x::1]:1", 0xdb8+made>>16, made&0xffff)); conn != nil {
						a := stranger{came, conn, tt.names(made)}
						server.Answering(conn, now.Add(life), a.says, false)
						strangers = append(strangers, a)
					}
				}
			}
			for range 30 { // until they hold what can be held
				now = now.Add(time.Second)
				attack()
			}
			if n, _ := b.Open(); n != total && tt.attempts > 0 {
				t.Fatalf("%d of %d are held", n, total)
			}
			type machine struct {
				came   *closing
				conn   net.Conn
				next   time.Time // of its next step
				pause  time.Duration
				asked  bool
				served bool
			}
			all := make([]machine, tt.machines)
			for i := range all {
				all[i].pause = time.Second
			}
			r := rand.New(rand.NewPCG(1, 2))
			again := func(m *machine) {
				m.next = now.Add(m.pause/2 + time.Duration(r.Int64N(int64(m.pause))))
				m.pause = min(2*m.pause, time.Minute)
			}
			served, cut, last := 0, 0, now
			began := now
			for ; served < tt.machines && now.Sub(began) < longest; now = now.Add(time.Second) {
				attack()
				for i := range all {
					m := &all[i]
					if !m.served && m.conn != nil && m.came.closed.Load() {
						if m.asked {
							cut++
						}
						m.conn.Close()
						*m = machine{pause: m.pause}
						again(m)
					}
					switch {
					case m.served || now.Before(m.next):
					case m.conn == nil:
						if m.came, m.conn = enter("192.0.2.1:1"); m.conn == nil {
							again(m)
							continue
						}
						m.next = now.Add(time.Second) // the handshake
					case !m.asked:
						server.Answering(m.conn, now.Add(life), id(i), tt.home)
						m.asked, m.next = true, now.Add(tpm)
					default:
						server.Busy(m.conn)
						m.conn.Close()
						m.served, last = true, now
						served++
					}
				}
			}
			t.Logf("%d of %d machines were served in %v, %d connections cut while their TPM worked, %d of strangers made", served, tt.machines, last.Sub(began), cut, made)
			if served < tt.machines || cut > 0 {
				t.Errorf("%d of %d machines were served, %d were cut", served, tt.machines, cut)
			}
		})
	}
}

// A connection that another has to give way to, in a full table of 16,384: of idle
// connections, and of challenges for machines that are on record or not, which are
// asked for again with each connection.
func BenchmarkConnectionsGiveWay(b *testing.B) {
	for _, challenged := range []bool{false, true} {
		for _, networks := range []int{10, 1000, 16384} {
			b.Run(fmt.Sprintf("challenged %t/%d networks", challenged, networks), func(b *testing.B) {
				const total = 16384
				ln := &one{}
				l := server.NewBoundedListener(ln, server.Bounds{Connections: total, AddressConnections: total, Refused: func(string) {}})
				var open []net.Conn
				enter := func(from string) {
					ln.next = &closing{from: from}
					if conn, err := l.Accept(); err == nil {
						open = append(open, conn)
					}
				}
				answer := func(i int) {
					c := open[i%len(open)]
					server.Answering(c, time.Now().Add(time.Minute), attest.MachineID{byte(i % 2), byte(i >> 8), byte(i)}, i%3 == 0)
				}
				for i := range 2 * total {
					enter(fmt.Sprintf("[2001:db8:%x:%x::1]:1", i%networks, i%7)) // as far as they share
				}
				if challenged {
					for i := range open {
						answer(i)
					}
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					enter(fmt.Sprintf("[2001:db9:%x:1::1]:1", i&0xffff))
					if challenged {
						answer(i)
					}
				}
			})
		}
	}
}
