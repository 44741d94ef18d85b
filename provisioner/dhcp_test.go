package provisioner

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/sealift/sealift/provisioner/api"
)

// memoryHosts is a Store for decisions; err makes it fail.
type memoryHosts struct {
	hosts map[string]Host
	err   error
}

func (m *memoryHosts) Host(ctx context.Context, key api.HostKey) (Host, error) {
	h, ok := m.hosts[key.MAC]
	if m.err != nil {
		return Host{}, m.err
	}
	if !ok {
		return Host{}, ErrNoHost
	}
	return h, nil
}

func (m *memoryHosts) Update(ctx context.Context, key api.HostKey, change func(*Host) error) (Host, error) {
	h, ok := m.hosts[key.MAC]
	if !ok {
		h.Key = key
	}
	if m.err != nil {
		return Host{}, m.err
	}
	if err := change(&h); err != nil {
		return Host{}, err
	}
	m.hosts[key.MAC] = h
	return h, nil
}

func (m *memoryHosts) All(ctx context.Context) ([]Host, error) {
	var all []Host
	for _, h := range m.hosts {
		all = append(all, h)
	}
	return all, m.err
}

var (
	boxMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	otherMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	dayOne   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

func newTestDHCP(last string) (*dhcpServer, *memoryHosts) {
	hosts := &memoryHosts{hosts: make(map[string]Host)}
	return &dhcpServer{
		id: addr("10.98.0.1"), subnet: netip.MustParsePrefix("10.98.0.0/24"), lease: time.Hour,
		leases: newLeaseTable(Range{addr("10.98.0.20"), addr(last)}, addr("10.98.0.1")),
		hosts:  hosts, boot: map[string]string{"amd64": "installer.efi"}, baseURL: "http://10.98.0.1/",
		log: slog.New(slog.DiscardHandler), quiet: &throttle{},
	}, hosts
}

// ask builds a request.
func ask(t testing.TB, kind dhcpv4.MessageType, mac net.HardwareAddr, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(kind)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func requested(a string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(a).To4()))
}

func server(a string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(a).To4()))
}

func ciaddr(a string) dhcpv4.Modifier {
	return dhcpv4.WithClientIP(net.ParseIP(a).To4())
}

func generic(code uint8, v ...byte) dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), v)
}

func relay(a string) dhcpv4.Modifier {
	return dhcpv4.WithGatewayIP(net.ParseIP(a).To4())
}

