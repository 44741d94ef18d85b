// Command sealift builds signed edge OS images, provisions machines with them,
// and releases disk keys and join tokens to those that prove what they booted.
// Run `sealift help` for its commands.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		first := <-signals
		at := time.Now()
		cancel()
		// The end is orderly unless the person insists. A SIGTERM insists only
		// after another one, and after a moment: a parent may pass on the
		// Ctrl-C, or the SIGTERM, that this process has got already.
		for s := range signals {
			switch {
			case s == os.Interrupt:
				os.Exit(128 + int(syscall.SIGINT))
			case first == syscall.SIGTERM && time.Since(at) > time.Second:
				os.Exit(128 + int(syscall.SIGTERM))
			}
		}
	}()
	os.Exit(run(ctx, env{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
}
