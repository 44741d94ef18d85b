package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

	// bodiesPerSlot is how many bodies may be on their way for each request
	// that is worked on.
	bodiesPerSlot = 8
	// bodiesPerAddress is how many of them may be from one address.
	bodiesPerAddress = 16
)

// ServeNodes serves the node API on ln until ctx ends, and then lets open
// requests finish. It closes ln.
func (s *Server) ServeNodes(ctx context.Context, ln net.Listener, cert tls.Certificate) error {
	return s.serve(ctx, ln, s.NodeHandler(), &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"},
		// No agent resumes a session.
		SessionTicketsDisabled: true,
	})
}

// ServeOperators serves the operator API on ln until ctx ends, and then lets
// open requests finish. Clients must hold a certificate from operators. It
// closes ln.
func (s *Server) ServeOperators(ctx context.Context, ln net.Listener, cert tls.Certificate, operators *x509.CertPool) error {
	if operators == nil {
		ln.Close()
		return errors.New("operator API: no certificate authority for operators")
	}
	return s.serve(ctx, ln, s.OperatorHandler(), &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    operators,
	})
}

func (s *Server) serve(ctx context.Context, ln net.Listener, h http.Handler, cfg *tls.Config) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug),
		ConnContext:       withConnection,
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(tls.NewListener(ln, cfg)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	// ctx has ended; the drain has its own time.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.Limits.Drain)
	defer cancel()
	err := srv.Shutdown(drain)
	if err != nil {
		err = errors.Join(fmt.Errorf("drain %s: %w", ln.Addr(), err), srv.Close())
	}
	<-done
	return err
}

// failure is an error as a peer may see it, with the cause that it may not.
type failure struct {
	status int
	code   string
	text   string
	hint   string
	wait   time.Duration // Retry-After
	cause  error         // for the log
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
	if f.cause != nil {
		s.c.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "peer", r.RemoteAddr, "code", f.code, "error", f.cause)
	}
	if f.wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((f.wait+time.Second-1)/time.Second)))
	}
	reply(w, f.status, api.Error{Code: f.code, Message: f.text, Hint: f.hint})
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

func (c slots) release() { <-c }

// busy is the answer when no slot came free.
func busy() *failure {
	return &failure{status: http.StatusServiceUnavailable, code: "busy", text: "too many requests at once", hint: "try again", wait: 2 * time.Second}
}

// readBody reads a JSON body of at most limit bytes into v, strictly, and gives
// up after so long.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, timeout time.Duration, v any) *failure {
	rc := http.NewResponseController(w)
	// Not every ResponseWriter has deadlines; those of tests do not.
	_ = rc.SetReadDeadline(time.Now().Add(timeout))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return &failure{status: http.StatusRequestEntityTooLarge, code: "too-large", text: fmt.Sprintf("the body is larger than %d bytes", limit)}
		}
		return badRequest("the body could not be read")
	}
	if err := api.DecodeStrict(b, v); err != nil {
		return badRequest("the body is not the JSON of this request: %v", err)
	}
	return nil
}

// guard is around every handler: it answers for a panic, which is a bug, so
// that it costs one request and not the service.
func (s *Server) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v) // net/http's own signal for cutting a connection
			default:
				s.c.Log.Error("handler panicked", "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
				reply(w, http.StatusInternalServerError, api.Error{Code: "internal", Message: "the service could not do this", Hint: "its log says why"})
			}
		}()
		h.ServeHTTP(w, r)
	})
}

// addressKey is what requests are counted by: the peer's IPv4 address or IPv6
// /64, since whoever has one IPv6 address has the whole /64.
func addressKey(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "unknown"
	}
	a := ap.Addr().Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
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
