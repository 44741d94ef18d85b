package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
)

// Boot is what a test's evidence proves when it is accepted.
type Boot struct {
	Reset, Restart uint32
	Clock          uint64 // ms
	Firmware       uint64 // of the TPM
	State          *attest.Boot
}

// Appraiser stands for attest.Verify in tests that have no TPM: a nil Boot
// refuses.
type Appraiser func(*attest.Evidence, *attest.Challenge, *attest.Session, *attest.Known, *attest.Policy) (*attest.Result, *Boot)

// Appraise makes the server ask f instead of attest.Verify. The wrapped key of
// a release is then the transport secret itself.
func (s *Server) Appraise(f Appraiser) {
	s.appraise = func(ev *attest.Evidence, ch *attest.Challenge, ses *attest.Session, k *attest.Known, p *attest.Policy) (*attest.Result, *proof) {
		r, boot := f(ev, ch, ses, k, p)
		if boot == nil {
			return r, nil
		}
		name, err := attest.AKName(ch.AKPublic)
		if err != nil {
			panic(err)
		}
		return r, &proof{akName: name, resetCount: boot.Reset, restartCount: boot.Restart, clock: boot.Clock, tpmFirmware: boot.Firmware, boot: boot.State, wrap: func(secret attest.Secret) (attest.WrappedKey, error) {
			return attest.WrappedKey{Public: append([]byte(nil), secret...)}, nil
		}}
	}
}

// AppraiseReport makes the server ask f instead of attest.VerifyReport.
func (s *Server) AppraiseReport(f func(*attest.Evidence, *attest.Challenge, *attest.Session, *attest.Known, *attest.Boot) (*attest.Result, attest.Report)) {
	s.appraiseReport = f
}

// Heard returns since when a service that looked at those times could hear of
// machines.
func Heard(first time.Time, then ...time.Time) time.Time {
	l := listening{first, first}
	for _, now := range then {
		l.since(now)
	}
	return l.up
}

// Sweep looks once for stale machines, as a service that runs since up.
func (s *Server) Sweep(ctx context.Context, up time.Time) error { return s.sweep(ctx, up) }

// Wall is the time that Watch goes by.
func (s *Server) Wall() time.Time { return s.wall() }

// FenceNodes fences once what is due.
func (s *Server) FenceNodes(ctx context.Context) error { return s.fence(ctx) }

// AppraiseForReal makes the server ask attest.Verify again.
func (s *Server) AppraiseForReal() { s.appraise = appraise }

// Limiter is the rate limiter.
type Limiter struct{ *limiter }

// NewLimiter makes a limiter.
func NewLimiter(interval time.Duration, burst int) Limiter {
	return Limiter{newLimiter(interval, burst)}
}

// NewProvenLimiter makes a limiter of proven keys.
func NewProvenLimiter(interval time.Duration, burst int) Limiter {
	return Limiter{newProvenLimiter(interval, burst)}
}

// Allow takes a token.
func (l Limiter) Allow(key string, now time.Time) (bool, time.Duration) { return l.allow(key, now) }

// AddressKey is what requests are counted by.
func AddressKey(remote string) string { return addressKey(remote) }

// Shares is the number of addresses that send large bodies.
func (s *Server) Shares() int {
	s.largeShares.mu.Lock()
	defer s.largeShares.mu.Unlock()
	return len(s.largeShares.use)
}

// HurryWebhooks shortens the times of webhooks.
func (s *Server) HurryWebhooks(timeout, lease time.Duration) {
	for _, h := range s.hooks {
		h.times = hookTimes{poll: 5 * time.Millisecond, lease: lease, timeout: timeout, first: time.Millisecond, max: 20 * time.Millisecond}
	}
}

// WebhooksGoThrough puts another transport under the webhooks.
func (s *Server) WebhooksGoThrough(t http.RoundTripper) {
	for _, h := range s.hooks {
		h.client.Transport = t
	}
}

// LogEnd is the number of the last entry of the audit log.
func (s *Server) LogEnd(ctx context.Context) (int64, error) { return s.logEnd(ctx) }

// EventType is the type of event that an entry is.
func EventType(e *audit.Entry) string { return eventType(e) }

// NewConnection returns a function that takes ch from a connection.
func NewConnection(ch *attest.Challenge) (take func(id string) bool) {
	c := new(connection)
	c.put(ch, claim{})
	return func(id string) bool {
		_, ok := c.take(id)
		return ok
	}
}

