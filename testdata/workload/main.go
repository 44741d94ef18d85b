// Command workload is the application in the demo's preloaded image: a web
// server that says hello and counts its starts in a file, so that a test can
// see both that the pod runs and that a node kept its state over a reboot.
//
//	GET /         hello, the node's name, and how often the program was started
//	GET /healthz  ok
//
// The count is kept in /data/starts if /data is mounted, else it is 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	addr    = ":8080"
	dataDir = "/data"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	starts, err := count(dataDir)
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: addr, Handler: handler(starts, os.Getenv("NODE_NAME")), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	log.Printf("workload: serving on %s, start %d", addr, starts)
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

// handler answers the two paths.
func handler(starts int, node string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s, start %d\n", node, starts)
	})
	return mux
}

// count adds one to the number in the directory's file "starts" and returns
// it. Without the directory the count is 1 and nothing is written.
func count(dir string) (int, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	path := filepath.Join(dir, "starts")
	n := 0
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		if n, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	n++
	return n, replace(path, []byte(strconv.Itoa(n)+"\n"))
}

// replace writes a file that survives a power cut as soon as replace returns.
func replace(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
