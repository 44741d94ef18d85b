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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, env{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
}
