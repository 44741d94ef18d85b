package server

import (
	"bufio"
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealift/sealift/attest"
)

const (
	// handshakesAtOnce bounds the TLS handshakes under way, as does a sixteenth of
	// the connections, and handshakesPerAddress those of one address (IPv6: /64).
	handshakesAtOnce     = 1024
	handshakesPerAddress = 64
	// turnsOfQueue is how many times Limits.Queue a request waits to be let in:
	// it costs little where it waits, and one that is sent away costs a handshake
	// when it comes back.
	turnsOfQueue = 4
	// maxPending bounds what was sent ahead of an answer and is kept for after
	// it, bytes. No agent sends anything ahead.
	maxPending = 4096
	// acceptPause is how long nothing is accepted after an error that passes, at
	// first; it doubles up to acceptPauseMax, so that the log has room for others.
	acceptPause    = 50 * time.Millisecond
	acceptPauseMax = time.Second
	// slowAfter is when a request of which a part is still missing may be cut, if
	// another waits for its room: it comes from somebody who holds on to it, or
	// over a line that the others need not wait for.
	slowAfter = briefTimeout
	// slowHandshake is when a handshake that is under way may be cut, if another
	// waits for its turn: it is nearly all the peer's time, and this covers a
	// segment that TCP sends twice.
	slowHandshake = 3 * time.Second
	// timesUsual is how many times as long as handshakes take of late one may take
	// beyond that. Where all are slow the service is, and who is cut for that comes
	// again and makes it worse.
	timesUsual = 4
	// slowestHandshake is when it may be cut in any case.
	slowestHandshake = 7 * time.Second
	// confirmationsOfOne is how many confirmations of one machine are let in at once: it
	// has one for each release, and that of the boot before may not have ended yet.
	confirmationsOfOne = 2
	// discardsAtOnce bounds the requests that are read to their end only to keep
	// the connection that they came over, without having been let in.
	discardsAtOnce = 64
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
	unlisten func() error // closes it, once
	cfg      *tls.Config
	log      *slog.Logger
	refused  func(limit string) // told of each request that found no room
	queue    time.Duration      // how long a request waits for room

	handshakes      slots
	handshakeShares *shares
	requests        slots
	requestShares   *shares
	confirmations   slots
	confirmShares   *shares // of machines
	discards        slots

	ready   chan *nodeConn
	ended   chan struct{} // closed when Accept returns no connection any more
	drained chan struct{} // closed when the service ends and no request is in

	mu       sync.Mutex
	err      error                  // why it ended; guarded by mu
	draining bool                   // no request is let in any more; guarded by mu
	closed   bool                   // guarded by mu
	in       map[*nodeConn]struct{} // with a request that was let in and has not left; guarded by mu
	conns    map[*nodeConn]struct{} // all that are open; guarded by mu
	shaking  list.List              // of shake, the one that began first in front; guarded by mu
	usual    time.Duration          // how long handshakes take that end well, the last count most; guarded by mu
}

// newFront accepts connections from ln. No request waits for room past the end
// of ctx.
func newFront(ctx context.Context, ln net.Listener, cfg *tls.Config, log *slog.Logger, limits Limits, refused func(string)) *front {
	f := &front{
		Listener: ln, unlisten: sync.OnceValue(ln.Close), cfg: cfg, log: log, refused: refused, queue: turnsOfQueue * limits.Queue,
		handshakes: make(slots, min(handshakesAtOnce, max(handshakesPerAddress, limits.Connections/16))), handshakeShares: newShares(handshakesPerAddress),
		requests: make(slots, limits.Concurrent*requestsPerSlot), requestShares: newShares(requestsPerAddress),
		confirmations: make(slots, limits.Concurrent), confirmShares: newShares(confirmationsOfOne),
		discards: make(slots, discardsAtOnce),
		ready:    make(chan *nodeConn), ended: make(chan struct{}), drained: make(chan struct{}),
		in: map[*nodeConn]struct{}{}, conns: map[*nodeConn]struct{}{},
	}
	go func() {
		pause := acceptPause
		for {
			c, err := ln.Accept()
			if passing(err) {
				f.log.Warn("connection not accepted", "error", err, "again", pause)
				time.Sleep(pause)
				pause = min(2*pause, acceptPauseMax)
				continue
			}
			pause = acceptPause
			if err != nil {
				f.failed(err)
				return
			}
			go f.secure(ctx, c)
		}
	}()
	return f
}

// failed ends the front because its listener did, unless that is how a drain
// begins: then what was let in is still to be served.
func (f *front) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.draining {
		return
	}
	f.closed, f.err = true, err
	close(f.ended)
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
		f.mu.Lock()
		defer f.mu.Unlock()
		return nil, f.err
	}
}

