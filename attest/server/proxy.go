package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/pires/go-proxyproto"
)

// Bounds of a header of the PROXY protocol (HAProxy's proxy-protocol.txt).
const (
	// proxyTimeout is how long it may take. Proxies send it at once, or with
	// the peer's first bytes; section 2 wants at least 3 s, for a TCP retransmit.
	proxyTimeout = 5 * time.Second
	// maxProxyHeader is how long it may be with all of its TLVs, bytes. The
	// longest that is usual has a certificate of 2 KiB in it.
	maxProxyHeader = 4 << 10
	// proxyBuffer holds a whole header of version 1, at most 107 bytes, and what
	// usually comes with one of version 2.
	proxyBuffer = 256
)

// trusted reports whether an address is in one of the networks.
func trusted(networks []netip.Prefix, addr net.Addr) bool {
	if len(networks) == 0 {
		return false
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	a := ap.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

var errNoProxyHeader = errors.New("no valid header of the PROXY protocol")

// readProxyHeader reads a header of the PROXY protocol, version 1 or 2. It
// returns the source that it names, nil if the connection is the proxy's own
// (LOCAL, UNKNOWN), and what was read beyond it. TLVs are passed over. Any error
// but those of r wraps errNoProxyHeader.
func readProxyHeader(r io.Reader) (from net.Addr, ahead []byte, err error) {
	limit := &io.LimitedReader{R: r, N: maxProxyHeader + proxyBuffer}
	b := bufio.NewReaderSize(limit, proxyBuffer)
	if _, err := b.Peek(1); err != nil {
		return nil, nil, err // whoever sent nothing did nothing wrong, either
	}
	h, err := proxyproto.Read(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoProxyHeader, err)
	}
	// What is buffered can be peeked at.
	next, _ := b.Peek(b.Buffered())
	if read := maxProxyHeader + proxyBuffer - limit.N - int64(len(next)); read > maxProxyHeader {
		return nil, nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", errNoProxyHeader, read, maxProxyHeader)
	}
	if !h.Command.IsLocal() {
		tcp, ok := h.SourceAddr.(*net.TCPAddr)
		if !ok || h.TransportProtocol != proxyproto.TCPv4 && h.TransportProtocol != proxyproto.TCPv6 {
			return nil, nil, fmt.Errorf("%w: it is of a connection that is not TCP over IP", errNoProxyHeader)
		}
		from = tcp
	}
	return from, slices.Clone(next), nil
}

// identify finds out once whose connection it is, if a proxy has to say it.
func (c *guest) identify() {
	if !c.proxied {
		return
	}
	c.once.Do(func() {
		// A connection whose deadline cannot be set fails in Read.
		_ = c.Conn.SetReadDeadline(time.Now().Add(proxyTimeout))
		from, ahead, err := readProxyHeader(c.Conn)
		_ = c.Conn.SetReadDeadline(time.Time{})
		switch {
		case errors.Is(err, io.EOF):
			c.fault = err // a proxy that looks whether we are there
			return
		case err != nil:
			c.fault = err
			c.list.bounds.Refused(limitProxyHeader)
			c.list.tell("a trusted proxy's connection begins without a header of the PROXY protocol", c.addr,
				"have the proxy send it, or take its address out of the proxies", err)
			return
		case from == nil:
			from = c.addr
		}
		if limit := c.list.named(c, from); limit != "" {
			c.list.bounds.Refused(limit)
			c.fault = fmt.Errorf("too many connections: %s", limit)
			return
		}
		c.addr, c.ahead = from, ahead
	})
}

// tell logs what is wrong between a proxy and its connections, once a minute.
func (l *boundedListener) tell(what string, from net.Addr, hint string, err error) {
	if ok, _ := l.without.allow("", time.Now()); ok {
		l.bounds.Log.Warn(what, "peer", addressText(from.String()), "hint", hint, "error", err)
	}
}

// tellOfStranger logs that a TLS handshake failed because there was a header of
// the PROXY protocol in its place.
func (c *guest) tellOfStranger(err error) {
	var record tls.RecordHeaderError
	if c == nil || c.proxied || !errors.As(err, &record) {
		return
	}
	if h := record.RecordHeader[:]; bytes.HasPrefix(proxyproto.SIGV1, h) || bytes.HasPrefix(proxyproto.SIGV2, h) {
		c.list.tell("a connection begins with a header of the PROXY protocol, and is not a trusted proxy's", c.addr,
			"if it is a load balancer, put its address into the proxies", err)
	}
}
