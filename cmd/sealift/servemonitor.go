package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/monitor"
)

// Connections for monitoring, in all and of one address. Those who probe have a
// few each, and nobody's should keep files from the APIs.
const (
	monitorConnections        = 512
	monitorAddressConnections = 64
)

// listenMonitor binds the listener for monitoring. It returns nil if there is
// to be none.
func listenMonitor(c *monitorConfig, issuer *keyring.Issuer, mon *monitor.Monitor, log *slog.Logger) (net.Listener, error) {
	if c == nil {
		return nil, nil
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	ln = server.BoundListener(ln, server.Bounds{
		Connections: monitorConnections, AddressConnections: monitorAddressConnections, Proxies: c.Proxies,
		Refused: func(limit string) { mon.Limited("monitor", limit) }, Log: log.With("api", "monitor"),
	})
	if len(c.Hosts) == 0 {
		return ln, nil
	}
	crt, err := issuer.IssueServer(c.Hosts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("monitor: %w", err), ln.Close())
	}
	return tls.NewListener(ln, monitorTLS(crt, issuer.Pool())), nil
}

// serveMonitor serves health and metrics on ln until ctx ends: past the end of
// the APIs, so that the end can be seen.
func serveMonitor(ctx context.Context, ln net.Listener, c *monitorConfig, mon *monitor.Monitor, service *server.Server, log *slog.Logger) error {
	var guard func(http.Handler) http.Handler
	if len(c.Hosts) > 0 {
		guard = func(h http.Handler) http.Handler { return service.RequireOperator("monitor", api.RoleViewer, h) }
	}
	srv := &http.Server{
		Handler: mon.Handler(guard), ConnState: server.Occupied, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return fmt.Errorf("monitor: %w", err)
	case <-ctx.Done():
	}
	err := srv.Close() // whoever asks now is told by that
	<-done
	return err
}

// otherFiles is how many files the process needs beside connections: the store,
// logs, images, other services.
const otherFiles = 256

// warnOfFiles says if the process may open fewer files than it may have
// connections.
func warnOfFiles(connections int, log *slog.Logger) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		log.Warn("limit on open files not known", "error", err)
		return
	}
	// Go has raised the soft limit to the hard one.
	if want := connections + monitorConnections + otherFiles; l.Cur < uint64(want) {
		log.Warn("the process may open fewer files than it may have connections", "limit", l.Cur, "want", want, "hint", "raise LimitNOFILE, or lower limits.connections")
	}
}

// drain runs until ctx ends and then ends the service in order. First it is
// no longer ready; requests are taken for grace more, until those who send
// them have seen it; then api ends and what is open may finish.
func drain(ctx context.Context, mon *monitor.Monitor, grace time.Duration, endAPIs func(), log *slog.Logger) {
	<-ctx.Done()
	log.Info("ending", "grace", grace)
	mon.Drain()
	// Grace is time, and nothing else to wait for.
	time.Sleep(grace)
	endAPIs()
}
