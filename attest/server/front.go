package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
)

const (
	// handshakesAtOnce bounds the TLS handshakes under way, and
	// handshakesPerAddress those of one address (IPv6: /64).
	handshakesAtOnce     = 1024
	handshakesPerAddress = 64
	// turnsOfQueue is how many times Limits.Queue a request waits to be let in:
	// it costs little where it waits, and one that is sent away costs a handshake
	// when it comes back.
	turnsOfQueue = 4
	// maxPending bounds what was sent ahead of an answer and is kept for after
	// it, bytes. No agent sends anything ahead.
	maxPending = 4096
	// acceptPause is how long nothing is accepted after an error that passes.
	acceptPause = 50 * time.Millisecond
)

// front is what the node API listens with. Nearly all of the time a machine's
// TPM works and its connection is silent, and after a power cut there may be
// ten thousand of those. net/http keeps two buffers and a stack for each, 25 kB,
// and its handshake leaves a stack of 32 kB behind. So here
//   - the handshake has a goroutine of its own, which ends with it
//   - a connection is given to net/http when a request begins to arrive and
//     there is room for one, and taken back (http.Hijacker) for the answer
//
// and what is in memory at once is bounded by the requests that are let in.
type front struct {
	net.Listener
	cfg     *tls.Config
	log     *slog.Logger
	refused func(limit string) // told of each request that found no room
	queue   time.Duration      // how long a request waits for room

	handshakes      slots
	handshakeShares *shares
	requests        slots
	requestShares   *shares

	ready   chan net.Conn
	ended   chan struct{} // closed when no connection is accepted any more
	err     error         // why; read after ended
	working sync.WaitGroup

	mu     sync.Mutex
	closed bool                   // guarded by mu
	silent map[*nodeConn]struct{} // connections without a request; guarded by mu
}

func newFront(ln net.Listener, cfg *tls.Config, log *slog.Logger, limits Limits, refused func(string)) *front {
	f := &front{
		Listener: ln, cfg: cfg, log: log, refused: refused, queue: turnsOfQueue * limits.Queue,
		handshakes: make(slots, handshakesAtOnce), handshakeShares: newShares(handshakesPerAddress),
		requests: make(slots, limits.Concurrent*requestsPerSlot), requestShares: newShares(requestsPerAddress),
		ready: make(chan net.Conn), ended: make(chan struct{}), silent: map[*nodeConn]struct{}{},
	}
	go func() {
		for {
			c, err := ln.Accept()
			if passing(err) {
				f.log.Warn("connection not accepted", "error", err)
				time.Sleep(acceptPause)
				continue
			}
			if err != nil {
				f.err = err
				close(f.ended)
				return
			}
			go f.secure(c)
		}
	}()
	return f
}

// passing reports whether an error of Accept leaves the listener as it was: no
// file descriptor was free, or the peer had gone.
func passing(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// Accept returns the next connection on which a request begins, as a *nodeConn.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.ready:
		return c, nil
	case <-f.ended:
		return nil, f.err
	}
}

// Close ends the listener and the connections that have no request.
func (f *front) Close() error {
	err := f.Listener.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for c := range f.silent {
		// Nobody is told anything over it, so it does not matter how it ends. The
		// end of TLS would be an alert, for which there may be no room on the way.
		_ = c.NetConn().Close()
	}
	return err
}

// nodeConn is a connection to a node, after its handshake.
type nodeConn struct {
	*tls.Conn
	open    connection
	state   tls.ConnectionState
	key     string                 // addressKey of the peer
	asked   bool                   // a request was answered over it
	pending []byte                 // of the next request, read already
	leave   atomic.Pointer[func()] // gives back the request's room; nil if it has none
}

