// Package provisioner puts an installer onto blank boxes over the network: it
// leases addresses (DHCPv4), sends the installer to firmware (TFTP, UEFI HTTP
// boot), tells the installer what to install, and keeps what it reports back.
//
// [Server] is all of it on one interface; [Store] remembers the hosts, with
// [FileHosts] as the implementation for one process; a [RecordSink] takes the
// install records. The standards are RFC 2131 and 2132 (DHCP), RFC 4578 (PXE
// options), PXE 2.1, UEFI 2.10 chapter 24 (network boot), RFC 1350, 2347 to
// 2349 and 7440 (TFTP). README.md says what is answered to whom, and why.
//
// Nothing that is served here is secret, and nobody has to trust it: firmware
// checks the installer's signature, and the installer the image's. So the
// provisioner needs no key, and believes no client either; a host's identity
// is a hint ([api.HostKey]) until the attestation service has proof.
package provisioner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/provisioner/api"
)

// The files of a built image, and of the boot directory. The installer for
// amd64 has the name in api.PathBoot.
const (
	manifestFile    = "manifest.json"
	bundleFile      = "manifest.json.sigstore.json"
	diskFile        = "disk.raw.zst"
	defaultBootFile = "installer.efi"
	arm64BootFile   = "installer-arm64.efi"
	bootDir         = "boot/"
)

// Server provisions the hosts on one interface. The zero value is not usable;
// fields are required unless marked Optional. They must not change while Run
// runs.
type Server struct {
	// Interface is the network interface to serve, an Ethernet one.
	Interface string
	// Address is the server's address on Interface, and the subnet that it
	// serves. The interface must have the address.
	Address netip.Prefix
	// Range holds the addresses to lease. It lies within the subnet.
	Range Range
	// Lease is how long a lease lasts. Optional; an hour if zero, at least a minute.
	Lease time.Duration
	// Router is the default gateway that clients are told. Optional: a factory
	// network needs none.
	Router netip.Addr
	// DNS are the name servers that clients are told. Optional, at most 4.
	DNS []netip.Addr

	// LeaseFile keeps the leases over restarts. The directory must exist, and
	// should not be a network file system: every ACK waits for an fsync.
	LeaseFile string
	// Installers are the paths of the installer UKIs by architecture, in
	// GOARCH spelling: amd64, arm64. They are read once, when Run starts.
	Installers map[string]string
	// Images are the output directories of image builds by name, a name being
	// one path element of letters, digits, dots, dashes and underscores.
	Images map[string]string
	// Image is the image for hosts for which the Store names no other.
	// Optional if there is only one.
	Image string

	Hosts   Store
	Records RecordSink
	Log     *slog.Logger

	// HTTPPort is the port of HTTP boot and the install workflow. Optional; 80
	// if zero.
	HTTPPort uint16
	// TFTPPort is the port of TFTP. Optional; 69 if zero. Firmware knows no
	// other.
	TFTPPort uint16
	// SkipProbe starts at once, without 4 seconds of looking for another DHCP
	// server, for a network that is known to have none.
	SkipProbe bool
	// Ready is called once, when everything is being served. Optional.
	Ready func()
}

// Run serves until ctx ends, and then returns nil once all that was promised
// is stored. It binds every socket before it answers anybody, and returns an
// error that wraps ErrForeignDHCP if another DHCP server is on the network.
func (s *Server) Run(ctx context.Context) (err error) {
	if err := s.check(); err != nil {
		return fmt.Errorf("provisioner: %w", err)
	}
	iface, err := s.findInterface()
	if err != nil {
		return fmt.Errorf("provisioner: %w", err)
	}
	boot := make(map[string]*bootImage)  // by file name
	bootFiles := make(map[string]string) // by architecture
	tftpFiles := make(map[string][]byte)
	for arch, file := range s.Installers {
		image, err := loadBootImage(file)
		if err != nil {
			return fmt.Errorf("provisioner: %w", err)
		}
		name := bootFileName(arch)
		boot[name], bootFiles[arch], tftpFiles[name] = image, name, image.data
	}

	sockets, err := s.listen(ctx, iface)
	if err != nil {
		return fmt.Errorf("provisioner: %w", err)
	}
	defer func() { err = errors.Join(err, sockets.close()) }()

	leases := newLeaseTable(s.Range, s.reserved()...)
	leaseJournal, err := openJournal(s.LeaseFile, "leases", leases.load)
	if err != nil {
		return fmt.Errorf("provisioner: leases: %w", err)
	}
	leaseJournal.start(len(leases.lines()), leases.lines)
	// Before the sockets are closed: it sends the ACKs that waited for it.
	defer func() { err = errors.Join(err, leaseJournal.close()) }()

	if !s.SkipProbe {
		if err := probeDHCP(ctx, iface); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("provisioner: %w", err)
		}
	}

	quiet := &throttle{}
	baseURL := s.BaseURL()
	dhcp := &dhcpService{
		dhcpServer: &dhcpServer{
			id: s.Address.Addr(), subnet: s.Address.Masked(), router: s.Router, dns: s.DNS, lease: s.leaseTime(),
			leases: leases, hosts: s.Hosts, boot: bootFiles, baseURL: baseURL, log: s.Log, quiet: quiet,
		},
		iface: iface, journal: leaseJournal, main: sockets.dhcp, pxe: sockets.pxe, raw: sockets.raw,
	}
	tftp := &tftpServer{conn: sockets.tftp, addr: s.Address.Addr(), files: tftpFiles, mtu: iface.MTU, log: s.Log, quiet: quiet}
	workflow := &installer{
		hosts: s.Hosts, images: s.Images, image: s.defaultImage(), leases: leases, records: s.Records,
		log: s.Log, now: time.Now, busy: make(map[string]bool),
	}
	web := newHTTPServer(&httpHandler{boot: boot, images: s.Images, install: workflow, slots: make(chan struct{}, httpMaxRequests), log: s.Log}, s.Log)

	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return dhcp.run(gctx) })
	group.Go(func() error { return tftp.run(gctx) })
	group.Go(func() error { return workflow.redeliver(gctx) })
	group.Go(func() error {
		if err := web.Serve(sockets.http); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve http: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-gctx.Done()
		timeout, cancel := context.WithTimeout(context.WithoutCancel(gctx), httpCloseTimeout)
		defer cancel()
		if web.Shutdown(timeout) != nil {
			web.Close() // a disk image is being sent; its installer resumes
		}
		return nil
	})
	s.Log.Info("provisioner serves", "interface", s.Interface, "address", s.Address, "first", s.Range.First, "last", s.Range.Last, "url", baseURL, "boot", bootFiles)
	if s.Ready != nil {
		s.Ready()
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("provisioner: %w", err)
	}
	return nil
}

