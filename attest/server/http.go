package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/strict"
)

// Time limits of the transport. A body is at most 4 MiB and nodes may hang on
// a slow line.
const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	briefTimeout  = 5 * time.Second  // for a challenge's body, which anybody may send and is small
	workTimeout   = 60 * time.Second // the body, the wait for a slot, and the work
	idleTimeout   = 90 * time.Second // outlives a challenge, so that its connection is there for the evidence
	maxHeader     = 16 << 10

	// requestsPerSlot is how many node requests may be on their way for each
	// that is worked on.
	requestsPerSlot = 2
	// requestsPerAddress is how many of them may be from one address (IPv6: /64).
	requestsPerAddress = 8
	// A body longer than commonBody is one of largeBodies at once, and of
	// largePerAddress from one address: evidence with an event log of 32 KiB has
	// 50 kB, and what is let in must fit into memory.
	commonBody      = 256 << 10
	largeBodies     = 16
	largePerAddress = 4
	// requestsPerOperator is how many requests of one operator are worked on
	// at once.
	requestsPerOperator = 16
)

// ServeNodes serves the node API on ln until ctx ends, and then lets open
// requests finish. It closes ln.
func (s *Server) ServeNodes(ctx context.Context, ln net.Listener, cert tls.Certificate) error {
	cfg := &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"},
		// No agent resumes a session.
		SessionTicketsDisabled: true,
	}
	f := newFront(ctx, s.bounded(apiNodes, ln), cfg, s.c.Log, s.c.Limits, func(limit string) { s.c.Meter.Limited(apiNodes, limit) })
	srv := s.httpServer(f.handler(ctx, s.NodeHandler()))
	// ctx has ended while what was let in is finished.
	requests, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	srv.BaseContext = func(net.Listener) context.Context { return requests }
	srv.ConnContext = withConnection
	// net/http would answer OPTIONS * by itself and keep the connection, with
	// the room of the request.
	srv.DisableGeneralOptionsHandler = true
	return s.serve(ctx, apiNodes, srv, f, func(limit time.Duration) (int, error) {
		return f.drain(limit, func() { cancel(errEnds) }), srv.Close()
	})
}

// ServeOperators serves the operator API on ln until ctx ends, and then lets
// open requests finish. Clients must hold a certificate from operators, or a
// token if the service knows operators by tokens. It closes ln.
func (s *Server) ServeOperators(ctx context.Context, ln net.Listener, cert tls.Certificate, operators *x509.CertPool) error {
	if operators == nil {
		ln.Close()
		return errors.New("operator API: no certificate authority for operators")
	}
	auth := tls.RequireAndVerifyClientCert
	if s.c.Bearer != nil {
		// Those without a certificate get as far as authenticate.
		auth = tls.VerifyClientCertIfGiven
	}
	secured := tls.NewListener(s.bounded(apiOperators, ln), &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"},
		ClientAuth:   auth,
		ClientCAs:    operators,
	})
	srv := s.httpServer(s.OperatorHandler())
	srv.ConnState = Occupied
	requests, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	srv.BaseContext = func(net.Listener) context.Context { return requests }
	return s.serve(ctx, apiOperators, srv, secured, func(limit time.Duration) (cut int, err error) {
		// ctx has ended; the drain has its own time. As on the node API, what is not
		// decided after two thirds of it is given up, and the rest is for saying so.
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		defer time.AfterFunc(limit-limit/3, func() { giveUp(errEnds) }).Stop()
		if err = srv.Shutdown(drain); errors.Is(err, context.DeadlineExceeded) {
			cut, err = 1, srv.Close() // at least
		}
		return cut, err
	})
}

func (s *Server) bounded(name string, ln net.Listener) net.Listener {
	b := Bounds{
		Connections: s.c.Limits.Connections, AddressConnections: s.c.Limits.AddressConnections, Proxies: s.c.NodeProxies,
		Refused: func(limit string) { s.c.Meter.Limited(name, limit) }, Log: s.c.Log.With("api", name),
	}
	if name == apiOperators {
		b.Proxies = s.c.OperatorProxies
	}
	return newBoundedListener(ln, b)
}

func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h,
		// It bounds the TLS handshake of the operator API as well, see net/http.
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug),
	}
}

// serve serves until ctx ends. drain lets what is open finish within a time and
// returns how many requests had to be cut.
func (s *Server) serve(ctx context.Context, name string, srv *http.Server, ln net.Listener, drain func(time.Duration) (int, error)) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", ln.Addr(), errors.Join(err, srv.Close()))
	case <-ctx.Done():
	}
	cut, err := drain(s.c.Limits.Drain)
	if cut > 0 {
		// A peer that does not come to its end is no error of ours.
		s.c.Log.Warn("requests cut at the end of service", "api", name, "after", s.c.Limits.Drain, "requests", cut)
	}
	<-done
	if err != nil {
		return fmt.Errorf("end of service on %s: %w", ln.Addr(), err)
	}
	return nil
}

