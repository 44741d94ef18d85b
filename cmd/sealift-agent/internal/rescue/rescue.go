// Package rescue asks the people at a machine for a recovery code while it gets
// no release: Prompt shows the request of this boot on the machine's consoles
// and reads a code from them. OpenTerminals finds the consoles.
//
// What is typed is hostile: it is read in bounded lines, and slowly where it is
// wrong.
package rescue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/recovery"
)

// Life is how long a request is good for. The machine then forgets its key and
// shows another request.
const Life = 2 * time.Hour

// slow is how long a terminal waits after a line that is wrong.
const slow = 300 * time.Millisecond

// Terminal is where people read and type.
type Terminal interface {
	// Input is read until it ends. Nobody else reads it.
	Input() io.Reader
	// Step prints a line.
	Step(format string, args ...any)
}

// Prompt asks for a code. All fields are required. It is used once.
type Prompt struct {
	Machine   attest.MachineID
	NodeName  string // as far as the machine knows it, for people
	Disk      string // GUID, lower case
	Terminals []Terminal
	Clock     func() time.Time // the machine's, which may be wrong
	Sleep     func(context.Context, time.Duration) error
	// After is time.After. The clock that it goes by is never set.
	After func(time.Duration) <-chan time.Time
}

// typed is a line from a terminal.
type typed struct {
	from Terminal
	text string
	long bool
}

// Run shows requests until a code for one of them was typed, and returns what
// it held, or the context's error.
func (p *Prompt) Run(ctx context.Context) (*recovery.Secrets, error) {
	lines := make(chan typed)
	for _, t := range p.Terminals {
		go p.read(ctx, t, lines)
	}
	for {
		s, err := p.ask(ctx, lines)
		if err != nil || s != nil {
			return s, err
		}
		p.all("that request is over and its code opens nothing any more; here is another")
	}
}

// ask makes one request, and returns nothing when its time is over.
func (p *Prompt) ask(ctx context.Context, lines <-chan typed) (*recovery.Secrets, error) {
	key, err := recovery.NewBootKey(p.Machine, p.Disk)
	if err != nil {
		return nil, err
	}
	for _, t := range p.Terminals {
		p.show(t, key)
	}
	reader := key.Reader()
	over := p.After(Life)
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a recovery code: %w", ctx.Err())
		case <-over:
			return nil, nil
		case l := <-lines:
			if strings.TrimSpace(l.text) == "" && !l.long {
				p.show(l.from, key)
				l.from.Step("missing: %s", list(reader.Missing()))
				continue
			}
			n, s, err := p.line(reader, l)
			switch {
			case err != nil:
				l.from.Step("recovery: %v", err)
				if err := p.Sleep(ctx, slow); err != nil {
					return nil, fmt.Errorf("wait for a recovery code: %w", err)
				}
			case s != nil:
				p.all("recovery: the code is right")
				return s, nil
			default:
				l.from.Step("recovery: line %d is right; missing: %s", n, list(reader.Missing()))
			}
		}
	}
}

func (p *Prompt) line(reader *recovery.Reader, l typed) (int, *recovery.Secrets, error) {
	if l.long {
		return 0, nil, errors.New("the line is too long")
	}
	return reader.Line(l.text, p.Clock())
}

func (p *Prompt) all(text string) {
	for _, t := range p.Terminals {
		t.Step("%s", text)
	}
}

// show prints the request of a key.
func (p *Prompt) show(t Terminal, key *recovery.BootKey) {
	t.Step("recovery request of %s, machine %s, for this boot and %s:", p.NodeName, p.Machine, Life)
	for i, l := range key.Request() {
		t.Step("  request %d:  %s", i+1, l)
	}
	t.Step("read it to the operator (sealift machine recovery-key); type the lines of the code here, Enter after each")
	t.Step("Enter alone shows this again")
}

func list(numbers []int) string {
	var out []string
	for _, n := range numbers {
		out = append(out, fmt.Sprint(n))
	}
	return "line " + strings.Join(out, ", ")
}

// read sends the lines of a terminal until it ends or ctx does. A read that is
// under way then outlives it.
func (p *Prompt) read(ctx context.Context, t Terminal, lines chan<- typed) {
	r := bufio.NewReaderSize(t.Input(), recovery.MaxText)
	for {
		b, err := r.ReadSlice('\n')
		l := typed{from: t, text: string(b)}
		for l.long = false; errors.Is(err, bufio.ErrBufferFull); {
			l.text, l.long = "", true
			_, err = r.ReadSlice('\n')
		}
		if err == nil || l.text != "" {
			select {
			case lines <- l:
			case <-ctx.Done():
				return
			}
		}
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}
