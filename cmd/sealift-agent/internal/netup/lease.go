package netup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Lease is what a DHCP server granted, in a form that outlives the process:
// the agent of the initramfs hands it to the agent of the root file system.
type Lease struct {
	Iface    string       `json:"iface"`
	MAC      string       `json:"mac"` // lower case with colons
	Address  netip.Prefix `json:"address"`
	Routes   []Route      `json:"routes"`
	DNS      []netip.Addr `json:"dns"`
	Search   []string     `json:"search"`
	MTU      int          `json:"mtu"`      // 0: the link's own
	BootFile string       `json:"bootFile"` // option 67, else the header's file field

	Acquired time.Time     `json:"acquired"`
	Renew    time.Duration `json:"renew"`  // T1 after Acquired
	Rebind   time.Duration `json:"rebind"` // T2 after Acquired
	Expire   time.Duration `json:"expire"` // after Acquired

	// ACK is the server's DHCPACK as it came, from which a renewal is made.
	ACK []byte `json:"ack"`
}

// Route is a destination and the gateway to it.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"` // invalid: on the link
}

// Bounds of what a server may ask for.
const (
	maxDNS     = 3 // more are ignored by resolvers (resolv.conf(5), MAXNS)
	maxSearch  = 6
	maxRoutes  = 32
	minMTU     = 576
	minLease   = 30 * time.Second
	maxLease   = 365 * 24 * time.Hour // "infinite" (RFC 2131 3.3) is this
	foreverRaw = 0xffffffff * time.Second
)

// parseLease reads a DHCPACK. It believes nothing that would leave the link
// unusable: an address that is no unicast address is an error, and lease times
// are brought into bounds and order.
func parseLease(iface, mac string, ack *dhcpv4.DHCPv4, now time.Time) (*Lease, error) {
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || !ip.IsGlobalUnicast() {
		return nil, fmt.Errorf("DHCP answer: the address %v is no unicast address", ack.YourIPAddr)
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	ones, bits := mask.Size()
	if bits != 32 || ones == 0 {
		return nil, fmt.Errorf("DHCP answer: the subnet mask %v is not one", mask)
	}
	l := &Lease{
		Iface:    iface,
		MAC:      mac,
		Address:  netip.PrefixFrom(ip, ones),
		BootFile: strings.TrimRight(ack.BootFileNameOption(), "\x00"),
		Acquired: now,
		ACK:      ack.ToBytes(),
	}
	if l.BootFile == "" {
		l.BootFile = strings.TrimRight(ack.BootFileName, "\x00")
	}
	l.Routes = routes(ack)
	for _, d := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(d.To4()); ok && len(l.DNS) < maxDNS {
			l.DNS = append(l.DNS, a)
		}
	}
	if n := ack.DomainName(); n != "" && domainOK(n) {
		l.Search = append(l.Search, n)
	}
	if s := ack.DomainSearch(); s != nil {
		l.Search = nil
		for _, n := range s.Labels {
			if domainOK(n) && len(l.Search) < maxSearch {
				l.Search = append(l.Search, n)
			}
		}
	}
	if v := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(v) == 2 {
		if mtu := int(v[0])<<8 | int(v[1]); mtu >= minMTU {
			l.MTU = mtu
		}
	}
	l.Expire = ack.IPAddressLeaseTime(time.Hour)
	if l.Expire >= foreverRaw {
		l.Expire = maxLease
	}
	l.Expire = min(max(l.Expire, minLease), maxLease)
	l.Renew = ack.IPAddressRenewalTime(l.Expire / 2)
	l.Rebind = ack.IPAddressRebindingTime(l.Expire / 8 * 7)
	// RFC 2131 4.4.5: T1 < T2 < the lease time.
	if l.Rebind <= 0 || l.Rebind >= l.Expire {
		l.Rebind = l.Expire / 8 * 7
	}
	if l.Renew <= 0 || l.Renew >= l.Rebind {
		l.Renew = l.Rebind / 2
	}
	return l, nil
}

// routes reads option 121, or the router option where it is absent (RFC 3442:
// a client that knows 121 ignores the router option beside it).
func routes(ack *dhcpv4.DHCPv4) []Route {
	var out []Route
	if classless := ack.ClasslessStaticRoute(); len(classless) > 0 {
		for _, r := range classless {
			if r == nil || r.Dest == nil || len(out) == maxRoutes {
				continue
			}
			dst, ok := netip.AddrFromSlice(r.Dest.IP.To4())
			ones, bits := r.Dest.Mask.Size()
			if !ok || bits != 32 {
				continue
			}
			route := Route{To: netip.PrefixFrom(dst, ones).Masked()}
			if via, ok := netip.AddrFromSlice(r.Router.To4()); ok && !via.IsUnspecified() {
				route.Via = via
			}
			out = append(out, route)
		}
		return out
	}
	for _, r := range ack.Router() {
		if via, ok := netip.AddrFromSlice(r.To4()); ok && via.IsGlobalUnicast() {
			return []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: via}}
		}
	}
	return nil
}

// domainOK reports whether s can stand in resolv.conf: letters, digits, dots,
// dashes and underscores.
func domainOK(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_') {
			return false
		}
	}
	return s != "" && len(s) <= 253
}

// ResolvConf returns the content of resolv.conf(5).
func (l *Lease) ResolvConf() []byte {
	var b strings.Builder
	for _, d := range l.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	if len(l.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(l.Search, " "))
	}
	return []byte(b.String())
}

// ack returns the DHCPACK again.
func (l *Lease) ack() (*dhcpv4.DHCPv4, error) {
	if len(l.ACK) == 0 {
		return nil, errors.New("the lease holds no DHCP answer")
	}
	m, err := dhcpv4.FromBytes(l.ACK)
	if err != nil {
		return nil, fmt.Errorf("decode the lease's DHCP answer: %w", err)
	}
	return m, nil
}

// ipNet converts for the netlink library.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
