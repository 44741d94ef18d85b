// Command sealift-pause holds a pod's namespaces open: it is the only program
// of the sandbox image. It sleeps, reaps the children that a shared process
// namespace hands to it, and ends on the signals that a container runtime sends.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		// Signals of several children may arrive as one, and some may have
		// ended before the handler was there: collect all that are dead.
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
		}
		select {
		case <-end:
			return
		case <-children:
		}
	}
}
