package provisioner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// dhcpReceiveBuffer is the socket buffer: 200 boxes that are switched on
	// by one breaker speak at once, and relays gather more.
	dhcpReceiveBuffer = 4 << 20
	dhcpMaxPacket     = 1500 // bytes; a longer one is cut off, and then does not parse
	dhcpBatch         = 32   // packets per system call
	dhcpWorkers       = 8    // packets decided at once; more than one because the host store may be remote
	dhcpBacklog       = 1024 // packets that wait for a worker; beyond it they are dropped, and clients repeat
)

// dhcpService moves packets between the sockets and a dhcpServer.
type dhcpService struct {
	*dhcpServer
	iface   *net.Interface
	journal *journal // of leases
	main    *ipv4.PacketConn
	pxe     *ipv4.PacketConn
	raw     *packetSocket
}

// dhcpPacket is a request that waits for a worker.
type dhcpPacket struct {
	bytes []byte
	from  netip.AddrPort
	pxe   bool // it came in on port 4011
}

// listenDHCP opens a UDP socket on every address of one interface: broadcasts
// reach only a socket that is bound to 0.0.0.0. Without SO_REUSEADDR a second
// server on this host is an error here and not a thief of packets.
func listenDHCP(ctx context.Context, iface *net.Interface, port int) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.BindToDevice(int(fd), iface.Name),
			)
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, dhcpReceiveBuffer) != nil {
				// Without CAP_NET_ADMIN the kernel cuts this down to rmem_max.
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, dhcpReceiveBuffer))
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen for dhcp on %s: %w", iface.Name, err)
	}
	p := ipv4.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv4.FlagInterface, true); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for dhcp on %s: %w", iface.Name, err)
	}
	return p, nil
}

// run serves until ctx ends. It closes the sockets, and returns after the last
// worker.
func (d *dhcpService) run(ctx context.Context) error {
	packets := make(chan dhcpPacket, dhcpBacklog)
	var workers errgroup.Group
	for range dhcpWorkers {
		workers.Go(func() error {
			for p := range packets {
				d.serve(ctx, p)
			}
			return nil
		})
	}
	var readers errgroup.Group
	readers.Go(func() error { return d.read(ctx, d.main, false, packets) })
	readers.Go(func() error { return d.read(ctx, d.pxe, true, packets) })
	stop := context.AfterFunc(ctx, d.closeReaders)
	defer stop()
	err := readers.Wait()
	close(packets)
	workers.Wait()
	return err
}

// closeReaders ends the readers. The main socket also sends, and does so for
// a moment longer: the last leases are still being made durable.
func (d *dhcpService) closeReaders() {
	past := time.Unix(1, 0)
	d.main.SetReadDeadline(past)
	d.pxe.SetReadDeadline(past)
}

// read receives packets until ctx ends. An error of the socket, such as the
// interface going down, is not the end of the server.
func (d *dhcpService) read(ctx context.Context, conn *ipv4.PacketConn, pxe bool, packets chan<- dhcpPacket) error {
	batch := make([]ipv4.Message, dhcpBatch)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, dhcpMaxPacket)}
		batch[i].OOB = ipv4.NewControlMessage(ipv4.FlagInterface)
	}
	for {
		n, err := conn.ReadBatch(batch, 0)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("receive dhcp: %w", err)
		}
		if err != nil {
			d.quiet.log(time.Now(), d.log, slog.LevelError, "receive dhcp", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		for i := range batch[:n] {
			m := &batch[i]
			var cm ipv4.ControlMessage
			if err := cm.Parse(m.OOB[:m.NN]); err != nil || cm.IfIndex != d.iface.Index {
				continue
			}
			from, ok := m.Addr.(*net.UDPAddr)
			if !ok {
				continue
			}
			p := dhcpPacket{bytes: append([]byte(nil), m.Buffers[0][:m.N]...), from: from.AddrPort(), pxe: pxe}
			select {
			case packets <- p:
			default:
				d.quiet.log(time.Now(), d.log, slog.LevelWarn, "dhcp packets dropped: too many at once", "backlog", dhcpBacklog)
			}
		}
	}
}

// serve answers one packet.
func (d *dhcpService) serve(ctx context.Context, p dhcpPacket) {
	req, err := parseDHCP(p.bytes)
	if err != nil {
		d.log.Debug("dhcp packet ignored", "from", p.from, "error", err)
		return
	}
	now := time.Now()
	if p.pxe {
		if r := d.bootServer(ctx, req, p.from); r.msg != nil {
			d.send(d.pxe, r)
		}
		return
	}
	r := d.handle(ctx, now, req)
	if r.line == nil {
		d.send(d.main, r)
		return
	}
	err = d.journal.append(r.line, func(err error) {
		if err != nil {
			d.quiet.log(time.Now(), d.log, slog.LevelError, "dhcp lease not stored, so not confirmed", "error", err)
			return
		}
		d.send(d.main, r)
	})
	if err != nil {
		d.quiet.log(now, d.log, slog.LevelWarn, "dhcp lease not confirmed", "error", err)
	}
}

// send sends a reply, if there is one. What cannot be sent is lost like any
// datagram: the client asks again.
func (d *dhcpService) send(conn *ipv4.PacketConn, r reply) {
	if r.msg == nil {
		return
	}
	payload := r.msg.ToBytes()
	var err error
	switch r.delivery {
	case toHardware:
		err = d.raw.send(macAddr(r.msg.ClientHWAddr), netip.AddrPortFrom(d.id, dhcpServerPort), r.to, payload)
	case toBroadcast:
		_, err = conn.WriteTo(payload, d.outgoing(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpClientPort})
	default:
		_, err = conn.WriteTo(payload, d.outgoing(), net.UDPAddrFromAddrPort(r.to))
	}
	if err != nil {
		d.quiet.log(time.Now(), d.log, slog.LevelWarn, "send dhcp", "mac", r.msg.ClientHWAddr, "error", err)
	}
}

// outgoing pins the interface and the source address of a reply.
func (d *dhcpService) outgoing() *ipv4.ControlMessage {
	return &ipv4.ControlMessage{IfIndex: d.iface.Index, Src: d.id.AsSlice()}
}
