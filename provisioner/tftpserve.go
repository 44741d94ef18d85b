package provisioner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
)

// Bounds of the TFTP server.
const (
	tftpMaxSessions = 512 // transfers at once; beyond it requests are dropped, and clients repeat
	tftpMaxPerIP    = 4
	tftpMaxLife     = 30 * time.Minute
	tftpPatience    = 30 * time.Second       // without progress
	tftpMinRTO      = 100 * time.Millisecond // an emulated client may be scheduled out for a while
	tftpMaxRTO      = 4 * time.Second
)

// tftpServer sends files from memory, read-only. The transfer is our own code
// because RFC 7440 windows are what makes TFTP usable: edk2 asks for four
// blocks at a time, and without them each block costs a round trip.
type tftpServer struct {
	conn  *net.UDPConn // requests; bound to the server's address, so answers come from there
	addr  netip.Addr
	files map[string][]byte
	mtu   int
	log   *slog.Logger
	quiet *throttle

	mu       sync.Mutex
	sessions map[netip.AddrPort]bool
	perIP    map[netip.Addr]int
}

// run serves until ctx ends, closes the socket, and waits for the transfers.
func (s *tftpServer) run(ctx context.Context) error {
	s.sessions = make(map[netip.AddrPort]bool)
	s.perIP = make(map[netip.Addr]int)
	var transfers sync.WaitGroup
	defer transfers.Wait()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	buf := make([]byte, tftpMaxRequest+1)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("receive tftp: %w", err)
		}
		if err != nil {
			s.quiet.log(time.Now(), s.log, slog.LevelError, "receive tftp", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		req, err := parseTFTPRequest(buf[:n])
		var refusal *tftpError
		data, ok := s.files[tftpName(req.file)]
		if err == nil && !ok {
			err = &tftpError{tftpNotFound, "no such file"}
		}
		if errors.As(err, &refusal) {
			s.log.Debug("tftp request refused", "client", from, "file", req.file, "error", refusal.text)
			// Lost or not, the client gives up or asks again.
			s.conn.WriteToUDPAddrPort(tftpErrorPacket(refusal), from)
			continue
		}
		if err != nil {
			s.log.Debug("tftp packet ignored", "client", from, "error", err)
			continue
		}
		// A repeated request whose transfer is under way is covered by that
		// transfer's own repetitions.
		if !s.admit(from) {
			continue
		}
		req.fit(s.mtu)
		transfers.Go(func() {
			defer s.leave(from)
			s.transfer(ctx, from, req, data)
		})
	}
}

func (s *tftpServer) admit(from netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[from] || len(s.sessions) >= tftpMaxSessions || s.perIP[from.Addr()] >= tftpMaxPerIP {
		return false
	}
	s.sessions[from] = true
	s.perIP[from.Addr()]++
	return true
}

func (s *tftpServer) leave(from netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, from)
	if s.perIP[from.Addr()]--; s.perIP[from.Addr()] == 0 {
		delete(s.perIP, from.Addr())
	}
}

