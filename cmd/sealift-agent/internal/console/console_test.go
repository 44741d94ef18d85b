package console

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func at(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

func TestLines(t *testing.T) {
	tests := map[string]struct {
		print func(*Printer)
		want  string
	}{
		"a milestone has the time since the kernel started": {
			func(p *Printer) { p.Step("attested: image %s", "demo 1") },
			"sealift: [  4.21] attested: image demo 1\n",
		},
		"a refusal names its code": {
			func(p *Printer) { p.Refused("uki.cmdline", "the command line differs") },
			"sealift: [  4.21] refused: uki.cmdline: the command line differs\n",
		},
		"a fatal error has a hint": {
			func(p *Printer) { p.Fatal(errors.New("open state: wrong key"), "check the disk") },
			"sealift: fatal: open state: wrong key\nsealift: hint: check the disk\n",
		},
		"text from the network cannot forge a line": {
			func(p *Printer) { p.Refused("x", "a\nsealift: [  9.99] attested\x1b[2J") },
			"sealift: [  4.21] refused: x: a?sealift: [  9.99] attested?[2J\n",
		},
		"a log record keeps groups and quotes values with spaces": {
			func(p *Printer) {
				slog.New(p.Handler(slog.LevelInfo)).With("iface", "eth0").WithGroup("lease").Warn("slow", "from", "a b", "n", 3)
			},
			"sealift: [  4.21] warn: slow iface=eth0 lease.from=\"a b\" lease.n=3\n",
		},
		"a record below the level is not printed": {
			func(p *Printer) { slog.New(p.Handler(slog.LevelInfo)).Debug("detail") },
			"",
		},
		"foreign output becomes one line each": {
			func(p *Printer) { p.Write([]byte("one\ntwo\n")) },
			"sealift: [  4.21] one\nsealift: [  4.21] two\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			tt.print(New(&b, at(4210*time.Millisecond)))
			if b.String() != tt.want {
				t.Errorf("got %q\nwant %q", b.String(), tt.want)
			}
		})
	}
}

func TestLongLineIsCut(t *testing.T) {
	var b bytes.Buffer
	New(&b, at(0)).Step("%s", strings.Repeat("ä", 5000))
	if b.Len() > maxLine+40 || !strings.HasSuffix(b.String(), "...\n") {
		t.Errorf("got %d bytes ending in %q", b.Len(), b.String()[b.Len()-8:])
	}
}
