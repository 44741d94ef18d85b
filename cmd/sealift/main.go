// Command sealift builds signed edge OS images, provisions machines with them,
// and releases disk keys and join tokens to those that prove what they booted.
// Run `sealift help` for its commands.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		// The end is orderly unless the person insists. SIGTERM does not: a
		// parent may pass on the Ctrl-C that this process has got already.
		for s := range signals {
			if s == os.Interrupt {
				os.Exit(128 + int(syscall.SIGINT))
			}
		}
	}()
	os.Exit(run(ctx, env{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
}
