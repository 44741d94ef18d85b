package provisioner

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ethHeader  = 14
	ipv4Header = 20
	udpHeader  = 8
	etherIPv4  = 0x0800
	maxFrame   = 9216 // bytes; more than any MTU that a boot network has
)

// packetSocket sends and receives Ethernet frames with IPv4 on one interface.
// A DHCP server needs it to answer a client by unicast before the client has
// an address: the kernel would ask by ARP for an address that nobody has yet.
type packetSocket struct {
	file  *os.File
	index int
	mac   net.HardwareAddr
}

// openPacketSocket opens a socket on iface. It receives only if receive is
// set: an idle receiving socket costs the kernel a copy of each packet.
func openPacketSocket(iface *net.Interface, receive bool) (*packetSocket, error) {
	if len(iface.HardwareAddr) != 6 {
		return nil, fmt.Errorf("packet socket on %s: hardware address %q is not an Ethernet address", iface.Name, iface.HardwareAddr)
	}
	var protocol uint16
	if receive {
		protocol = etherIPv4
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(protocol)))
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", iface.Name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: iface.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: bind: %w", iface.Name, err)
	}
	return &packetSocket{file: os.NewFile(uintptr(fd), "packet:"+iface.Name), index: iface.Index, mac: iface.HardwareAddr}, nil
}

func (p *packetSocket) Close() error { return p.file.Close() }

// send sends a UDP datagram in a frame to mac.
func (p *packetSocket) send(mac macAddr, from, to netip.AddrPort, payload []byte) error {
	_, err := p.file.Write(udpFrame(macAddr(p.mac), mac, from, to, payload))
	if err != nil {
		return fmt.Errorf("send to %s at %s: %w", to, mac, err)
	}
	return nil
}

// receive reads one frame.
func (p *packetSocket) receive(buf []byte, deadline time.Time) (int, error) {
	if err := p.file.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return p.file.Read(buf)
}

// udpFrame builds an Ethernet frame with a UDP datagram over IPv4.
func udpFrame(srcMAC, dstMAC macAddr, from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 0, ethHeader+ipv4Header+udpHeader+len(payload))
	b = append(b, dstMAC[:]...)
	b = append(b, srcMAC[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv4)

	src, dst := from.Addr().As4(), to.Addr().As4()
	udpLen := uint16(udpHeader + len(payload))
	b = append(b, 0x45, 0x10) // version 4, five words; low delay
	b = binary.BigEndian.AppendUint16(b, ipv4Header+udpLen)
	b = append(b, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0) // no id, do not fragment, TTL 64
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	ip := b[ethHeader:]
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(0, ip))

	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, udpLen)
	b = append(b, 0, 0)
	b = append(b, payload...)
	udp := b[ethHeader+ipv4Header:]
	sum := onesSum(0, src[:])
	sum = onesSum(sum, dst[:])
	sum = onesSum(sum, []byte{0, unix.IPPROTO_UDP, byte(udpLen >> 8), byte(udpLen)})
	sum = ^onesSum(sum, udp)
	if sum == 0 {
		sum = 0xffff // RFC 768: zero means that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return b
}

// parseUDPFrame returns the addresses and the payload of a UDP datagram over
// unfragmented IPv4, and false for any other frame. It trusts no length and
// checks no checksum: it only looks for an answer to a question of ours.
func parseUDPFrame(b []byte) (from, to netip.AddrPort, payload []byte, ok bool) {
	if len(b) < ethHeader+ipv4Header+udpHeader || binary.BigEndian.Uint16(b[12:]) != etherIPv4 {
		return
	}
	ip := b[ethHeader:]
	header := int(ip[0]&15) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < ipv4Header || total < header+udpHeader || total > len(ip) ||
		ip[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return
	}
	udp := ip[header:total]
	size := int(binary.BigEndian.Uint16(udp[4:]))
	if size < udpHeader || size > len(udp) {
		return
	}
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), binary.BigEndian.Uint16(udp))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), binary.BigEndian.Uint16(udp[2:]))
	return from, to, udp[udpHeader:size], true
}

// onesSum adds b to a ones' complement sum (RFC 1071).
func onesSum(sum uint16, b []byte) uint16 {
	s := uint32(sum)
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}
