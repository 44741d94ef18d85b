package demo

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/cmd/sealift/internal/lab"
)

// inNamespace runs the test where it may make network namespaces. It returns
// false in the process that only started the other one.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	out, err := exec.Command("unshare", "-Urn", "--", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v").CombinedOutput()
	if err != nil {
		t.Fatalf("in a user namespace: %v\n%s", err, out)
	}
	return false
}

func TestWatch(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	ns, err := lab.NewNamespace(t.Context(), "cluster")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for name, tt := range map[string]struct {
		kubectl string // what the program does
		until   string
		seen    []string
		fails   string // what the error says; empty: none
	}{
		"ends with the object that is waited for, and ends the client": {
			`echo '{"a": 1}'; printf '{\n  "b": 2\n}\n'; exec sleep 600`, `{"b":2}`, []string{`{"a":1}`, `{"b":2}`}, ""},
		"says what the client said when it ends": {
			`echo '{"a": 1}'; echo connection lost >&2; exit 1`, `{"b":2}`, []string{`{"a":1}`}, "connection lost"},
		"says so when the client ends well": {
			`exit 0`, `{"b":2}`, nil, "EOF"},
		"does not wait for a client that prints no JSON": {
			`echo Hello; exec sleep 600`, `{"b":2}`, nil, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{dir: t.TempDir(), ns: ns, bin: map[string]string{}}
			c.bin["kubectl"] = filepath.Join(c.dir, "kubectl")
			if err := os.WriteFile(c.bin["kubectl"], []byte("#!/bin/sh\n"+tt.kubectl+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var seen []string
			err := c.watch(ctx, func(o json.RawMessage) bool {
				s := strings.Join(strings.Fields(string(o)), "")
				seen = append(seen, s)
				return s == tt.until
			}, "nodes")
			if (err == nil) != (tt.fails == "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("got %v, want %q", err, tt.fails)
			}
			if !slices.Equal(seen, tt.seen) {
				t.Errorf("saw %q, want %q", seen, tt.seen)
			}
			if ctx.Err() != nil {
				t.Error("it waited for the client until the time was up")
			}
		})
	}
}