func TestRequestsAreAnsweredAsRFC2131Says(t *testing.T) {
	ack, nak := dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	for _, c := range []struct {
		name     string
		req      []dhcpv4.Modifier // of the box, which was offered 10.98.0.20
		want     dhcpv4.MessageType
		address  string
		delivery delivery
		to       string
	}{
		{"selecting what was offered", []dhcpv4.Modifier{requested("10.98.0.20"), server("10.98.0.1")}, ack, "10.98.0.20", toHardware, "10.98.0.20:68"},
		{"selecting with the broadcast flag", []dhcpv4.Modifier{requested("10.98.0.20"), server("10.98.0.1"), dhcpv4.WithBroadcast(true)}, ack, "10.98.0.20", toBroadcast, ""},
		{"selecting another server is not answered", []dhcpv4.Modifier{requested("10.98.0.20"), server("10.98.0.9")}, 0, "", 0, ""},
		{"init-reboot with its address", []dhcpv4.Modifier{requested("10.98.0.20")}, ack, "10.98.0.20", toHardware, "10.98.0.20:68"},
		{"init-reboot with a free address that this server forgot", []dhcpv4.Modifier{requested("10.98.0.25")}, ack, "10.98.0.25", toHardware, "10.98.0.25:68"},
		{"init-reboot with somebody else's address", []dhcpv4.Modifier{requested("10.98.0.21")}, nak, "0.0.0.0", toBroadcast, ""},
		{"init-reboot from another network", []dhcpv4.Modifier{requested("192.168.1.5")}, nak, "0.0.0.0", toBroadcast, ""},
		{"init-reboot with the server's address", []dhcpv4.Modifier{requested("10.98.0.1")}, nak, "0.0.0.0", toBroadcast, ""},
		{"renewing", []dhcpv4.Modifier{ciaddr("10.98.0.20")}, ack, "10.98.0.20", toAddress, "10.98.0.20:68"},
		{"renewing somebody else's address", []dhcpv4.Modifier{ciaddr("10.98.0.21")}, nak, "0.0.0.0", toBroadcast, ""},
		{"asking for nothing", nil, nak, "0.0.0.0", toBroadcast, ""},
		{"an address of a claimed holder is no destination", []dhcpv4.Modifier{requested("10.98.0.20"), server("10.98.0.1"), ciaddr("10.98.0.77")}, ack, "10.98.0.20", toHardware, "10.98.0.20:68"},
		{"through a relay", []dhcpv4.Modifier{requested("10.98.0.20"), relay("10.98.0.200")}, ack, "10.98.0.20", toAddress, "10.98.0.200:67"},
		{"refused through a relay", []dhcpv4.Modifier{requested("10.98.0.21"), relay("10.98.0.200")}, nak, "0.0.0.0", toAddress, "10.98.0.200:67"},
		{"through a relay of another subnet", []dhcpv4.Modifier{requested("10.98.0.20"), relay("10.99.0.200")}, 0, "", 0, ""},
		{"through a relay that selects our link", []dhcpv4.Modifier{requested("10.98.0.20"), relay("10.99.0.200"), generic(82, 5, 4, 10, 98, 0, 0)}, ack, "10.98.0.20", toAddress, "10.99.0.200:67"},
		{"through a relay that stands in for the server", []dhcpv4.Modifier{requested("10.98.0.20"), relay("10.98.0.200"), server("10.98.0.200"), generic(82, 11, 4, 10, 98, 0, 200)}, ack, "10.98.0.20", toAddress, "10.98.0.200:67"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := newTestDHCP("10.98.0.30")
			// The other box has 10.98.0.21.
			for _, mac := range []net.HardwareAddr{boxMAC, otherMAC} {
				s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeDiscover, mac))
			}
			if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeRequest, otherMAC, requested("10.98.0.21"), server("10.98.0.1"))); r.line == nil {
				t.Fatal("the other box got no lease")
			}
			req := ask(t, dhcpv4.MessageTypeRequest, boxMAC, c.req...)
			r := s.handle(t.Context(), dayOne, req)
			if c.want == 0 {
				if r.msg != nil {
					t.Errorf("got an answer: %s", r.msg.Summary())
				}
				return
			}
			if r.msg == nil {
				t.Fatal("got no answer")
			}
			if got := r.msg.MessageType(); got != c.want {
				t.Errorf("answer is %s, want %s", got, c.want)
			}
			if got := r.msg.YourIPAddr.String(); got != c.address {
				t.Errorf("address is %s, want %s", got, c.address)
			}
			if r.delivery != c.delivery || c.to != "" && r.to.String() != c.to {
				t.Errorf("delivery is %d to %s, want %d to %s", r.delivery, r.to, c.delivery, c.to)
			}
			if (r.line != nil) != (c.want == ack) {
				t.Errorf("line to store is %q", r.line)
			}
			if want := req.Options.Get(dhcpv4.OptionRelayAgentInformation); !bytes.Equal(r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation), want) {
				t.Errorf("relay information came back as %x, want %x", r.msg.Options.Get(dhcpv4.OptionRelayAgentInformation), want)
			}
			checkReply(t, s, req, r)
		})
	}
}