// Close ends the listener and all connections. What is to be answered yet is for
// drain.
func (f *front) Close() error {
	err := f.unlisten()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed, f.err = true, net.ErrClosed
		close(f.ended)
	}
	for c := range f.conns {
		// The end of TLS would be an alert, for which there may be no room on the
		// way.
		_ = c.NetConn().Close()
	}
	return err
}

// drain ends the service within the time. No connection is accepted, no request
// let in: one that begins is told to come back. Those that were let in have
// two thirds of the time to be answered as ever. Then one whose body is not
// there yet is cut, cancel ends what is not decided, and what is decided has the
// last third to be told. It returns how many requests were cut.
func (f *front) drain(limit time.Duration, cancel func()) (cut int) {
	f.mu.Lock()
	f.draining = true
	if len(f.in) == 0 {
		close(f.drained)
	}
	f.mu.Unlock()
	// Its error is of no interest: nothing is let in either way.
	_ = f.unlisten()
	undecided, last := time.NewTimer(limit-limit/3), time.NewTimer(limit)
	defer undecided.Stop()
	defer last.Stop()
	select {
	case <-f.drained:
		return 0
	case <-undecided.C:
	}
	cancel()
	cut = f.cut(stageRead)
	select {
	case <-f.drained:
		return cut
	case <-last.C:
	}
	return cut + f.cut(stageOver)
}

// cut closes the connections with a request that was let in and is not as far
// as stage, and returns how many there were.
func (f *front) cut(stage int32) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.in {
		// What is cut is not decided afterwards, see readToEnd.
		if s := c.stage.Load(); s != stageNone && s < stage && c.stage.CompareAndSwap(s, stageOver) {
			n++
			_ = c.NetConn().Close()
		}
	}
	return n
}

// cutSlow makes room for a request, or a confirmation, that waits: of those of which a
// part is still missing after slowAfter it cuts the one that was let in first, if there
// is one.
func (f *front) cutSlow(confirms bool) {
	f.mu.Lock()
	var slow *nodeConn
	for c := range f.in {
		if c.confirms == confirms && c.stage.Load() == stageLetIn && time.Since(c.since) >= slowAfter && (slow == nil || c.since.Before(slow.since)) {
			slow = c
		}
	}
	// Before another request of its connection can be let in.
	cut := slow != nil && slow.stage.CompareAndSwap(stageLetIn, stageOver)
	f.mu.Unlock()
	if cut {
		f.refused(limitSlow)
		_ = slow.NetConn().Close()
	}
}

// How far a connection's request is.
const (
	stageNone  int32 = iota // there is none, or it was not let in
	stageLetIn              // its header or body is being read
	stageRead               // it is worked on, and then answered
	stageOver               // it is cut, or was answered by the last answer of the connection
)

// nodeConn is a connection to a node, after its handshake.
type nodeConn struct {
	*tls.Conn
	guest   *guest // nil if its listener has no bounds
	open    connection
	state   tls.ConnectionState
	key     string                 // addressKey of the peer
	asked   bool                   // a request was answered over it
	pending []byte                 // of the next request, read already
	leave   atomic.Pointer[func()] // gives back the request's room; nil if it has none
	front   *front
	stage   atomic.Int32
	since   time.Time // when its request was let in; guarded by front.mu
	// confirms: its request has room of confirmations. Guarded by front.mu.
	confirms bool
	again    time.Time // before it no refused request may come again; zero if none was refused
}

// connection is what the service keeps with a node's connection: the challenge
// that was given over it last, until it is answered. Evidence is bound to the
// TLS connection that it comes over, and so is the challenge: it can be
// answered over the connection that it was given over and no other. It goes
// with the connection and with the process, so that nothing, not a crash and
// not a database that was restored, brings back one that was taken; and it
// costs the store nothing.
type connection struct {
	open  atomic.Pointer[attest.Challenge]
	guest *guest // of the nodeConn
	// waited is how long requests waited to be let in, or to come again, since
	// the challenge was put. It does not run out for that.
	waited time.Duration
	// who is the machine that the challenge is for, by what its sender says, and
	// released the one that proved it since and was released to, zero if none was.
	who      claim
	released attest.MachineID

	mu     sync.Mutex
	proven []provenKey // guarded by mu
}

// put opens a challenge for a machine in place of the one that was open.
func (c *connection) put(ch *attest.Challenge, who claim) {
	c.open.Store(ch)
	c.waited, c.who, c.released = 0, who, attest.MachineID{}
}

