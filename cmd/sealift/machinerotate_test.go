package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/cmd/sealift/internal/kek"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
)

// cutAfter ends a command after so many lines of its output.
type cutAfter struct {
	bytes.Buffer
	lines int
	cut   func()
}

func (c *cutAfter) Write(p []byte) (int, error) {
	if c.lines -= bytes.Count(p, []byte("\n")); c.lines <= 0 {
		c.cut()
	}
	return c.Buffer.Write(p)
}

// TestAllKeysOfAFleetAreRotatedWithinTheLimits asks for more machines than the
// operator may ask for at once, is cut off, and goes on.
func TestAllKeysOfAFleetAreRotatedWithinTheLimits(t *testing.T) {
	const machines = 1300 // more than a page, and than a burst
	s := startService(t)
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
	key, err := kek.ReadFile(filepath.Join(s.dir, "some/disk-kek.key"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := sqlstore.Open(t.Context(), filepath.Join(s.dir, "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	putMachines(t, store, key, machines)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(s.dir, "serve.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	config = append(config, "\nlimits: {perOperator: 2ms, operatorBurst: 400}\n"...)
	if err := os.WriteFile(filepath.Join(s.dir, "serve.yaml"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	o := operatorOptions{server: s.operators, identity: s.identity}
	rotate := func(ctx context.Context, out io.Writer) (string, error) {
		var talk bytes.Buffer
		e := &env{out: out, err: &talk, json: true}
		err := o.do(func(client *operator.Client) error { return rotateKeys(ctx, e, client, nil, true, "yearly") })
		return talk.String(), err
	}
	asked := map[attest.MachineID]bool{}
	count := func(out *bytes.Buffer) (n int) {
		for d := json.NewDecoder(out); ; n++ {
			var m api.Machine
			if err := d.Decode(&m); errors.Is(err, io.EOF) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
			if asked[m.ID] || m.Rotation == nil {
				t.Errorf("machine %s is printed twice, or keeps its key", m.ID)
			}
			asked[m.ID] = true
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := &cutAfter{lines: rotateChunk, cut: cancel}
	if _, err := rotate(ctx, first); !errors.Is(err, context.Canceled) || !errors.As(err, new(hinted)) {
		t.Errorf("cut off: %v", err)
	}
	if n := count(&first.Buffer); n < rotateChunk || n >= machines {
		t.Errorf("cut off after %d machines", n)
	}
	var rest bytes.Buffer
	talk, err := rotate(t.Context(), &rest)
	if n := count(&rest); err != nil || len(asked) != machines || n == 0 {
		t.Errorf("%d more, %d of %d in all: %v, %s", n, len(asked), machines, err, talk)
	}
	if talk, err := rotate(t.Context(), io.Discard); err != nil || !strings.Contains(talk, "0 machines are to get another disk key, the keys of 1300 were being changed already") {
		t.Errorf("once more: %v, %s", err, talk)
	}
	if code := s.stop(); code != exitOK {
		t.Fatalf("exit %d", code)
	}
}