// checkReply holds every reply to what firmware demands of it.
func checkReply(t testing.TB, s *dhcpServer, req *dhcpv4.DHCPv4, r reply) {
	t.Helper()
	if r.msg == nil {
		return
	}
	raw := r.msg.ToBytes()
	if len(raw) > 1472 {
		t.Errorf("a reply of %d bytes; firmware drops more than 1472", len(raw))
	}
	m, err := dhcpv4.FromBytes(raw)
	if err != nil {
		t.Fatalf("the reply does not parse: %v", err)
	}
	if m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != req.TransactionID || !bytes.Equal(m.ClientHWAddr, req.ClientHWAddr) {
		t.Errorf("the reply is not one to the request: %s", m.Summary())
	}
	if len(m.ServerIdentifier()) != 4 {
		t.Error("the reply has no server identifier")
	}
	if yi, ok := v4(m.YourIPAddr); ok {
		if !s.leases.usable(yi) {
			t.Errorf("address %s is not one to lease", yi)
		}
		if m.SubnetMask() == nil || m.IPAddressLeaseTime(0) == 0 {
			t.Error("a lease without mask or time")
		}
	}
	if want := req.Options.Get(dhcpv4.OptionClientMachineIdentifier); want != nil && !bytes.Equal(m.Options.Get(dhcpv4.OptionClientMachineIdentifier), want) {
		t.Error("the machine identifier did not come back")
	}
	if c := identify(req); c.kind == pxeClient && r.delivery != toAddress && m.Options.Has(dhcpv4.OptionClassIdentifier) {
		t.Error("an offer to PXE with a class: the firmware would go to port 4011")
	}
}

func TestEachKindOfClientIsToldWhatItBoots(t *testing.T) {
	const disk = "http://10.98.0.1/boot/" + diskBootFile
	installed := Host{State: Installed, Installed: dayOne}
	again := Host{State: Installed, Installed: dayOne, Reinstall: true}
	class := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptClassIdentifier(s)) }
	for _, c := range []struct {
		name  string
		req   []dhcpv4.Modifier
		host  *Host
		fail  error
		file  string // option 67
		field string // header field
		class string
	}{
		{"Linux", []dhcpv4.Modifier{class("MSFT 5.0")}, nil, nil, "", "", ""},
		{"UEFI PXE x64", []dhcpv4.Modifier{class("PXEClient:Arch:00007:UNDI:003016"), generic(93, 0, 7)}, nil, nil, "installer.efi\x00", "installer.efi", ""},
		{"UEFI PXE that says EBC", []dhcpv4.Modifier{class("PXEClient:Arch:00009"), generic(93, 0, 9)}, nil, nil, "installer.efi\x00", "installer.efi", ""},
		{"a list of architectures", []dhcpv4.Modifier{class("PXEClient"), generic(93, 0, 0, 0, 7)}, nil, nil, "installer.efi\x00", "installer.efi", ""},
		{"BIOS PXE", []dhcpv4.Modifier{class("PXEClient:Arch:00000"), generic(93, 0, 0)}, nil, nil, "", "", ""},
		{"PXE without an architecture", []dhcpv4.Modifier{class("PXEClient")}, nil, nil, "", "", ""},
		{"arm64 without an installer", []dhcpv4.Modifier{class("PXEClient"), generic(93, 0, 11)}, nil, nil, "", "", ""},
		{"UEFI HTTP x64", []dhcpv4.Modifier{class("HTTPClient:Arch:00016"), generic(93, 0, 16)}, nil, nil, "http://10.98.0.1/boot/installer.efi", "", "HTTPClient"},
		{"iPXE", []dhcpv4.Modifier{class("PXEClient:Arch:00007"), generic(93, 0, 7), generic(77, []byte("iPXE")...)}, nil, nil, "http://10.98.0.1/boot/installer.efi", "", ""},
		{"the installer", []dhcpv4.Modifier{class(api.VendorClass)}, nil, nil, "http://10.98.0.1/", "", ""},
		{"the installer of an installed host", []dhcpv4.Modifier{class(api.VendorClass)}, &installed, nil, "http://10.98.0.1/", "", ""},
		{"UEFI PXE of an installed host", []dhcpv4.Modifier{class("PXEClient"), generic(93, 0, 7)}, &installed, nil, diskBootFile + "\x00", diskBootFile, ""},
		{"UEFI HTTP of an installed host", []dhcpv4.Modifier{class("HTTPClient"), generic(93, 0, 16)}, &installed, nil, disk, "", "HTTPClient"},
		{"UEFI PXE of a host to be reinstalled", []dhcpv4.Modifier{class("PXEClient"), generic(93, 0, 7)}, &again, nil, "installer.efi\x00", "installer.efi", ""},
		{"UEFI PXE while the store fails", []dhcpv4.Modifier{class("PXEClient"), generic(93, 0, 7)}, nil, errors.New("store is away"), diskBootFile + "\x00", diskBootFile, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, hosts := newTestDHCP("10.98.0.30")
			if c.host != nil {
				hosts.hosts[boxMAC.String()] = *c.host
			}
			hosts.err = c.fail
			for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest} {
				mods := c.req
				if kind == dhcpv4.MessageTypeRequest {
					mods = append([]dhcpv4.Modifier{requested("10.98.0.20"), server("10.98.0.1")}, mods...)
				}
				req := ask(t, kind, boxMAC, mods...)
				r := s.handle(t.Context(), dayOne, req)
				if r.msg == nil {
					t.Fatalf("no answer to %s", kind)
				}
				checkReply(t, s, req, r)
				if got := string(r.msg.Options.Get(dhcpv4.OptionBootfileName)); got != c.file {
					t.Errorf("%s: boot file is %q, want %q", kind, got, c.file)
				}
				if r.msg.BootFileName != c.field {
					t.Errorf("%s: file field is %q, want %q", kind, r.msg.BootFileName, c.field)
				}
				if got := r.msg.ClassIdentifier(); got != c.class {
					t.Errorf("%s: class is %q, want %q", kind, got, c.class)
				}
			}
		})
	}
}