// giveBack opens a challenge again that was taken and not judged by.
func (c *connection) giveBack(ch *attest.Challenge) { c.open.CompareAndSwap(nil, ch) }

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
	err := c.Conn.Close()
	c.front.left(c)
	c.idle()
	return err
}

// idle gives back the room of a request.
func (c *nodeConn) idle() {
	if leave := c.leave.Swap(nil); leave != nil {
		(*leave)()
	}
}

// settle says what a connection without a request is worth, see crowd.
func (c *nodeConn) settle() {
	switch ch := c.open.open.Load(); {
	case ch != nil:
		c.guest.answering(ch.Expires.Add(c.open.waited), c.open.who)
	case !c.open.released.IsZero(): // until it confirms
		c.guest.answering(time.Now().Add(idleTimeout), c.open.who)
	default:
		c.guest.idle()
	}
}

// await has a goroutine of its own wait for the next request.
func (f *front) await(ctx context.Context, c *nodeConn) {
	if err := c.look(); err != nil {
		_ = c.Close() // a peer that went away
		return
	}
	go f.wait(ctx, c)
}

// wait waits for a request to begin and for room for it, and gives the
// connection to net/http. One that says nothing for idleTimeout is closed, and
// after headerTimeout one that never asked for anything.
func (f *front) wait(ctx context.Context, c *nodeConn) {
	c.settle()
	if len(c.pending) == 0 {
		patience := idleTimeout
		if !c.asked {
			patience = headerTimeout
		}
		if err := c.begins(time.Now().Add(patience)); err != nil {
			_ = c.Close() // nothing was asked, or the service ends
			return
		}
	}
	if c.open.open.Load() != nil {
		c.guest.asks() // this is the evidence
	}
	began := time.Now()
	room, cancel := context.WithTimeout(ctx, f.queue)
	defer cancel()
	leave, ok := f.room(room, c)
	// A challenge does not run out while the service is at fault, for as long as
	// a request may wait twice.
	c.open.waited = min(c.open.waited+time.Since(began), max(2*f.queue, time.Since(began)))
	if ok && !f.letIn(c, leave) {
		leave()
		ok = false
	}
	if !ok {
		f.turnAway(ctx, c)
		return
	}
	// net/http sets no deadline for what is written before the handler has the
	// request: answers to key updates, and to what is no request.
	_ = c.SetWriteDeadline(time.Now().Add(headerTimeout + briefTimeout))
	select {
	case f.ready <- c:
	case <-f.ended:
		_ = c.Close() // the service ends
	}
}

// enter counts a connection, unless the service has ended.
func (f *front) enter(c *nodeConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.conns[c] = struct{}{}
	}
	return !f.closed
}