// errEnds is why the context of a request ends with the service.
var errEnds = errors.New("the service ends")

// failure is an error as a peer may see it, with the cause that it may not.
type failure struct {
	status int
	code   string
	text   string
	hint   string
	wait   time.Duration // Retry-After
	limit  string        // that refused, for the Meter
	cause  error         // for the log

	document string // about who is who that cannot be read, see damagedDocument
}

// wrongListener answers who asks for one API where the other one is.
func wrongListener(name string) *failure {
	return &failure{status: http.StatusNotFound, code: "wrong-listener", text: "the " + name + " API is not served here", hint: "the service has another address for it"}
}

func badRequest(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: "bad-request", text: fmt.Sprintf(format, args...)}
}

func internal(cause error) *failure {
	return &failure{status: http.StatusInternalServerError, code: "internal", text: "the service could not do this", hint: "its log says why", cause: cause}
}

func unavailable(what string, cause error) *failure {
	return &failure{status: http.StatusServiceUnavailable, code: "unavailable", text: what + " is not available", hint: "try again", wait: 2 * time.Second, cause: cause}
}

func notFound(what string) *failure {
	return &failure{status: http.StatusNotFound, code: "not-found", text: what}
}

func conflict(what, hint string) *failure {
	return &failure{status: http.StatusConflict, code: "conflict", text: what, hint: hint}
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":"internal","message":"the answer could not be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	// A peer that went away is no error of ours.
	_, _ = w.Write(append(b, '\n'))
}

// fail answers with f and logs its cause.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f *failure) {
	id := w.Header().Get(api.HeaderRequestID)
	if errors.Is(f.cause, context.Canceled) && context.Cause(r.Context()) == errEnds {
		f = ends() // nothing else is wrong, and nothing was decided
	}
	if f.cause != nil {
		level := slog.LevelError
		if errors.Is(f.cause, context.Canceled) && r.Context().Err() != nil {
			level = slog.LevelDebug // the peer went away
		}
		s.c.Log.Log(r.Context(), level, "request failed", "request", id, "method", r.Method, "path", clip(r.URL.Path), "peer", addressText(r.RemoteAddr), "code", f.code, "error", f.cause)
	}
	if f.limit != "" {
		if a, ok := w.(*answer); ok {
			s.c.Meter.Limited(a.api, f.limit)
		}
	}
	writeFailure(w, id, f)
}