func TestPort4011NamesTheSameFile(t *testing.T) {
	s, _ := newTestDHCP("10.98.0.30")
	from := netip.MustParseAddrPort("10.98.0.20:4011")
	pxe := []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")), generic(93, 0, 7), ciaddr("10.98.0.20")}
	r := s.bootServer(t.Context(), ask(t, dhcpv4.MessageTypeRequest, boxMAC, pxe...), from)
	if r.msg == nil {
		t.Fatal("no answer")
	}
	if r.to != from || r.delivery != toAddress || r.line != nil {
		t.Errorf("the answer goes to %s by %d and stores %q", r.to, r.delivery, r.line)
	}
	if r.msg.BootFileName != "installer.efi" || r.msg.YourIPAddr.String() != "0.0.0.0" || r.msg.ClientIPAddr.String() != "10.98.0.20" || r.msg.ClassIdentifier() != "PXEClient" {
		t.Errorf("the answer is %s", r.msg.Summary())
	}
	if r := s.bootServer(t.Context(), ask(t, dhcpv4.MessageTypeRequest, boxMAC, pxe...), netip.MustParseAddrPort("192.0.2.1:4011")); r.msg != nil {
		t.Error("an address of another network is answered")
	}
	if r := s.bootServer(t.Context(), ask(t, dhcpv4.MessageTypeRequest, boxMAC), from); r.msg != nil {
		t.Error("a client that is not PXE is answered")
	}
}

func TestDeclinedReleasedAndExhaustedAddresses(t *testing.T) {
	s, _ := newTestDHCP("10.98.0.21") // two addresses
	lease := func(mac net.HardwareAddr, a string) bool {
		return s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeRequest, mac, requested(a), server("10.98.0.1"))).line != nil
	}
	third := net.HardwareAddr{2, 0, 0, 0, 0, 3}
	if !lease(boxMAC, "10.98.0.20") || !lease(otherMAC, "10.98.0.21") {
		t.Fatal("no lease")
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeDiscover, third)); r.msg != nil {
		t.Fatalf("a third client of two addresses is offered %s", r.msg.YourIPAddr)
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeRelease, third, ciaddr("10.98.0.20"), server("10.98.0.1"))); r.line != nil {
		t.Error("a client released another's lease")
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeRelease, boxMAC, ciaddr("10.98.0.20"), server("10.98.0.1"))); r.line == nil || r.msg != nil {
		t.Errorf("a release stores %q and is answered %v", r.line, r.msg)
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeDiscover, third)); r.msg == nil || r.msg.YourIPAddr.String() != "10.98.0.20" {
		t.Fatalf("the released address is not offered: %v", r.msg)
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeDecline, third, requested("10.98.0.20"), server("10.98.0.1"))); r.line == nil || r.msg != nil {
		t.Errorf("a decline stores %q and is answered %v", r.line, r.msg)
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeDiscover, third)); r.msg != nil {
		t.Errorf("a declined address is offered: %s", r.msg.YourIPAddr)
	}
	later := dayOne.Add(declineHold)
	if r := s.handle(t.Context(), later, ask(t, dhcpv4.MessageTypeDiscover, third)); r.msg == nil || r.msg.YourIPAddr.String() != "10.98.0.20" {
		t.Errorf("a declined address never comes back: %v", r.msg)
	}
	if r := s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeInform, otherMAC, ciaddr("10.98.0.21"))); r.msg == nil || r.msg.YourIPAddr.String() != "0.0.0.0" || r.msg.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
		t.Errorf("INFORM is answered %v", r.msg)
	}
}

