package main

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
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
