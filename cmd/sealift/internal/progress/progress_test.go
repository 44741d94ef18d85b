package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// clock moves one second at each look.
func clock() func() time.Time {
	t := time.Unix(0, 0)
	return func() time.Time { t = t.Add(time.Second); return t }
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		name string
		mode Mode
		want []string
	}{
		{"plain lines say rate and time left", Plain, []string{"fetch: 2.5 MB of 10.0 MB (25%), 500 kB/s, 15s left\n", "ok  ", "  fetch  all there\n", "FAILED", "no disk\n"}},
		{"a terminal line is redrawn", Terminal, []string{"\r\x1b[Kfetch ...", "\r\x1b[Kok  ", "all there\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			r := New(&b, c.mode, clock())
			s := r.Step("fetch")
			for i := int64(1); i <= 8; i++ {
				s.Update(i*500_000, 10_000_000)
			}
			s.Done("all there")
			r.Step("write").Fail(errors.New("no disk"))
			for _, w := range c.want {
				if !strings.Contains(b.String(), w) {
					t.Errorf("missing %q in:\n%q", w, b.String())
				}
			}
		})
	}
}

func TestJSONIsOneObjectALine(t *testing.T) {
	var b bytes.Buffer
	r := New(&b, JSON, clock())
	s := r.Step("fetch")
	for i := int64(0); i < 10; i++ {
		s.Update(i, 10)
	}
	s.Done("x")
	r.Note("hello %d", 1)
	var kinds []string
	for line := range strings.Lines(b.String()) {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		kinds = append(kinds, e.Event)
	}
	if got := strings.Join(kinds, " "); !strings.HasPrefix(got, "start progress") || !strings.HasSuffix(got, "done note") {
		t.Errorf("events: %s", got)
	}
}