func TestPacketsThatAreNotRequestsFromEthernetAreRefused(t *testing.T) {
	good := ask(t, dhcpv4.MessageTypeDiscover, boxMAC).ToBytes()
	change := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		ok   bool
	}{
		{"a DISCOVER", good, true},
		{"a DISCOVER without an end option", bytes.TrimRight(good, "\x00\xff"), true},
		{"a reply", change(0, 2), false},
		{"InfiniBand", change(1, 32), false},
		{"a short hardware address", change(2, 5), false},
		{"a long hardware address", change(2, 255), false},
		{"no hardware address", change(28, 0, 0, 0, 0, 0, 0), false},
		{"a multicast hardware address", change(28, 1), false},
		{"no cookie", change(236, 0), false},
		{"an option that runs out of the packet", append(change(0, 1)[:240], 53, 200, 1), false},
		{"a cut-off header", good[:239], false},
		{"nothing", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := parseDHCP(c.b); (err == nil) != c.ok {
				t.Errorf("error is %v, want ok %v", err, c.ok)
			}
		})
	}
}

func TestMachineIdentifierIsSpeltAsSMBIOSDoes(t *testing.T) {
	guid := []byte{0, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
	if got, want := smbiosUUID(guid), "00112233-4455-6677-8899-aabbccddeeff"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, none := range [][]byte{nil, {0}, make([]byte, 17), append([]byte{0}, bytes.Repeat([]byte{255}, 16)...), append([]byte{1}, guid[1:]...)} {
		if got := smbiosUUID(none); got != "" {
			t.Errorf("%x: got %q, want none", none, got)
		}
	}
}

func FuzzDHCP(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeInform} {
		f.Add(ask(f, kind, boxMAC, requested("10.98.0.20"), server("10.98.0.1"), ciaddr("10.98.0.20")).ToBytes())
	}
	f.Add(ask(f, dhcpv4.MessageTypeDiscover, otherMAC, relay("10.98.0.200"), generic(82, 5, 4, 10, 98, 0, 0, 11, 9), generic(93, 0, 7), generic(60, []byte("PXEClient")...), generic(97, 0)).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _ := newTestDHCP("10.98.0.21")
		s.handle(t.Context(), dayOne, ask(t, dhcpv4.MessageTypeRequest, otherMAC, requested("10.98.0.21"), server("10.98.0.1")))
		req, err := parseDHCP(b)
		if err != nil {
			return
		}
		for range 2 {
			checkReply(t, s, req, s.handle(t.Context(), dayOne, req))
		}
		checkReply(t, s, req, s.bootServer(t.Context(), req, netip.MustParseAddrPort("10.98.0.20:4011")))
		if holder, ok := s.leases.holder(dayOne, addr("10.98.0.21")); macAddr(req.ClientHWAddr) != macAddr(otherMAC) && (!ok || holder != macAddr(otherMAC)) {
			t.Error("a client took another's lease")
		}
	})
}

func BenchmarkDHCPDecision(b *testing.B) {
	s, _ := newTestDHCP("10.98.0.200")
	raw := ask(b, dhcpv4.MessageTypeRequest, boxMAC, requested("10.98.0.20"), server("10.98.0.1"), relay("10.98.0.200")).ToBytes()
	b.ReportAllocs()
	for b.Loop() {
		req, err := parseDHCP(raw)
		if err != nil {
			b.Fatal(err)
		}
		if r := s.handle(b.Context(), dayOne, req); len(r.msg.ToBytes()) < 300 {
			b.Fatal("no answer")
		}
	}
}