// connection is what the service keeps with a node's connection: the challenge
// that was given over it last, until it is answered. Evidence is bound to the
// TLS connection that it comes over, and so is the challenge: it can be
// answered over the connection that it was given over and no other. It goes
// with the connection and with the process, so that nothing, not a crash and
// not a database that was restored, brings back one that was taken; and it
// costs the store nothing.
type connection struct {
	open atomic.Pointer[attest.Challenge]
	// waited is how long the present request waited to be let in. A challenge
	// does not run out for that.
	waited time.Duration
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

type connectionKey struct{}

// connectionOf returns the connection of a request. One that did not come
// through ServeNodes has none that lasts: its challenges are never answered.
func connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey{}).(*nodeConn); ok {
		return &c.open
	}
	return new(connection)
}

// withConnection is the http.Server.ConnContext of the node API.
func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// Read returns first what was read before net/http had the connection.
func (c *nodeConn) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.pending)
	if c.pending = c.pending[n:]; len(c.pending) == 0 {
		c.pending = nil
	}
	return n, nil
}

// Close ends the connection and gives back the room of its request.
func (c *nodeConn) Close() error {
	c.idle()
	return c.Conn.Close()
}

// idle gives back the room of a request.
func (c *nodeConn) idle() {
	if leave := c.leave.Swap(nil); leave != nil {
		(*leave)()
	}
}

// secure makes the handshake, within headerTimeout and with the wait for its
// turn, and lets the connection wait for a request.
func (f *front) secure(raw net.Conn) {
	growStack(0)
	ctx, cancel := context.WithTimeout(context.Background(), headerTimeout)
	defer cancel()
	c := tls.Server(raw, f.cfg)
	key := addressKey(raw.RemoteAddr().String())
	if err := f.handshake(ctx, c, key); err != nil {
		f.log.Debug("TLS handshake failed", "peer", addressText(raw.RemoteAddr().String()), "error", err)
		// The peer was told what there is to tell.
		_ = raw.Close()
		return
	}
	go f.wait(&nodeConn{Conn: c, state: c.ConnectionState(), key: key})
}

var errNoTurn = errors.New("too many handshakes at once")

func (f *front) handshake(ctx context.Context, c *tls.Conn, key string) error {
	leave, ok := f.handshakeShares.take(ctx, key, headerTimeout)
	if !ok {
		return errNoTurn
	}
	defer leave()
	if !f.handshakes.take(ctx, headerTimeout) {
		return errNoTurn
	}
	defer f.handshakes.release()
	return c.HandshakeContext(ctx)
}

// wait waits for a request to begin and for room for it, and gives the
// connection to net/http. One that says nothing for idleTimeout is closed, and
// after headerTimeout one that never asked for anything.
func (f *front) wait(c *nodeConn) {
	if len(c.pending) == 0 {
		if !f.enter(c) {
			_ = c.Close() // the service ends
			return
		}
		patience := idleTimeout
		if !c.asked {
			patience = headerTimeout
		}
		first := make([]byte, 1)
		// A connection whose deadline cannot be set fails in Read.
		// It is for writes too: a key update is answered in Read (RFC 8446 4.6.3).
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err := io.ReadFull(c.Conn, first)
		f.left(c)
		if err != nil {
			_ = c.Close() // nothing was asked
			return
		}
		c.pending = first
		_ = c.SetReadDeadline(time.Time{})
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), f.queue)
	defer cancel()
	// The address's share first: who waits for it holds nothing of others.
	leave, ok := f.requestShares.take(ctx, c.key, f.queue)
	if ok && !f.requests.take(ctx, f.queue) {
		leave()
		ok = false
	}
	if !ok {
		f.turnAway(c)
		return
	}
	// net/http sets no deadline for what is written before the handler has the
	// request: answers to key updates, and to what is no request.
	_ = c.SetWriteDeadline(time.Now().Add(headerTimeout + briefTimeout))
	both := func() { f.requests.release(); leave() }
	c.leave.Store(&both)
	c.open.waited = time.Since(began)
	select {
	case f.ready <- c:
	case <-f.ended:
		_ = c.Close() // the service ends
	}
}

// enter counts a connection among those without a request, unless the service
// ends.
func (f *front) enter(c *nodeConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.silent[c] = struct{}{}
	}
	return !f.closed
}

func (f *front) left(c *nodeConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.silent, c)
}

