package provisioner

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68
	pxePort        = 4011 // boot server discovery, PXE 2.1 section 2.2.3

	minDHCPSize = 240 // header and magic cookie
	// storeTimeout bounds what one packet may wait for the host store.
	storeTimeout = 2 * time.Second
	// seenStep is how far Host.Seen may lag behind, so that a renewal is not a
	// write.
	seenStep = time.Minute
)

// dhcpServer decides what to answer. It has no socket: a packet and a time go
// in, a reply comes out.
type dhcpServer struct {
	id      netip.Addr // option 54, siaddr
	subnet  netip.Prefix
	router  netip.Addr // zero: none
	dns     []netip.Addr
	lease   time.Duration
	leases  *leaseTable
	hosts   Store
	boot    map[string]string // architecture: TFTP file name
	baseURL string            // ends in a slash
	log     *slog.Logger
	quiet   *throttle // for log lines that a client can cause at will
}

// delivery says how a reply reaches a client that may not have an address yet.
type delivery int

const (
	toBroadcast delivery = iota // 255.255.255.255:68 on the interface
	toAddress                   // reply.to, by the kernel's routing
	toHardware                  // reply.to, in a frame to the client's MAC: nobody answers ARP for it yet
)

// reply is a decision. It is sent after its lease line, if any, is durable. A
// request without an answer may still have a lease line.
type reply struct {
	msg      *dhcpv4.DHCPv4 // nil: nothing to send
	delivery delivery
	to       netip.AddrPort
	line     []byte
}

// parseDHCP decodes a request and refuses what this server never answers: other
// than BOOTREQUEST, and hardware that is not Ethernet.
func parseDHCP(b []byte) (*dhcpv4.DHCPv4, error) {
	if len(b) < minDHCPSize {
		return nil, fmt.Errorf("dhcp: %d bytes, at least %d are needed", len(b), minDHCPSize)
	}
	if op, htype, hlen := b[0], b[1], b[2]; op != 1 || htype != 1 || hlen != 6 {
		return nil, fmt.Errorf("dhcp: op %d, hardware type %d, length %d: want a request from Ethernet, 1, 1 and 6", op, htype, hlen)
	}
	if mac := macAddr(b[28:34]); mac == (macAddr{}) || mac[0]&1 != 0 {
		return nil, fmt.Errorf("dhcp: client hardware address %s is not a station's", mac)
	}
	req, err := dhcpv4.FromBytes(b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// Some ROMs leave out the end option.
		req, err = dhcpv4.FromBytes(append(b[:len(b):len(b)], 255))
	}
	if err != nil {
		return nil, fmt.Errorf("dhcp: %w", err)
	}
	return req, nil
}

// handle answers a packet that came in on port 67.
func (s *dhcpServer) handle(ctx context.Context, now time.Time, req *dhcpv4.DHCPv4) reply {
	c := identify(req)
	if !s.onLink(req) {
		s.log.Debug("dhcp request from a foreign subnet", "mac", c.mac, "relay", req.GatewayIPAddr)
		return reply{}
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, now, req, c)
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, now, req, c)
	case dhcpv4.MessageTypeDecline:
		if addr, ok := v4(req.RequestedIPAddress()); ok && s.isForUs(req) {
			if line, ok := s.leases.decline(now, c.mac, addr); ok {
				s.quiet.log(now, s.log, slog.LevelWarn, "dhcp address is in use by somebody else", "mac", c.mac, "address", addr)
				return reply{line: line}
			}
		}
	case dhcpv4.MessageTypeRelease:
		if addr, ok := v4(req.ClientIPAddr); ok && s.isForUs(req) {
			if line, ok := s.leases.release(now, c.mac, addr); ok {
				return reply{line: line}
			}
		}
	case dhcpv4.MessageTypeInform:
		return s.inform(ctx, req, c)
	}
	return reply{}
}

