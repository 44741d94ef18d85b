package provisioner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	// probeTime is how long another server may take to answer. dnsmasq pings
	// an address for three seconds before it offers it.
	probeTime = 4 * time.Second
	// probeRepeat is when the question is asked again, in case the first one
	// was lost to a switch port that is only just coming up.
	probeRepeat = 1500 * time.Millisecond
)

// ErrForeignDHCP says that another DHCP server answers on the interface.
var ErrForeignDHCP = errors.New("another dhcp server answers on this network")

// probeDHCP asks for a lease as a PXE client would, and fails if anybody
// answers: two authoritative servers give out each other's addresses, and a
// PXE proxy's offer beats our own in the firmware's choice. It asks from an
// invented address and takes no lease.
func probeDHCP(ctx context.Context, iface *net.Interface) (err error) {
	sock, err := openPacketSocket(iface, true)
	if err != nil {
		return fmt.Errorf("probe for dhcp servers: %w", err)
	}
	defer func() { err = errors.Join(err, sock.Close()) }()

	var mac macAddr
	rand.Read(mac[:])
	mac[0] = mac[0]&^1 | 2 // locally administered, a station
	msg, err := dhcpv4.NewDiscovery(mac[:],
		dhcpv4.WithBroadcast(true),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")),
		dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 3, 16})),
		dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, make([]byte, clientUUIDOptionSize))),
	)
	if err != nil {
		return fmt.Errorf("probe for dhcp servers: %w", err)
	}
	frame := udpFrame(mac, macAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpClientPort),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpServerPort), msg.ToBytes())

	start := time.Now()
	buf := make([]byte, maxFrame)
	for sent := 0; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		elapsed := time.Since(start)
		if elapsed >= probeTime {
			return nil
		}
		if sent == 0 || sent == 1 && elapsed >= probeRepeat {
			if _, err := sock.file.Write(frame); err != nil {
				return fmt.Errorf("probe for dhcp servers on %s: %w", iface.Name, err)
			}
			sent++
		}
		n, err := sock.receive(buf, time.Now().Add(100*time.Millisecond))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("probe for dhcp servers on %s: %w", iface.Name, err)
		}
		from, to, payload, ok := parseUDPFrame(buf[:n])
		if !ok || to.Port() != dhcpClientPort {
			continue
		}
		if answer, err := dhcpv4.FromBytes(payload); err == nil && answer.OpCode == dhcpv4.OpcodeBootReply && answer.TransactionID == msg.TransactionID {
			return fmt.Errorf("%w: %s on %s", ErrForeignDHCP, from.Addr(), iface.Name)
		}
	}
}
