package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/sealift/sealift/cmd/sealift/internal/lab"
)

// The box's network, from the blocks that are for documentation only (RFC
// 5737), so that no attestation service has an address there. A service that
// is named, not numbered, gets serviceIP.
const (
	lanIP     = "192.0.2.1"
	lanFirst  = "192.0.2.50"
	lanLast   = "192.0.2.99"
	lanNet    = "192.0.2.0/24"
	serviceIP = "198.51.100.1"
	tap       = "box"
)

// endpoint is where an image looks for its attestation service.
type endpoint struct {
	host string // as in the URL: what the certificate must name
	addr netip.AddrPort
}

// parseEndpoint reads the attestation URL of an image.
func parseEndpoint(text string) (endpoint, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return endpoint{}, fmt.Errorf("the image's attestation URL is %.200q, want https://HOST:PORT", text)
	}
	port := uint64(443)
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return endpoint{}, fmt.Errorf("the image's attestation URL is %.200q: bad port", text)
		}
	}
	e := endpoint{host: u.Hostname()}
	ip, err := netip.ParseAddr(e.host)
	if err != nil {
		ip = netip.MustParseAddr(serviceIP)
	}
	if !ip.Is4() || ip.IsLoopback() || netip.MustParsePrefix(lanNet).Contains(ip) {
		return endpoint{}, fmt.Errorf("the image's attestation service is at %s, which a test network cannot have: want a name or an IPv4 address outside of %s", ip, lanNet)
	}
	e.addr = netip.AddrPortFrom(ip, uint16(port))
	return e, nil
}

// network is a store with one box and nothing but the attestation service
// behind its router.
type network struct {
	space  *lab.Namespace
	router *exec.Cmd
	ln     net.Listener
	down   chan struct{} // closed when the router has ended
	log    string        // file with the router's messages
}

// newNetwork makes the network and listens where the image will ask.
func newNetwork(ctx context.Context, dir string, e endpoint) (_ *network, err error) {
	space, err := lab.NewNamespace(ctx, "image test")
	if err != nil {
		return nil, err
	}
	n := &network{space: space, down: make(chan struct{}), log: filepath.Join(dir, "router.log")}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if err := space.IP(ctx,
		"link add lan type bridge", "addr add "+lanIP+"/24 dev lan", "link set lan up",
		"tuntap add "+tap+" mode tap", "link set "+tap+" master lan up",
		"addr add "+e.addr.Addr().String()+"/32 dev lo"); err != nil {
		return nil, err
	}
	if n.ln, err = space.Listen(ctx, e.addr); err != nil {
		return nil, err
	}
	// Every name leads to the service: there is nothing else to be found. The
	// router changes no group, which nobody may in a user namespace.
	n.router = space.Command(context.WithoutCancel(ctx), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
		"--user=root", "--group=", "--interface=lan", "--bind-interfaces", "--leasefile-ro", "--no-ping",
		"--no-resolv", "--no-hosts", "--address=/#/"+e.addr.Addr().String(),
		"--dhcp-range="+lanFirst+","+lanLast+",255.255.255.0,1h", "--dhcp-option=3,"+lanIP, "--pid-file", "--log-facility=-")
	n.router.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(n.log)
	if err != nil {
		n.router = nil
		return nil, err
	}
	defer log.Close()
	n.router.Stdout, n.router.Stderr = log, log
	if err := n.router.Start(); err != nil {
		n.router = nil
		return nil, fmt.Errorf("start the test network's router: %w", err)
	}
	go func() {
		defer close(n.down)
		n.router.Wait() // why it ended is in its log
	}()
	return n, nil
}

// fault says why the router has ended.
func (n *network) fault() error {
	text, err := os.ReadFile(n.log)
	if err != nil {
		return fmt.Errorf("the test network's router has ended: %w", err)
	}
	return fmt.Errorf("the test network's router has ended: %s", bytes.TrimSpace(text))
}

// close takes the network down.
func (n *network) close() error {
	var errs []error
	if n.router != nil {
		n.router.Process.Kill()
		<-n.down
	}
	if n.ln != nil {
		if err := n.ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, n.space.Close())...)
}
