package netup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// modifiers are what the agent adds to every message.
func (c *Config) modifiers() []dhcpv4.Modifier {
	m := []dhcpv4.Modifier{dhcpv4.WithRequestedOptions(
		dhcpv4.OptionSubnetMask,
		dhcpv4.OptionRouter,
		dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionDomainName,
		dhcpv4.OptionInterfaceMTU,
		dhcpv4.OptionIPAddressLeaseTime,
		dhcpv4.OptionRenewTimeValue,
		dhcpv4.OptionRebindingTimeValue,
		dhcpv4.OptionDNSDomainSearchList,
		dhcpv4.OptionClasslessStaticRoute,
	)}
	if c.VendorClass != "" {
		m = append(m,
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier(c.VendorClass)),
			dhcpv4.WithRequestedOptions(dhcpv4.OptionBootfileName))
	}
	return m
}

// client opens a DHCP client on the link. Each attempt needs a new one: the
// receiver of a client ends for good when its link goes down.
func (c *Config) client(link netlink.Link) (*nclient4.Client, error) {
	client, err := nclient4.New(link.Attrs().Name, nclient4.WithTimeout(attemptFirst), nclient4.WithRetry(attemptTries))
	if err != nil {
		return nil, fmt.Errorf("open a DHCP client on %s: %w", link.Attrs().Name, err)
	}
	return client, nil
}

// request gets a new lease (RFC 2131 3.1: discover, offer, request, ack).
func (c *Config) request(ctx context.Context, index int) (l *Lease, err error) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("look at interface %d: %w", index, err)
	}
	client, err := c.client(link)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	got, err := client.Request(ctx, c.modifiers()...)
	if err != nil {
		return nil, fmt.Errorf("ask for a lease: %w", err)
	}
	return parseLease(link.Attrs().Name, link.Attrs().HardwareAddr.String(), got.ACK, time.Now())
}

// renew extends a lease (RFC 2131 4.4.5). The request is broadcast: a server
// answers it as it answers a unicast one, and after T2 it must be broadcast.
func (c *Config) renew(ctx context.Context, old *Lease) (l *Lease, err error) {
	link, err := netlink.LinkByName(old.Iface)
	if err != nil {
		return nil, fmt.Errorf("renew the lease: %w", err)
	}
	ack, err := old.ack()
	if err != nil {
		return nil, fmt.Errorf("renew the lease: %w", err)
	}
	client, err := c.client(link)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	got, err := client.Renew(ctx, &nclient4.Lease{Offer: ack, ACK: ack, CreationTime: old.Acquired}, c.modifiers()...)
	if err != nil {
		return nil, fmt.Errorf("renew the lease of %s: %w", old.Address, err)
	}
	return parseLease(old.Iface, old.MAC, got.ACK, time.Now())
}

// Keep renews the lease until ctx ends. The kernel removes an address whose
// lease ran out; Keep then asks for a new one for as long as it takes.
// Changed, which is optional, is called after each change of the address.
func (c *Config) Keep(ctx context.Context, l *Lease, changed func(*Lease)) {
	only := *c
	only.Iface = l.Iface
	// The monotonic clock is lost in a lease that another process got, so
	// times are counted from now on.
	next := time.Now().Add(time.Until(l.Acquired.Add(l.Renew)))
	expire := time.Now().Add(time.Until(l.Acquired.Add(l.Expire)))
	connected := true
	for sleep(ctx, keepTick) == nil {
		if link, err := netlink.LinkByName(l.Iface); err == nil {
			was := connected
			connected = hasCarrier(link)
			if connected && !was {
				// It may be another network now: ask before the lease is due.
				next = time.Now()
			}
		}
		if !connected || time.Now().Before(next) {
			continue
		}
		fresh, err := c.renew(ctx, l)
		var nak *nclient4.ErrNak
		if errors.As(err, &nak) || err != nil && time.Now().After(expire) {
			c.Log.Warn("the DHCP lease is lost, asking for a new one", "address", l.Address, "err", err)
			fresh, err = only.replace(ctx, l)
		} else if err == nil {
			err = c.apply(fresh, l)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.Log.Warn("DHCP lease not renewed", "address", l.Address, "err", err)
			next = time.Now().Add(keepRetry/2 + rand.N(keepRetry))
			continue
		}
		moved := fresh.Address != l.Address
		l = fresh
		next, expire = time.Now().Add(l.Renew), time.Now().Add(l.Expire)
		if moved && changed != nil {
			changed(l)
		}
	}
}

// replace gets a new lease on the interface of the old one, and takes the old
// address away.
func (c *Config) replace(ctx context.Context, old *Lease) (*Lease, error) {
	link, err := netlink.LinkByName(old.Iface)
	if err != nil {
		return nil, fmt.Errorf("replace the lease: %w", err)
	}
	l, err := c.request(ctx, link.Attrs().Index)
	if err != nil {
		return nil, err
	}
	if err := c.apply(l, old); err != nil {
		return nil, err
	}
	return l, nil
}