// BaseURL returns the URL that installers are told, which ends in a slash. The
// paths in package api are relative to it.
func (s *Server) BaseURL() string {
	host := s.Address.Addr().String()
	if p := s.httpPort(); p != 80 {
		host += ":" + strconv.Itoa(int(p))
	}
	return "http://" + host + "/"
}

// check refuses a configuration that could not work.
func (s *Server) check() error {
	switch {
	case s.Hosts == nil:
		return errors.New("no host store is set")
	case s.Records == nil:
		return errors.New("no record sink is set")
	case s.Log == nil:
		return errors.New("no logger is set")
	case s.LeaseFile == "":
		return errors.New("no lease file is set")
	case s.Lease != 0 && (s.Lease < time.Minute || s.Lease > 365*24*time.Hour):
		return fmt.Errorf("a lease of %v, want a minute to a year", s.Lease)
	case len(s.DNS) > 4:
		return fmt.Errorf("%d name servers, at most 4 are possible", len(s.DNS))
	}
	subnet := s.Address.Masked()
	if a := s.Address.Addr(); !a.Is4() || a.IsLoopback() || a.IsMulticast() || a.As4()[0] == 0 {
		return fmt.Errorf("address %s is not an IPv4 address that can be served from", s.Address)
	}
	// edk2 refuses a lease with a mask of 31 bits or more.
	if b := subnet.Bits(); b < 8 || b > 30 {
		return fmt.Errorf("address %s: a prefix of %d bits, want 8 to 30", s.Address, b)
	}
	r := s.Range
	if !r.First.Is4() || !r.Last.Is4() || !subnet.Contains(r.First) || !subnet.Contains(r.Last) || r.Last.Less(r.First) {
		return fmt.Errorf("range %s to %s: want ascending addresses within %s", r.First, r.Last, subnet)
	}
	if s.Router.IsValid() && !subnet.Contains(s.Router) {
		return fmt.Errorf("router %s is not within %s", s.Router, subnet)
	}
	for _, a := range s.DNS {
		if !a.Is4() {
			return fmt.Errorf("name server %s is not an IPv4 address", a)
		}
	}
	return s.checkContent()
}

// checkContent checks what is to be served.
func (s *Server) checkContent() error {
	if len(s.Installers) == 0 {
		return errors.New("no installer is set")
	}
	for arch := range s.Installers {
		if bootFileName(arch) == "" {
			return fmt.Errorf("installer for %q: want amd64 or arm64", arch)
		}
	}
	if len(s.Images) == 0 {
		return errors.New("no image is set")
	}
	name := regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)
	for image, dir := range s.Images {
		if !name.MatchString(image) {
			return fmt.Errorf("image name %q: want letters, digits, dots, dashes and underscores", image)
		}
		for _, file := range []string{manifestFile, bundleFile, diskFile} {
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
				return fmt.Errorf("image %s: %w", image, err)
			}
		}
	}
	if image := s.defaultImage(); image == "" {
		return fmt.Errorf("%d images and no default", len(s.Images))
	} else if _, ok := s.Images[image]; !ok {
		return fmt.Errorf("default image %q is not among the images", image)
	}
	return nil
}

func (s *Server) defaultImage() string {
	if s.Image == "" && len(s.Images) == 1 {
		for name := range s.Images {
			return name
		}
	}
	return s.Image
}

// bootFileName returns the name under which an architecture's installer is served.
func bootFileName(arch string) string {
	switch arch {
	case "amd64":
		return path.Base(api.PathBoot)
	case "arm64":
		return arm64BootFile
	}
	return ""
}

func (s *Server) leaseTime() time.Duration {
	if s.Lease == 0 {
		return time.Hour
	}
	return s.Lease
}

func (s *Server) httpPort() uint16 {
	if s.HTTPPort == 0 {
		return 80
	}
	return s.HTTPPort
}

func (s *Server) tftpPort() uint16 {
	if s.TFTPPort == 0 {
		return 69
	}
	return s.TFTPPort
}

// reserved returns the addresses that are nobody's to lease.
func (s *Server) reserved() []netip.Addr {
	subnet := s.Address.Masked()
	last := subnet.Addr().As4()
	for bit := subnet.Bits(); bit < 32; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	return []netip.Addr{s.Address.Addr(), s.Router, subnet.Addr(), netip.AddrFrom4(last)}
}

func (s *Server) findInterface() (*net.Interface, error) {
	iface, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", s.Interface, err)
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", s.Interface, err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.String() == s.Address.String() {
			return iface, nil
		}
	}
	return nil, fmt.Errorf("interface %s: it has %v, want %s", s.Interface, addrs, s.Address)
}