// discover offers an address (RFC 2131 4.3.1).
func (s *dhcpServer) discover(ctx context.Context, now time.Time, req *dhcpv4.DHCPv4, c client) reply {
	want, _ := v4(req.RequestedIPAddress())
	addr, ok := s.leases.offer(now, c.mac, want)
	if !ok {
		s.quiet.log(now, s.log, slog.LevelError, "dhcp range is exhausted", "first", s.leases.pool.First, "last", s.leases.pool.Last, "mac", c.mac)
		return reply{}
	}
	msg := s.compose(req, c, dhcpv4.MessageTypeOffer)
	msg.YourIPAddr = addr.AsSlice()
	s.addLease(msg)
	s.addBoot(ctx, msg, c)
	return s.route(req, reply{msg: msg})
}

// request answers the four kinds of DHCPREQUEST (RFC 2131 4.3.2).
func (s *dhcpServer) request(ctx context.Context, now time.Time, req *dhcpv4.DHCPv4, c client) reply {
	chosen := req.Options.Get(dhcpv4.OptionServerIdentifier)
	if chosen != nil && !s.isForUs(req) {
		// SELECTING, and it selected somebody else.
		s.leases.forget(now, c.mac)
		other, _ := netip.AddrFromSlice(chosen)
		s.quiet.log(now, s.log, slog.LevelWarn, "a client chose another dhcp server", "mac", c.mac, "server", other)
		return reply{}
	}
	addr, ok := v4(req.RequestedIPAddress()) // SELECTING, INIT-REBOOT
	if !ok {
		addr, ok = v4(req.ClientIPAddr) // RENEWING, REBINDING
	}
	if !ok {
		return s.refuse(req, c, "no address is requested")
	}
	if !s.subnet.Contains(addr) {
		return s.refuse(req, c, "the address is of another network")
	}
	line, ok := s.leases.claim(now, c.mac, addr, now.Add(s.lease))
	if !ok {
		return s.refuse(req, c, "the address is not yours")
	}
	msg := s.compose(req, c, dhcpv4.MessageTypeAck)
	msg.YourIPAddr = addr.AsSlice()
	msg.ClientIPAddr = req.ClientIPAddr
	s.addLease(msg)
	boot := s.addBoot(ctx, msg, c)
	if c.boots() {
		s.saw(ctx, now, c, addr)
		s.log.Info("dhcp lease for a booting host", "mac", c.mac, "uuid", c.uuid, "address", addr, "client", c.kind, "arch", c.arch, "boot", boot)
	}
	return s.route(req, reply{msg: msg, line: line})
}

// inform gives a client that has an address the rest (RFC 2131 4.3.5).
func (s *dhcpServer) inform(ctx context.Context, req *dhcpv4.DHCPv4, c client) reply {
	addr, ok := v4(req.ClientIPAddr)
	if !ok || !s.subnet.Contains(addr) {
		return reply{}
	}
	msg := s.compose(req, c, dhcpv4.MessageTypeAck)
	msg.ClientIPAddr = req.ClientIPAddr
	s.addBoot(ctx, msg, c)
	return s.route(req, reply{msg: msg})
}

// bootServer answers what came in on port 4011. Firmware asks there if the
// offer that it chose was of a PXE boot server without discovery options;
// ours never is, but a proxy's may be, and some ROMs ask in any case. It
// already has its address; only the file counts.
func (s *dhcpServer) bootServer(ctx context.Context, req *dhcpv4.DHCPv4, from netip.AddrPort) reply {
	c := identify(req)
	if c.kind != pxeClient && c.kind != ipxeClient {
		return reply{}
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDiscover:
	default:
		return reply{}
	}
	if !s.subnet.Contains(from.Addr().Unmap()) {
		return reply{}
	}
	msg := s.compose(req, c, dhcpv4.MessageTypeAck)
	msg.ClientIPAddr = req.ClientIPAddr
	if s.addBoot(ctx, msg, c) == "" {
		return reply{}
	}
	msg.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient"))
	return reply{msg: msg, delivery: toAddress, to: from}
}