// transfer sends one file and logs how that went.
func (s *tftpServer) transfer(ctx context.Context, to netip.AddrPort, req tftpRequest, data []byte) {
	log := s.log.With("client", to, "file", req.file, "blksize", req.block, "windowsize", req.window)
	// Connected: the kernel drops what is from another port, which RFC 1350
	// would have us answer with an error, and reports a client that is gone.
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.addr, 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		log.Error("tftp transfer", "error", err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	start := time.Now()
	t := &tftpTransfer{conn: conn, packets: ipv4.NewPacketConn(conn), req: req, data: data, start: start}
	err = t.run()
	var peer *tftpError
	switch {
	case err == nil:
		log.Info("tftp transfer done", "bytes", len(data), "duration", time.Since(start).Round(time.Millisecond), "repeated", t.repeated)
	case t.acked == 0 && (errors.As(err, &peer) || errors.Is(err, syscall.ECONNREFUSED)):
		// edk2 asks for the size first, and aborts as soon as it has it.
		log.Debug("tftp size probe", "end", err)
	case ctx.Err() != nil:
	default:
		log.Warn("tftp transfer failed", "error", err, "sent", min(t.acked*int64(req.block), int64(len(data))), "of", len(data))
	}
}

// tftpTransfer is one RRQ being answered: go-back-N over windows of blocks.
type tftpTransfer struct {
	conn    *net.UDPConn
	packets *ipv4.PacketConn
	req     tftpRequest
	data    []byte
	start   time.Time

	acked    int64 // blocks that the client has in sequence
	sent     int64 // highest block that was ever sent
	repeated int64 // blocks that were sent again
	headers  [tftpMaxWindow][tftpHeader]byte
	batch    [tftpMaxWindow]ipv4.Message
}

// blocks returns the number of DATA packets: the last one is short, if need be
// empty.
func (t *tftpTransfer) blocks() int64 { return int64(len(t.data)/t.req.block) + 1 }

func (t *tftpTransfer) run() error {
	for i := range t.batch {
		t.batch[i].Buffers = [][]byte{t.headers[i][:], nil}
	}
	var (
		buf      [tftpMaxRequest]byte
		oack     = t.req.oack(len(t.data))
		opened   = oack == nil   // the client has confirmed the options
		rto      = t.req.timeout // until a round trip is measured
		progress = t.start
		repaired = int64(-1) // gaps up to this block were already answered
	)
	for {
		var err error
		if opened {
			err = t.sendWindow()
		} else {
			_, err = t.conn.Write(oack)
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		sentAt, first := time.Now(), true
		for waiting := true; waiting; {
			if err := t.conn.SetReadDeadline(sentAt.Add(rto)); err != nil {
				return err
			}
			n, err := t.conn.Read(buf[:])
			now := time.Now()
			if now.Sub(progress) > tftpPatience {
				return fmt.Errorf("no progress for %v", tftpPatience)
			}
			if now.Sub(t.start) > tftpMaxLife {
				return fmt.Errorf("not done after %v", tftpMaxLife)
			}
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				rto = min(2*rto, max(tftpMaxRTO, t.req.timeout))
				repaired = t.sent
				break
			}
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			ack, peer, err := parseTFTPReply(buf[:n])
			if err != nil {
				continue // not for this transfer; the timer goes on
			}
			if peer != nil {
				return peer
			}
			if !opened {
				if ack == 0 {
					opened, waiting, progress = true, false, now
					rto = t.measure(now.Sub(sentAt))
				}
				continue
			}
			// Block numbers wrap (a 30 MB file at 512 bytes has 61,440 blocks,
			// a larger one more than 16 bits hold), so an ACK counts by its
			// distance from what is acknowledged.
			ahead := int64(ack - uint16(t.acked))
			switch {
			case ahead > 0 && t.acked+ahead <= t.sent:
				t.acked += ahead
				if t.acked == t.blocks() {
					return nil
				}
				if t.acked < t.sent {
					repaired = t.sent // RFC 7440 4: what follows was lost, and goes out again now
				}
				if first {
					rto = t.measure(now.Sub(sentAt))
				}
				progress, waiting = now, false
			case ahead == 0 && t.req.window > 1 && t.acked > repaired:
				// The client saw a gap right after the last window. It sends
				// such an ACK for each block that it cannot use, also for the
				// ones that come twice because we went back; so one is heeded,
				// and the next only beyond what was in flight then. With a
				// window of one, a doubled ACK is never heeded, or every block
				// from there on goes out twice.
				repaired, waiting = t.sent, false
			}
			first = false
		}
	}
}

// measure turns a round trip into the next timeout.
func (t *tftpTransfer) measure(rtt time.Duration) time.Duration {
	return max(tftpMinRTO, min(4*rtt, t.req.timeout))
}

// sendWindow sends the blocks after acked in one system call, straight from
// the shared file.
func (t *tftpTransfer) sendWindow() error {
	last := min(t.acked+int64(t.req.window), t.blocks())
	n := 0
	for b := t.acked + 1; b <= last; b++ {
		from := (b - 1) * int64(t.req.block)
		to := min(from+int64(t.req.block), int64(len(t.data)))
		t.headers[n] = [tftpHeader]byte{0, tftpDATA, byte(b >> 8), byte(b)}
		t.batch[n].Buffers[1] = t.data[from:to]
		n++
	}
	t.repeated += max(0, min(t.sent, last)-t.acked)
	t.sent = max(t.sent, last)
	for sent := 0; sent < n; {
		k, err := t.packets.WriteBatch(t.batch[sent:n], 0)
		if err != nil {
			return err
		}
		sent += k
	}
	return nil
}
