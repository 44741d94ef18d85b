package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Listen listens on a TCP address inside the namespace. The rest of the program
// stays where it is: a socket belongs to the namespace that it was made in.
func (n *Namespace) Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	type result struct {
		ln  net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		// The thread is never given back: it ends with this goroutine, and
		// with it the stay in the namespace.
		runtime.LockOSThread()
		ln, err := n.listen(ctx, addr)
		done <- result{ln, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("namespace %s: %w", n.Name, r.err)
	}
	return r.ln, nil
}

func (n *Namespace) listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter it: %w", err)
	}
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", addr.String())
}