// NewBoundedListener bounds the connections of a listener.
func NewBoundedListener(ln net.Listener, b Bounds) *boundedListener { return newBoundedListener(ln, b) }

// ReadProxyHeader reads a header of the PROXY protocol, of at most MaxProxyHeader
// bytes.
func ReadProxyHeader(r io.Reader) (from net.Addr, ahead []byte, err error) { return readProxyHeader(r) }

const MaxProxyHeader = maxProxyHeader

// Open is the number of open connections and of the addresses that have them.
func (l *boundedListener) Open() (total, addresses int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.crowd.open, len(l.by)
}

// RetainOnce prunes once what is older than the retention.
func (s *Server) RetainOnce(ctx context.Context) error { return s.retain(ctx) }

// Sign is a decision on the alarm of a finding.
type Sign struct {
	Alarm audit.AlarmName
	Why   string
}

// Signs are all decisions.
func Signs() map[attest.Code]Sign {
	all := map[attest.Code]Sign{}
	for c, s := range signs() {
		all[c] = Sign{s.alarm, s.why}
	}
	return all
}

// Busy, Asks, Idle and Answering say what a connection of a bounded listener is
// worth to its peer.
func Busy(c net.Conn) { guestOf(c).busy() }
func Asks(c net.Conn) { guestOf(c).asks() }
func Idle(c net.Conn) { guestOf(c).idle() }
func Answering(c net.Conn, until time.Time, machine attest.MachineID, home bool) {
	guestOf(c).answering(until, claim{machine, home, false})
}

// StrangerTime is for how long a challenge for no machine on record holds a
// connection.
const StrangerTime = strangerTime

// Claim is which machine a request for a challenge from an address counts as.
func (s *Server) Claim(ctx context.Context, address string, req *api.ChallengeRequest) (machine attest.MachineID, home bool) {
	c := s.claim(ctx, peer{address: address}, req)
	return c.machine, c.home
}

// Sound reports what is wrong with what the crowd counts.
func (l *boundedListener) Sound() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	open, backed := 0, 0
	for _, n := range l.crowd.networks {
		inside, of := 0, 0
		for _, a := range n.addresses {
			inside, of = inside+a.open, of+a.backed
			if (a.at >= 0) != (a.first() != nil) {
				return fmt.Errorf("address %s: at %d", a.key, a.at)
			}
		}
		if inside != n.open || of != n.backed || (n.at >= 0) != (n.first() != nil) {
			return fmt.Errorf("network %s: %d open, %d in its addresses, %d and %d of them backed, at %d", n.key, n.open, inside, n.backed, of, n.at)
		}
		open, backed = open+n.open, backed+n.backed
	}
	claims := 0
	for _, all := range l.crowd.claims {
		if len(all) == 0 || len(all) > claimsOfOne {
			return fmt.Errorf("a machine backs %d", len(all))
		}
		claims += len(all)
	}
	if open != l.crowd.open || backed != claims {
		return fmt.Errorf("%d open, %d in networks; %d backed, %d by machines", l.crowd.open, open, backed, claims)
	}
	return nil
}

// NetworkKey is what connections give way by.
func NetworkKey(remote string) string { return networkKey(remote) }

// At sets the clock of a bounded listener.
func (l *boundedListener) At(now func() time.Time) { l.crowd.now = now }

// CutHandshakes cuts handshakes, n times, which began so long ago in that order,
// after many that took as long as usual, and returns which of them were cut.
func CutHandshakes(usual time.Duration, n int, ago ...time.Duration) (cut []bool) {
	f := &front{refused: func(string) {}}
	for range 100 {
		f.shakes(nil, time.Now().Add(-usual))(true)
	}
	var peers []net.Conn
	for _, d := range ago {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		defer f.shakes(&nodeConn{Conn: tls.Server(ours, nil)}, time.Now().Add(-d))(false)
		peers = append(peers, ours)
	}
	for range n {
		f.cutHandshake()
	}
	for _, c := range peers {
		cut = append(cut, errors.Is(c.SetDeadline(time.Time{}), io.ErrClosedPipe))
	}
	return cut
}

// Look reports whether crypto/tls has read a part of a request already.
func Look(c *tls.Conn) (begun bool, err error) {
	n := &nodeConn{Conn: c}
	err = n.look()
	return len(n.pending) > 0, err
}
