package netup

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func ack(t *testing.T, m ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	a, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithReply(&dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}),
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 9)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
	}, m...)...)
	if err != nil {
		t.Fatal(err)
	}
	// As it comes from the wire.
	if a, err = dhcpv4.FromBytes(a.ToBytes()); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestParseLease(t *testing.T) {
	at := time.Unix(1e9, 0)
	router := dhcpv4.WithRouter(net.IPv4(10, 77, 0, 1))
	tests := map[string]struct {
		ack   []dhcpv4.Modifier
		check func(l *Lease) bool
		err   string
	}{
		"the address has the subnet's length": {
			check: func(l *Lease) bool { return l.Address.String() == "10.77.0.9/24" && len(l.Routes) == 0 },
		},
		"the router becomes the default route": {
			ack: []dhcpv4.Modifier{router},
			check: func(l *Lease) bool {
				return slices.Equal(l.Routes, []Route{{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.77.0.1")}})
			},
		},
		"classless routes replace the router (RFC 3442)": {
			ack: []dhcpv4.Modifier{router, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(
				&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(192, 168, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}, Router: net.IPv4(10, 77, 0, 2)},
				&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(10, 1, 2, 3).To4(), Mask: net.CIDRMask(32, 32)}, Router: net.IPv4zero},
			))},
			check: func(l *Lease) bool {
				return slices.Equal(l.Routes, []Route{
					{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParseAddr("10.77.0.2")},
					{To: netip.MustParsePrefix("10.1.2.3/32")},
				})
			},
		},
		"the boot file is option 67": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptBootFileName("http://10.77.0.1/"))},
			check: func(l *Lease) bool { return l.BootFile == "http://10.77.0.1/" },
		},
		"or else the header's field": {
			ack:   []dhcpv4.Modifier{func(d *dhcpv4.DHCPv4) { d.BootFileName = "http://10.77.0.2/" }},
			check: func(l *Lease) bool { return l.BootFile == "http://10.77.0.2/" },
		},
		"four name servers become three": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithDNS(net.IPv4(1, 0, 0, 1), net.IPv4(1, 0, 0, 2), net.IPv4(1, 0, 0, 3), net.IPv4(1, 0, 0, 4))},
			check: func(l *Lease) bool { return len(l.DNS) == 3 },
		},
		"a domain name that would add a line to resolv.conf is dropped": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptDomainName("a.example\nnameserver 6.6.6.6"))},
			check: func(l *Lease) bool { return len(l.Search) == 0 },
		},
		"a search list replaces the domain name": {
			ack: []dhcpv4.Modifier{
				dhcpv4.WithOption(dhcpv4.OptDomainName("a.example")), dhcpv4.WithDomainSearchList("b.example", "c.example"),
				dhcpv4.WithDNS(net.IPv4(1, 0, 0, 1)),
			},
			check: func(l *Lease) bool {
				return string(l.ResolvConf()) == "nameserver 1.0.0.1\nsearch b.example c.example\n"
			},
		},
		"times default to halves and eighths": {
			ack: []dhcpv4.Modifier{dhcpv4.WithLeaseTime(800)},
			check: func(l *Lease) bool {
				return l.Expire == 800*time.Second && l.Renew == 400*time.Second && l.Rebind == 700*time.Second && l.Acquired.Equal(at)
			},
		},
		"a lease without an end lasts a year": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithLeaseTime(0xffffffff)},
			check: func(l *Lease) bool { return l.Expire == maxLease && l.Renew < l.Rebind && l.Rebind < l.Expire },
		},
		"a lease of a second lasts long enough to renew it": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithLeaseTime(1)},
			check: func(l *Lease) bool { return l.Expire == minLease && l.Renew > 0 },
		},
		"times in the wrong order are put right": {
			ack: []dhcpv4.Modifier{
				dhcpv4.WithLeaseTime(800),
				dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionRenewTimeValue, Value: dhcpv4.Duration(900 * time.Second)}),
				dhcpv4.WithOption(dhcpv4.Option{Code: dhcpv4.OptionRebindingTimeValue, Value: dhcpv4.Duration(5000 * time.Second)}),
			},
			check: func(l *Lease) bool { return l.Renew < l.Rebind && l.Rebind < l.Expire },
		},
		"a tiny MTU is not believed": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 68}))},
			check: func(l *Lease) bool { return l.MTU == 0 },
		},
		"an MTU is taken over": {
			ack:   []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 0x78}))},
			check: func(l *Lease) bool { return l.MTU == 1400 },
		},
		"no address is an error":        {ack: []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4zero)}, err: "no unicast address"},
		"a multicast address is too":    {ack: []dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(224, 0, 0, 1))}, err: "no unicast address"},
		"a mask with holes is an error": {ack: []dhcpv4.Modifier{dhcpv4.WithNetmask(net.IPMask{255, 0, 255, 0})}, err: "is not one"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := parseLease("eth0", "02:00:00:00:00:01", ack(t, tt.ack...), at)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !tt.check(l) {
				t.Errorf("got %+v", l)
			}
			if again, err := l.ack(); err != nil || !again.YourIPAddr.Equal(net.IPv4(10, 77, 0, 9)) {
				t.Errorf("the answer does not survive: %v, %v", again, err)
			}
		})
	}
}

func FuzzParseLease(f *testing.F) {
	a, err := dhcpv4.New(dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 9)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithDomainSearchList("b.example"), dhcpv4.WithRouter(net.IPv4(10, 77, 0, 1)), dhcpv4.WithLeaseTime(60))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := parseLease("eth0", "", m, time.Unix(1e9, 0))
		if err != nil {
			return
		}
		if !(0 < l.Renew && l.Renew < l.Rebind && l.Rebind < l.Expire) || !l.Address.IsValid() || len(l.Routes) > maxRoutes {
			t.Errorf("got %+v", l)
		}
		for line := range strings.Lines(string(l.ResolvConf())) {
			if !strings.HasPrefix(line, "nameserver ") && !strings.HasPrefix(line, "search ") {
				t.Errorf("resolv.conf line %q", line)
			}
		}
	})
}