// writeFailure answers with f to the request of that id.
func writeFailure(w http.ResponseWriter, id string, f *failure) {
	if f.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="sealift"`) // RFC 9110 11.6.1
	}
	if f.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((f.wait+time.Second-1)/time.Second)))
	}
	reply(w, f.status, api.Error{Code: f.code, Message: f.text, Hint: f.hint, Request: id})
}

// slots is a counting semaphore.
type slots chan struct{}

// take waits at most so long for a slot.
func (c slots) take(ctx context.Context, wait time.Duration) bool {
	select {
	case c <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case c <- struct{}{}:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// try takes a slot if there is one.
func (c slots) try() bool {
	select {
	case c <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c slots) release() { <-c }

// busy is the answer when no slot came free.
func busy(limit string) *failure {
	return &failure{status: http.StatusServiceUnavailable, limit: limit, code: api.CodeBusy, text: "too many requests at once", hint: "try again", wait: 2 * time.Second}
}

// readBody reads a JSON body of at most limit bytes into v, strictly, and gives
// up after so long.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, timeout time.Duration, v any) *failure {
	rc := http.NewResponseController(w)
	// Not every ResponseWriter has deadlines; those of tests do not.
	_ = rc.SetReadDeadline(time.Now().Add(timeout))
	inner := w // which MaxBytesReader tells, so that it closes the connection well
	for {
		outer, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		inner = outer.Unwrap()
	}
	body := http.MaxBytesReader(inner, r.Body, limit)
	decoded := strict.Decode(body, v)
	// What is wrong in the JSON does not matter before the whole body is there.
	if _, err := io.Copy(io.Discard, body); err != nil {
		// What is left of the body is not waited for: net/http would read on,
		// but the deadline stays.
		w.Header().Set("Connection", "close")
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return &failure{status: http.StatusRequestEntityTooLarge, code: "too-large", text: fmt.Sprintf("the body is larger than %d bytes", limit)}
		}
		return badRequest("the body could not be read")
	}
	// The work takes as long as it takes: net/http ends a request's context
	// when a read deadline passes under it.
	_ = rc.SetReadDeadline(time.Time{})
	if decoded != nil {
		return badRequest("the body is not the JSON of this request: %s", clip(decoded.Error()))
	}
	return nil
}

// answer is a ResponseWriter that knows what was answered.
type answer struct {
	http.ResponseWriter
	api    string
	status int // 0 until there is one
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// guard is around every request of an API:
//   - it gives the request an id, by which a person can name it
//   - it bounds the time for reading the body and for writing the answer
//   - it answers what mux does not serve; stray may say what is to be said of it
//   - it answers for a panic, which is a bug, so that it costs one request and
//     not the service
//   - it counts
func (s *Server) guard(name string, mux *http.ServeMux, stray func(*http.Request) *failure) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w := &answer{ResponseWriter: rw, api: name}
		var id [8]byte
		// It is no secret, it only has to be another each time.
		_, _ = rand.Read(id[:])
		w.Header().Set(api.HeaderRequestID, hex.EncodeToString(id[:]))
		// Not every ResponseWriter has deadlines; those of tests do not.
		rc := http.NewResponseController(rw)
		_ = rc.SetWriteDeadline(began.Add(workTimeout + bodyTimeout))
		if r.ContentLength != 0 {
			// Also of a body that no handler reads: net/http reads on for a
			// while to keep the connection.
			_ = rc.SetReadDeadline(began.Add(bodyTimeout))
		}
		defer func() {
			v := recover()
			if v != nil && v != http.ErrAbortHandler {
				s.c.Log.Error("handler panicked", "request", w.Header().Get(api.HeaderRequestID), "path", clip(r.URL.Path), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				reply(w, http.StatusInternalServerError, api.Error{
					Code: "internal", Message: "the service could not do this", Hint: "its log says why", Request: w.Header().Get(api.HeaderRequestID),
				})
			}
			route, took := r.Pattern, time.Since(began)
			if route == "" {
				route = "none"
			}
			s.c.Meter.Request(name, route, w.status, took)
			s.c.Log.Debug("request", "request", w.Header().Get(api.HeaderRequestID), "api", name, "method", r.Method, "path", clip(r.URL.Path),
				"peer", addressText(r.RemoteAddr), "status", w.status, "took", took)
			if v == http.ErrAbortHandler {
				panic(v) // net/http's own signal for cutting a connection
			}
		}()
		status := lookup(mux, r)
		if status == 0 {
			mux.ServeHTTP(w, r)
			return
		}
		_ = rc.SetReadDeadline(began.Add(briefTimeout)) // nobody will read the body
		if f := stray(r); f != nil {
			s.fail(w, r, f)
		} else if status == http.StatusMethodNotAllowed {
			s.fail(w, r, &failure{status: status, code: "method-not-allowed", text: "there is no such method here"})
		} else {
			s.fail(w, r, notFound("there is nothing here"))
		}
	})
}

// lookup returns 0 if mux serves a request, or else the status that says why
// it does not.
func lookup(mux *http.ServeMux, r *http.Request) int {
	h, pattern := mux.Handler(r)
	if pattern != "" {
		return 0
	}
	a := &answer{ResponseWriter: nowhere{}}
	h.ServeHTTP(a, r)
	return a.status
}

// serves reports whether mux has something at a request's path.
func serves(mux *http.ServeMux, r *http.Request) bool { return lookup(mux, r) != http.StatusNotFound }

// nowhere is a ResponseWriter that keeps nothing.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) WriteHeader(int)             {}
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// addressKey is what requests are counted by: the peer's IPv4 address or IPv6
// /64, since whoever has one IPv6 address has the whole /64. Behind a stateless
// translator (SIIT-DC, RFC 7755) all of IPv4 would be one: of addresses in its
// well-known prefix (RFC 6052 2.1) it is the IPv4 address.
func addressKey(remote string) string { return groupOf(remote, 32, 64) }

// networkKey is what connections give way by: the peer's IPv4 /24 or IPv6 /48,
// the longest prefixes that are routed in the internet and the most that one
// site has by itself.
func networkKey(remote string) string { return groupOf(remote, 24, 48) }

// sameNetwork reports whether two addresses are of one network.
func sameNetwork(a, b string) bool {
	network := func(address string) string { return networkKey(net.JoinHostPort(address, "0")) }
	return network(a) == network(b) && network(a) != "unknown"
}

// groupOf is the peer's network with so many bits, see addressKey.
func groupOf(remote string, bits4, bits6 int) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "unknown"
	}
	a := ap.Addr().Unmap()
	if b := a.As16(); a.Is6() && bytes.HasPrefix(b[:], []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}) {
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	bits := bits4
	if a.Is6() {
		bits = bits6
	}
	if p, err := a.Prefix(bits); err == nil && bits < a.BitLen() {
		return p.String()
	}
	return a.String()
}

// addressText is the peer's address without the port.
func addressText(remote string) string {
	if ap, err := netip.ParseAddrPort(remote); err == nil {
		return ap.Addr().Unmap().String()
	}
	return remote
}