// growStack has the goroutine's stack grow at once to what a handshake or a
// request needs. It would get there by doubling, and each time what is on the
// stack is copied and its pointers mended: 3 % of the service's time.
//
//go:noinline
func growStack(i int) byte {
	var frame [14 << 10]byte
	return frame[i]
}

// turnAway answers a request that there is no room for, without reading it.
func (f *front) turnAway(c *nodeConn) {
	f.refused(limitBodies)
	w := &held{header: http.Header{"Connection": {"close"}}}
	writeFailure(w, "", busy(limitBodies))
	// The peer may have gone: then there is nobody to tell.
	_ = c.SetDeadline(time.Now().Add(briefTimeout))
	if w.send(c.Conn) == nil && c.CloseWrite() == nil {
		// A connection that is closed on bytes that were not read may take the
		// answer with it.
		_, _ = io.CopyN(io.Discard, c.Conn, api.MaxChallengeBody)
	}
	_ = c.Close()
}

// handler serves with h what Accept returned, and takes the connection back
// with the answer.
func (f *front) handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connectionKey{}).(*nodeConn)
		if !ok {
			h.ServeHTTP(w, r)
			return
		}
		growStack(0)
		f.working.Add(1)
		defer f.working.Done()
		r.TLS = &c.state
		body := &readToEnd{ReadCloser: r.Body, ended: r.Body == http.NoBody}
		r.Body = body
		answer := &held{ResponseWriter: w, method: r.Method, header: w.Header()}
		h.ServeHTTP(answer, r)
		if answer.header.Get("Connection") != "" || !body.ended || r.Close || !r.ProtoAtLeast(1, 1) {
			// It ends with this answer: net/http knows how.
			answer.header.Set("Connection", "close")
			w.WriteHeader(answer.status)
			// A peer that went away is no error of ours.
			_, _ = w.Write(answer.body.Bytes())
			return
		}
		_, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			f.log.Error("connection not taken back", "error", err)
			panic(http.ErrAbortHandler)
		}
		f.resume(c, buffered.Reader, answer)
	})
}

// resume sends an answer and lets the connection wait for the next request.
func (f *front) resume(c *nodeConn, ahead *bufio.Reader, answer *held) {
	_ = c.SetWriteDeadline(time.Now().Add(bodyTimeout))
	if err := answer.send(c.Conn); err != nil || ahead.Buffered() > maxPending {
		_ = c.Close() // a peer that went away, or is none of ours
		return
	}
	// What is buffered can be peeked at.
	next, _ := ahead.Peek(ahead.Buffered())
	c.pending = append(slices.Clone(next), c.pending...)
	c.asked = true
	c.idle()
	go f.wait(c)
}

// held is a ResponseWriter that keeps the answer.
type held struct {
	http.ResponseWriter        // for http.ResponseController
	method              string // of the request; that of HEAD has no body in its answer
	header              http.Header
	status              int
	body                bytes.Buffer
}

func (h *held) Header() http.Header { return h.header }

func (h *held) WriteHeader(status int) {
	if h.status == 0 {
		h.status = status
	}
}

func (h *held) Write(b []byte) (int, error) {
	h.WriteHeader(http.StatusOK)
	return h.body.Write(b)
}

func (h *held) Unwrap() http.ResponseWriter { return h.ResponseWriter }

// send writes the answer to a connection.
func (h *held) send(w io.Writer) error {
	h.header["Date"] = []string{time.Now().UTC().Format(http.TimeFormat)}
	resp := &http.Response{
		StatusCode: h.status, ProtoMajor: 1, ProtoMinor: 1, Header: h.header,
		ContentLength: int64(h.body.Len()), Body: io.NopCloser(&h.body),
		Request: &http.Request{Method: h.method},
	}
	b := bufio.NewWriterSize(w, h.body.Len()+1024) // one record
	if err := resp.Write(b); err != nil {
		return err
	}
	return b.Flush()
}

// readToEnd is a body that knows whether it was read to its end.
type readToEnd struct {
	io.ReadCloser
	ended bool
}

func (b *readToEnd) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}
