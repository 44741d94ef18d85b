package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
)

// sockets are all that a Server listens on.
type sockets struct {
	dhcp, pxe *ipv4.PacketConn
	raw       *packetSocket
	tftp      *net.UDPConn
	http      net.Listener
}

// listen binds everything, or nothing.
func (s *Server) listen(ctx context.Context, iface *net.Interface) (_ *sockets, err error) {
	k := &sockets{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.dhcp, err = listenDHCP(ctx, iface, dhcpServerPort); err != nil {
		return nil, err
	}
	if k.pxe, err = listenDHCP(ctx, iface, pxePort); err != nil {
		return nil, err
	}
	if k.raw, err = openPacketSocket(iface, false); err != nil {
		return nil, err
	}
	addr := s.Address.Addr()
	if k.tftp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, s.tftpPort()))); err != nil {
		return nil, fmt.Errorf("listen for tftp: %w", err)
	}
	if k.http, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", netip.AddrPortFrom(addr, s.httpPort()).String()); err != nil {
		return nil, fmt.Errorf("listen for http: %w", err)
	}
	return k, nil
}

// close closes what is open, also what its server has closed already.
func (k *sockets) close() error {
	var all []io.Closer
	if k.dhcp != nil {
		all = append(all, k.dhcp)
	}
	if k.pxe != nil {
		all = append(all, k.pxe)
	}
	if k.raw != nil {
		all = append(all, k.raw)
	}
	if k.tftp != nil {
		all = append(all, k.tftp)
	}
	if k.http != nil {
		all = append(all, k.http)
	}
	var err error
	for _, c := range all {
		if cerr := c.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}
