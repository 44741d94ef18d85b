package provisioner

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/sealift/sealift/provisioner/api"
)

// clientKind says what a DHCP client is, which decides what it is told about
// booting.
type clientKind int

const (
	plainClient     clientKind = iota // an operating system
	pxeClient                         // UEFI PXE: TFTP (RFC 4578)
	ipxeClient                        // iPXE: the same architecture codes, but it takes a URL
	httpClient                        // UEFI HTTP boot (UEFI 2.10, 24.7.3)
	installerClient                   // Sealift's installer: wants the base URL
)

func (k clientKind) String() string {
	return [...]string{"plain", "pxe", "ipxe", "http", "installer"}[k]
}

// DHCP option codes that have no name in package dhcpv4.
const (
	optionIPXE           = 175 // iPXE encapsulated options
	ipxeNoProxyDHCP      = 176 // sub-option: do not wait for a proxy offer
	relayLinkSelection   = 5   // RFC 3527
	relayServerOverride  = 11  // RFC 5107
	clientUUIDOptionSize = 17  // option 97: type 0 and 16 bytes, RFC 4578 2.3
)

// client is what a request says about its sender.
type client struct {
	mac  macAddr
	kind clientKind
	arch string // GOARCH spelling, or empty if no installer can run there
	guid []byte // option 97 as received, to be echoed
	uuid string // its UUID in the spelling of SMBIOS, or empty
}

func (c client) key() api.HostKey { return api.HostKey{MAC: c.mac.String(), UUID: c.uuid} }

// boots reports whether the client is one whose boot the provisioner steers.
func (c client) boots() bool { return c.kind != plainClient }

// identify reads what a request says about its sender. The request's hardware
// address has six bytes.
func identify(req *dhcpv4.DHCPv4) client {
	c := client{mac: macAddr(req.ClientHWAddr)}
	if guid := req.Options.Get(dhcpv4.OptionClientMachineIdentifier); guid != nil {
		c.guid = guid
		c.uuid = smbiosUUID(guid)
	}
	class := req.ClassIdentifier()
	switch {
	case strings.TrimRight(class, "\x00") == api.VendorClass:
		c.kind = installerClient
		return c
	case strings.HasPrefix(class, "PXEClient"):
		c.kind = pxeClient
		if isIPXE(req) {
			c.kind = ipxeClient
		}
	case strings.HasPrefix(class, "HTTPClient"):
		c.kind = httpClient
	default:
		return c
	}
	c.arch = firmwareArch(req)
	return c
}

// firmwareArch maps option 93 (RFC 4578 2.1, and the IANA registry for HTTP)
// to the installer that runs there: the first code in the list that has one.
func firmwareArch(req *dhcpv4.DHCPv4) string {
	for codes := req.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(codes) >= 2; codes = codes[2:] {
		switch binary.BigEndian.Uint16(codes) {
		case 7, 9, 0x10: // 9 is EFI byte code in the registry, and x64 in some firmware
			return "amd64"
		case 0xB, 0x13:
			return "arm64"
		}
	}
	return ""
}

// isIPXE reads the user class (option 77). iPXE sends the bare word, without
// the length bytes of RFC 3004.
func isIPXE(req *dhcpv4.DHCPv4) bool {
	class := string(req.Options.Get(dhcpv4.OptionUserClassInformation))
	return class == "iPXE" || class == "\x04iPXE"
}

// smbiosUUID decodes option 97. Its first three fields are little-endian, as
// in SMBIOS type 1 (DSP0134 7.2.1). A UUID of all zeros or all ones means that
// the board has none.
func smbiosUUID(guid []byte) string {
	if len(guid) != clientUUIDOptionSize || guid[0] != 0 {
		return ""
	}
	g := [16]byte(guid[1:])
	if g == [16]byte{} || bytes.Count(g[:], []byte{0xff}) == len(g) {
		return ""
	}
	b := []byte{
		g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6],
		g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15],
	}
	x := hex.EncodeToString(b)
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}
