package lab

import (
	"context"
	"errors"
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
	ln, err := n.listen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: listen on %s: %w", n.Name, addr, err)
	}
	return ln, nil
}

func (n *Namespace) listen(ctx context.Context, addr netip.AddrPort) (_ net.Listener, err error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter it: %w", err)
	}
	// The thread has to come back, not to end: processes that it has started
	// may be told to end with it (PR_SET_PDEATHSIG). One that cannot stays
	// locked, so that nothing else runs on it.
	defer func() {
		if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
			err = errors.Join(err, fmt.Errorf("leave it: %w", e))
			return
		}
		runtime.UnlockOSThread()
	}()
	var c net.ListenConfig
	return c.Listen(ctx, "tcp", addr.String())
}
