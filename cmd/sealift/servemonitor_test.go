package main

import (
	"bytes"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Whoever holds connections for monitoring takes neither files from the APIs nor
// the place of those who probe from elsewhere.
func TestConnectionsForMonitoringAreBounded(t *testing.T) {
	s := startService(t, `monitor: {listen: "127.0.0.1:0"}`)
	address := strings.TrimPrefix(s.monitor, "http://")
	for range monitorAddressConnections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("one connection more than the bound is answered")
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("one connection more than the bound is open")
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	tr := &http.Transport{DialContext: d.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	resp, err := (&http.Client{Transport: tr}).Get(s.monitor + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(body, []byte(`sealift_limited_total{api="monitor",limit="address-connections"} 1`)) {
		t.Errorf("from elsewhere: HTTP %d, %v: the refusal is not counted", resp.StatusCode, err)
	}
}

func TestTooFewFilesAreSaid(t *testing.T) {
	t.Parallel()
	for connections, want := range map[int]bool{0: false, 1 << 40: true} {
		var log bytes.Buffer
		warnOfFiles(connections, slog.New(slog.NewTextHandler(&log, nil)))
		if said := strings.Contains(log.String(), "fewer files"); said != want {
			t.Errorf("%d connections: said %t, want %t: %s", connections, said, want, &log)
		}
	}
}

// A start that takes long, because the audit log is read, is no dead process and no
// ready one. Here it waits for a database that another process keeps locked.
func TestAServiceThatStartsSaysSo(t *testing.T) {
	t.Parallel()
	s := newService(t, `monitor: {listen: "127.0.0.1:0"}`)
	file := filepath.Join(s.dir, "s.db")
	store, err := openStore(t.Context(), file)
	if err == nil {
		err = store.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	get := func(path string) (code int, body string) {
		t.Helper()
		resp, err := http.Get(s.monitor + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	logs, rest := s.launch(t)
	var line struct{ Msg, Monitor string }
	for line.Msg != "starting" {
		if err := logs.Decode(&line); err != nil {
			t.Fatalf("serve ended: %v, exit %d", err, s.stop())
		}
	}
	s.monitor = fmt.Sprintf("http://%s", line.Monitor)
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, `"ready":false,"reason":"starting: `) {
		t.Errorf("/readyz: HTTP %d, %s", code, body)
	}
	if code, body := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: HTTP %d, %s", code, body)
	}
	if _, err := db.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	was := s.monitor
	s.await(logs)
	go io.Copy(io.Discard, rest)
	if s.monitor != was {
		t.Errorf("monitoring was at %s, and is at %s", was, s.monitor)
	}
	if code, body := get("/readyz"); code != http.StatusOK || !strings.Contains(body, `"ready":true,"checks"`) {
		t.Errorf("once it serves, /readyz: HTTP %d, %s", code, body)
	}
	if code := s.stop(); code != exitOK {
		t.Errorf("it ended with %d", code)
	}
}