func (f *front) left(c *nodeConn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// letIn counts a request that has room, which leave gives back, unless the
// service ends.
func (f *front) letIn(c *nodeConn, leave func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draining || f.closed {
		return false
	}
	f.in[c] = struct{}{}
	c.since = time.Now()
	c.guest.busy()
	c.confirms, c.open.released = !c.open.released.IsZero(), attest.MachineID{} // one request
	out := func() {
		c.stage.Store(stageNone)
		leave()
		f.mu.Lock()
		defer f.mu.Unlock()
		if delete(f.in, c); len(f.in) == 0 && f.draining {
			close(f.drained)
		}
	}
	c.leave.Store(&out)
	c.stage.Store(stageLetIn)
	return true
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

// ends is the answer to a request that begins while the service ends.
func ends() *failure {
	return &failure{status: http.StatusServiceUnavailable, limit: limitDraining, code: "unavailable", text: "the service ends", hint: "ask again: another replica, or this one once it is back", wait: 2 * time.Second}
}

// turnAway answers a request that there is no room for. The connection stays,
// with the challenge that was given over it, if the rest of the request is short
// and comes soon.
func (f *front) turnAway(ctx context.Context, c *nodeConn) {
	why, last := busy(limitBodies), ctx.Err() != nil
	if last {
		why = ends()
	}
	f.refused(why.limit)
	w := &held{header: http.Header{}}
	writeFailure(w, "", why)
	_ = c.SetDeadline(time.Now().Add(briefTimeout))
	if last || !c.mayAskAgain(w) || !f.discard(c, w) {
		w.header.Set("Connection", "close")
		f.farewell(c, w)
		return
	}
	if err := w.send(c.Conn); err != nil {
		_ = c.Close() // a peer that went away
		return
	}
	c.asked = true
	c.open.waited += why.wait
	f.await(ctx, c)
}

// mayAskAgain notes that a request is refused with an answer, and reports
// whether the connection may stay: not if the peer did not wait for as long as
// it was told the last time.
func (c *nodeConn) mayAskAgain(w *held) bool {
	now := time.Now()
	early := now.Before(c.again)
	c.again = time.Time{}
	if seconds, err := strconv.Atoi(w.header.Get("Retry-After")); err == nil {
		c.again = now.Add(time.Duration(seconds) * time.Second)
	}
	return !early
}

// discard reads the request that begins, to its end, for an answer to it, and
// reports whether the connection can be used for the next one. It keeps nothing
// of it but what was sent ahead.
func (f *front) discard(c *nodeConn, answer *held) bool {
	if !f.discards.try() {
		return false
	}
	defer f.discards.release()
	limit := &io.LimitedReader{R: c, N: maxHeader}
	r := bufio.NewReader(limit)
	req, err := http.ReadRequest(r)
	if err != nil || req.Close || !req.ProtoAtLeast(1, 1) || !discardable(req) {
		return false
	}
	answer.method = req.Method
	limit.N += commonBody
	if _, err := io.Copy(io.Discard, req.Body); err != nil || r.Buffered() > maxPending {
		return false
	}
	// What is buffered can be peeked at.
	next, _ := r.Peek(r.Buffered())
	c.pending = append(slices.Clone(next), c.pending...)
	return true
}

// discardable reports whether a refused request's body is short enough to be
// read only to keep its connection. One that waits to be asked for is not.
func discardable(r *http.Request) bool {
	return r.ContentLength <= commonBody && r.Header.Get("Expect") == ""
}

// farewell sends the last answer over a connection and ends it when the peer
// does.
func (f *front) farewell(c *nodeConn, answer *held) {
	// The peer may have gone: then there is nobody to tell.
	if answer.send(c.Conn) == nil && c.CloseWrite() == nil {
		c.stage.CompareAndSwap(stageRead, stageOver)
		// A connection that is closed on bytes that were not read may take the
		// answer with it.
		_ = c.SetReadDeadline(time.Now().Add(briefTimeout))
		_, _ = io.CopyN(io.Discard, c.Conn, 2*commonBody)
	}
	_ = c.Close()
}

// handler serves with h what Accept returned, and takes the connection back
// with the answer.
func (f *front) handler(ctx context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connectionKey{}).(*nodeConn)
		if !ok {
			h.ServeHTTP(w, r)
			return
		}
		growStack(0)
		r.TLS = &c.state
		body := &readToEnd{ReadCloser: r.Body, conn: c}
		if r.Body == http.NoBody {
			body.end()
		}
		r.Body = body
		answer := &held{ResponseWriter: w, method: r.Method, header: w.Header()}
		h.ServeHTTP(answer, r)
		keep := answer.header.Get("Connection") == ""
		if answer.status == http.StatusTooManyRequests || answer.status == http.StatusServiceUnavailable {
			keep = c.mayAskAgain(answer) && keep
			if keep && !body.ended && discardable(r) {
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(briefTimeout))
				// How it ends is in body.
				_, _ = io.CopyN(io.Discard, body, commonBody+1)
			}
		}
		// net/http looks at it to know how to end the connection.
		r.Body = body.ReadCloser
		if !keep || !body.ended || r.Close || !r.ProtoAtLeast(1, 1) {
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
		_ = c.SetWriteDeadline(time.Now().Add(bodyTimeout))
		if ctx.Err() != nil {
			answer.header.Set("Connection", "close")
			f.farewell(c, answer)
			return
		}
		f.resume(ctx, c, buffered.Reader, answer)
	})
}

// resume sends an answer and lets the connection wait for the next request.
func (f *front) resume(ctx context.Context, c *nodeConn, ahead *bufio.Reader, answer *held) {
	if err := answer.send(c.Conn); err != nil || ahead.Buffered() > maxPending {
		_ = c.Close() // a peer that went away, or is none of ours
		return
	}
	// What is buffered can be peeked at.
	next, _ := ahead.Peek(ahead.Buffered())
	c.pending = append(slices.Clone(next), c.pending...)
	c.asked = true
	c.idle()
	f.await(ctx, c)
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
	conn  *nodeConn
	ended bool
}

func (b *readToEnd) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF && !b.end() {
		// Nobody would hear what is decided about it.
		return n, errEnds
	}
	return n, err
}

// end notes that there is no more, and reports whether the request still counts.
func (b *readToEnd) end() bool {
	b.ended = b.ended || b.conn.stage.CompareAndSwap(stageLetIn, stageRead)
	return b.ended
}