// refuse builds a DHCPNAK: always broadcast, because the client's idea of its
// own address is what is wrong (RFC 2131 4.3.2, table 3).
func (s *dhcpServer) refuse(req *dhcpv4.DHCPv4, c client, why string) reply {
	s.log.Debug("dhcp request refused", "mac", c.mac, "requested", req.RequestedIPAddress(), "ciaddr", req.ClientIPAddr, "reason", why)
	msg := s.compose(req, c, dhcpv4.MessageTypeNak)
	msg.ServerIPAddr = zeroIPv4()
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer} {
		msg.DeleteOption(code)
	}
	msg.UpdateOption(dhcpv4.OptMessage(why))
	if gi, ok := v4(req.GatewayIPAddr); ok {
		msg.SetBroadcast()
		return reply{msg: msg, delivery: toAddress, to: netip.AddrPortFrom(gi, dhcpServerPort)}
	}
	return reply{msg: msg, delivery: toBroadcast}
}

// compose begins a reply with what every reply has. Firmware drops one without
// option 54, and refuses a lease without a subnet mask.
func (s *dhcpServer) compose(req *dhcpv4.DHCPv4, c client, t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	msg := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		HopCount:      req.HopCount,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		ClientIPAddr:  zeroIPv4(),
		YourIPAddr:    zeroIPv4(),
		ServerIPAddr:  s.id.AsSlice(),
		GatewayIPAddr: req.GatewayIPAddr,
		ClientHWAddr:  req.ClientHWAddr,
		Options:       make(dhcpv4.Options),
	}
	msg.UpdateOption(dhcpv4.OptMessageType(t))
	msg.UpdateOption(dhcpv4.OptServerIdentifier(s.identifier(req).AsSlice()))
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-s.subnet.Bits()))
	msg.UpdateOption(dhcpv4.OptSubnetMask(mask))
	if s.router.IsValid() {
		msg.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRouter, s.router.AsSlice()))
	}
	var dns []byte
	for _, a := range s.dns {
		dns = append(dns, a.AsSlice()...)
	}
	if len(dns) > 0 {
		msg.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionDomainNameServer, dns))
	}
	// RFC 6842: the client identifier comes back. RFC 3046: so does what the
	// relay added. RFC 4578 2.3: so does the machine identifier.
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if v := req.Options.Get(code); v != nil {
			msg.UpdateOption(dhcpv4.OptGeneric(code, v))
		}
	}
	if c.guid != nil {
		msg.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, c.guid))
	}
	return msg
}

func (s *dhcpServer) addLease(msg *dhcpv4.DHCPv4) {
	msg.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.lease))
}

// addBoot adds what the client's firmware needs to boot the installer, or to
// go on to its disk at once. It returns the file or URL that it added, or the
// empty string for a client that nothing here can boot.
func (s *dhcpServer) addBoot(ctx context.Context, msg *dhcpv4.DHCPv4, c client) string {
	if c.kind == plainClient {
		return ""
	}
	if c.kind == installerClient {
		// An installed host that runs an installer gets the address too: its
		// plan is what is refused then, with a reason that it can show.
		msg.UpdateOption(dhcpv4.OptBootFileName(s.baseURL))
		return s.baseURL
	}
	file, ok := s.boot[c.arch]
	if !ok {
		return ""
	}
	if !s.bootable(ctx, c) {
		file = diskBootFile
	}
	url := s.baseURL + bootDir + file
	switch c.kind {
	case httpClient:
		// Without this class the firmware ignores the offer.
		msg.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient"))
		msg.UpdateOption(dhcpv4.OptBootFileName(url))
		return url
	case ipxeClient:
		msg.UpdateOption(dhcpv4.OptBootFileName(url))
		msg.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(optionIPXE), []byte{ipxeNoProxyDHCP, 1, 1}))
		return url
	}
	// No option 60 and no option 43: then edk2 takes the offer for one of a
	// plain DHCP server with a boot file (its class 7), boots that file, and
	// asks nobody on port 4011. The NUL is for edk2, which writes one behind
	// the option when it parses it.
	msg.BootFileName = file
	msg.UpdateOption(dhcpv4.OptBootFileName(file + "\x00"))
	return file
}

// diskBootFile is the boot file of a host that is to boot from its disk. There
// is no such file: the firmware is told so at once, shows the name, and tries
// its next boot option. Without any boot file it would repeat its DISCOVER for
// a minute first, and as long again for each kind of network boot that it has.
// Nothing is executed, so nothing is measured either.
const diskBootFile = "boot-from-disk"

