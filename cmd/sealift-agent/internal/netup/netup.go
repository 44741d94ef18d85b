// Package netup brings up the network of a machine that no one is standing
// at: Config.Up tries every Ethernet interface at once and forever, until the
// first DHCP lease, and Config.Keep renews that lease for as long as the
// machine runs. A cable that is plugged in later, a switch that takes its time
// or a server that was down are the normal case.
package netup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config says how to bring up the network. Log is required.
type Config struct {
	// VendorClass is sent as option 60. Optional.
	VendorClass string
	// Iface restricts the search to one interface, of any kind. Optional: all
	// physical Ethernet interfaces.
	Iface string
	// ResolvConf is the file to write name servers to, with its directory made.
	// Optional: none is written.
	ResolvConf string
	Log        *slog.Logger
}

// Times of the search.
const (
	rescanEvery   = 5 * time.Second        // in case the kernel's word of a new interface was lost
	carrierPoll   = 20 * time.Millisecond  // carrier comes 1-5 ms after link up in a VM, 2-4 s on copper
	carrierSlow   = 500 * time.Millisecond // after carrierFast
	carrierFast   = 5 * time.Second        //
	complainEvery = 30 * time.Second       // about what is missing
	noIfaceAfter  = 5 * time.Second        // before the first complaint that there is no interface
	attemptFirst  = 2 * time.Second        // wait for the first answer, doubled once
	pauseFirst    = 500 * time.Millisecond // between attempts
	pauseMax      = 15 * time.Second       //
	attemptTries  = 2                      //
	keepTick      = 5 * time.Second        // how often Keep looks at carrier and clock
	keepRetry     = time.Minute            // RFC 2131 4.4.5: at least this between renewals
)

// Up brings up the loopback interface, then the first interface that gets a
// lease, and configures it. It only gives up when ctx ends.
func (c *Config) Up(ctx context.Context) (*Lease, error) {
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	search, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	found := make(chan *Lease)
	// Interfaces appear late: their module is being loaded, or they are USB.
	updates := make(chan netlink.LinkUpdate)
	unsubscribe := make(chan struct{})
	if err := netlink.LinkSubscribe(updates, unsubscribe); err != nil {
		return nil, fmt.Errorf("bring up the network: watch for interfaces: %w", err)
	}
	defer func() {
		close(unsubscribe)
		// The sender closes updates, but may have one to get rid of first.
		go func() {
			for range updates {
			}
		}()
	}()
	appeared := updates

	known := map[int]bool{}
	complained := time.Now()
	rescan := time.NewTimer(0)
	defer rescan.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("bring up the network: %w", ctx.Err())
		case l := <-found:
			cancel()
			wg.Wait()
			if err := c.apply(l, nil); err != nil {
				return nil, err
			}
			return l, nil
		case _, ok := <-appeared:
			if !ok {
				appeared = nil // the timer is left
			}
		case <-rescan.C:
		}
		links, err := c.links()
		if err != nil {
			return nil, err
		}
		for _, link := range links {
			if i := link.Attrs().Index; !known[i] {
				known[i] = true
				wg.Go(func() { c.try(search, link.Attrs().Index, link.Attrs().Name, found) })
			}
		}
		if len(known) == 0 && time.Since(complained) > noIfaceAfter {
			complained = time.Now().Add(complainEvery - noIfaceAfter)
			c.Log.Warn("no network interface found yet")
		}
		rescan.Reset(rescanEvery)
	}
}

// links lists the interfaces to try.
func (c *Config) links() ([]netlink.Link, error) {
	if c.Iface != "" {
		link, err := netlink.LinkByName(c.Iface)
		if err != nil {
			var missing netlink.LinkNotFoundError
			if errors.As(err, &missing) {
				return nil, nil
			}
			return nil, fmt.Errorf("find interface %s: %w", c.Iface, err)
		}
		return []netlink.Link{link}, nil
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []netlink.Link
	for _, link := range all {
		a := link.Attrs()
		// "device" is netlink's word for a link without a kind: hardware.
		if link.Type() == "device" && a.EncapType == "ether" && a.Flags&net.FlagLoopback == 0 {
			out = append(out, link)
		}
	}
	return out, nil
}

// try asks for a lease on one interface until it gets one or ctx ends.
func (c *Config) try(ctx context.Context, index int, name string, found chan<- *Lease) {
	log := c.Log.With("iface", name)
	pause := pauseFirst
	var complained time.Time
	for ctx.Err() == nil {
		err := waitCarrier(ctx, index, log)
		var l *Lease
		if err == nil {
			l, err = c.request(ctx, index)
		}
		if err == nil {
			select {
			case found <- l:
			case <-ctx.Done():
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(complained) > complainEvery {
			complained = time.Now()
			log.Warn("no DHCP lease yet", "err", err)
		}
		sleep(ctx, pause/2+rand.N(pause))
		pause = min(2*pause, pauseMax)
	}
}

// waitCarrier sets the link up and waits until it is connected.
func waitCarrier(ctx context.Context, index int, log *slog.Logger) error {
	start := time.Now()
	complained := false
	for {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("look at interface %d: %w", index, err)
		}
		if link.Attrs().Flags&net.FlagUp == 0 {
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
			}
		} else if hasCarrier(link) {
			return nil
		}
		poll := carrierPoll
		if time.Since(start) > carrierFast {
			poll = carrierSlow
			if !complained {
				complained = true
				log.Warn("the interface has no carrier: is the cable plugged in?")
			}
		}
		if err := sleep(ctx, poll); err != nil {
			return err
		}
	}
}

func hasCarrier(link netlink.Link) bool {
	return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

// apply configures the interface as the lease says, and takes away the
// address of the lease before it, if that was another.
func (c *Config) apply(l, before *Lease) error {
	link, err := netlink.LinkByName(l.Iface)
	if err != nil {
		return fmt.Errorf("configure %s: %w", l.Iface, err)
	}
	if l.MTU != 0 && l.MTU != link.Attrs().MTU {
		// A link that cannot do it keeps its own: that is slower, not broken.
		if err := netlink.LinkSetMTU(link, l.MTU); err != nil {
			c.Log.Warn("MTU not set", "iface", l.Iface, "mtu", l.MTU, "err", err)
		}
	}
	if before != nil && before.Address != l.Address {
		old := &netlink.Addr{IPNet: ipNet(before.Address)}
		if err := netlink.AddrDel(link, old); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("configure %s: remove %s: %w", l.Iface, before.Address, err)
		}
	}
	left := int(time.Until(l.Acquired.Add(l.Expire)).Seconds())
	if left <= 0 {
		return fmt.Errorf("configure %s: the lease of %s has expired", l.Iface, l.Address)
	}
	addr := &netlink.Addr{IPNet: ipNet(l.Address), ValidLft: left, PreferedLft: left}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("configure %s: add %s: %w", l.Iface, l.Address, err)
	}
	for _, r := range l.Routes {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r.To)}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
			if !l.Address.Masked().Contains(r.Via) {
				// A gateway outside the subnet, as hosting networks have it.
				route.Flags = int(netlink.FLAG_ONLINK)
			}
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("configure %s: route to %s via %s: %w", l.Iface, r.To, r.Via, err)
		}
	}
	if c.ResolvConf == "" {
		return nil
	}
	return writeFile(c.ResolvConf, l.ResolvConf())
}

// writeFile replaces a file in one step, so that no reader sees half of it.
func writeFile(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(name+".new", b, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