// bootable asks the store whether the host may be installed. If the store
// cannot tell, it may not: an install overwrites a disk.
func (s *dhcpServer) bootable(ctx context.Context, c client) bool {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	host, err := s.hosts.Host(ctx, c.key())
	if errors.Is(err, ErrNoHost) {
		return true
	}
	if err != nil {
		s.log.Error("look up a booting host", "mac", c.mac, "error", err)
		return false
	}
	return host.Bootable()
}

// saw notes that a host asked for a boot file. It does not hold up the lease.
func (s *dhcpServer) saw(ctx context.Context, now time.Time, c client, addr netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.hosts.Update(ctx, c.key(), func(h *Host) error {
		if h.State == "" {
			h.State = Seen
		}
		if c.uuid != "" {
			h.Key.UUID = c.uuid
		}
		if c.arch != "" {
			h.Arch = c.arch
		}
		if now.Sub(h.Seen) >= seenStep {
			h.Seen = now.UTC().Truncate(time.Second)
		}
		h.Address = addr
		return nil
	})
	if err != nil {
		s.log.Error("note a booting host", "mac", c.mac, "error", err)
	}
}

// route chooses how the reply travels (RFC 2131 4.1).
func (s *dhcpServer) route(req *dhcpv4.DHCPv4, r reply) reply {
	yi, leased := v4(r.msg.YourIPAddr)
	gi, relayed := v4(req.GatewayIPAddr)
	// An address that the client says it has is believed only if it is the
	// one that it gets, or if it asks for nothing else (INFORM).
	ci, configured := v4(req.ClientIPAddr)
	switch {
	case relayed:
		r.delivery, r.to = toAddress, netip.AddrPortFrom(gi, dhcpServerPort)
	case configured && (!leased || ci == yi):
		r.delivery, r.to = toAddress, netip.AddrPortFrom(ci, dhcpClientPort)
	case req.IsBroadcast():
		r.delivery = toBroadcast
	default:
		r.delivery, r.to = toHardware, netip.AddrPortFrom(yi, dhcpClientPort)
	}
	return r
}

// onLink reports whether the client is on the subnet that this server serves,
// by what its relay says: link selection, subnet selection, or the relay's own
// address.
func (s *dhcpServer) onLink(req *dhcpv4.DHCPv4) bool {
	link, ok := v4(req.GatewayIPAddr)
	if !ok {
		return true
	}
	if a, ok := v4(req.Options.Get(dhcpv4.OptionSubnetSelection)); ok {
		link = a
	}
	if a, ok := v4(relayOption(req, relayLinkSelection)); ok {
		link = a
	}
	return s.subnet.Contains(link)
}

// identifier returns the server identifier that the client is to know: its
// relay may ask to stand in for the server (RFC 5107).
func (s *dhcpServer) identifier(req *dhcpv4.DHCPv4) netip.Addr {
	if isSet(req.GatewayIPAddr) {
		if a, ok := v4(relayOption(req, relayServerOverride)); ok {
			return a
		}
	}
	return s.id
}

// isForUs reports whether a request names this server.
func (s *dhcpServer) isForUs(req *dhcpv4.DHCPv4) bool {
	id, ok := v4(req.Options.Get(dhcpv4.OptionServerIdentifier))
	return ok && (id == s.id || id == s.identifier(req))
}

func relayOption(req *dhcpv4.DHCPv4, code byte) []byte {
	raw := req.Options.Get(dhcpv4.OptionRelayAgentInformation)
	for len(raw) >= 2 && len(raw) >= 2+int(raw[1]) {
		if raw[0] == code {
			return raw[2 : 2+int(raw[1])]
		}
		raw = raw[2+int(raw[1]):]
	}
	return nil
}

// v4 converts four bytes that are not all zero.
func v4(b []byte) (netip.Addr, bool) {
	if len(b) != 4 {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(b))
	return a, !a.IsUnspecified()
}

func isSet(b []byte) bool { _, ok := v4(b); return ok }

func zeroIPv4() []byte { return make([]byte, 4) }
