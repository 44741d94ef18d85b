package rescue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/recovery"
)

const disk = "6a0d1e0c-3b1f-4a56-9d0e-0123456789ab"

// screen is a terminal that a test types at. Each line that is printed goes to
// lines, so the test waits for what it wants to see.
type screen struct {
	in    *io.PipeReader
	keys  *io.PipeWriter
	lines chan string
}

func newScreen() *screen {
	s := &screen{lines: make(chan string, 10_000)}
	s.in, s.keys = io.Pipe()
	return s
}

func (s *screen) Input() io.Reader { return s.in }

func (s *screen) Step(format string, args ...any) { s.lines <- fmt.Sprintf(format, args...) }

func (s *screen) enter(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.keys, text+"\n"); err != nil {
		t.Error(err)
	}
}

// see returns the next line that holds a text.
func (s *screen) see(t *testing.T, want string) string {
	t.Helper()
	for {
		select {
		case l := <-s.lines:
			if strings.Contains(l, want) {
				return l
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q was not printed", want)
		}
	}
}

// request reads the request from the screen.
func (s *screen) request(t *testing.T) string {
	t.Helper()
	var lines []string
	for i := range recovery.RequestLines {
		l := s.see(t, fmt.Sprintf("request %d:", i+1))
		_, text, _ := strings.Cut(l, ":")
		lines = append(lines, text)
	}
	s.see(t, "Enter alone")
	return strings.Join(lines, "\n")
}

type result struct {
	s   *recovery.Secrets
	err error
}

// scene is a prompt that runs.
type scene struct {
	*testing.T
	machine attest.MachineID
	screens []*screen
	over    chan time.Time // ends the life of a request
	cancel  context.CancelFunc
	done    chan result
	mu      sync.Mutex
	slept   int
}

func start(t *testing.T, screens int) *scene {
	t.Helper()
	s := &scene{T: t, machine: attest.MachineIDOf([]byte("box")), over: make(chan time.Time), done: make(chan result, 1)}
	p := &Prompt{
		Machine: s.machine, NodeName: "box-1", Disk: disk, Clock: time.Now,
		After: func(time.Duration) <-chan time.Time { return s.over },
		Sleep: func(context.Context, time.Duration) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.slept++
			return nil
		},
	}
	for range screens {
		c := newScreen()
		s.screens = append(s.screens, c)
		p.Terminals = append(p.Terminals, c)
		t.Cleanup(func() { c.keys.Close() })
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	t.Cleanup(cancel)
	go func() {
		secrets, err := p.Run(ctx)
		s.done <- result{secrets, err}
	}()
	return s
}

func (s *scene) code(request string) []string {
	s.Helper()
	boot, err := recovery.ParseRequest(request, s.machine, disk)
	if err != nil {
		s.Fatal(err)
	}
	half := make(attest.Secret, 32)
	half[0] = 9
	c, err := recovery.Seal(boot, s.machine, disk, &recovery.Secrets{DiskKey: half, NameDigits: 10}, time.Now().Add(time.Hour))
	if err != nil {
		s.Fatal(err)
	}
	return strings.Split(string(c), "\n")
}

func (s *scene) want(r result) {
	s.Helper()
	if r.err != nil || r.s == nil || r.s.DiskKey[0] != 9 || r.s.NameDigits != 10 {
		s.Errorf("got %+v, %v", r.s, r.err)
	}
}

func TestACodeIsTypedLineByLine(t *testing.T) {
	s := start(t, 1)
	c := s.screens[0]
	lines := s.code(c.request(t))
	c.enter(t, lines[0])
	c.see(t, "line 1 is right; missing: line 2, 3, 4, 5, 6, 7, 8")
	wrong := []byte(lines[1])
	if wrong[8]++; wrong[8] == '9'+1 || wrong[8] == 'Z'+1 || strings.IndexByte("ILOU", wrong[8]) >= 0 {
		wrong[8] = '0'
	}
	c.enter(t, string(wrong))
	c.see(t, "line 2, group 2: ")
	c.enter(t, lines[1]+"\r")
	c.see(t, "line 2 is right")
	c.enter(t, "")
	if again := s.code(c.request(t)); len(again) != len(lines) {
		t.Error("the request is not shown again")
	}
	c.see(t, "missing: line 3, 4, 5, 6, 7, 8")
	for _, l := range lines[2:] {
		c.enter(t, strings.ToLower(l))
	}
	s.want(<-s.done)
	c.see(t, "the code is right")
}

func TestACodeCanBeTypedAtAnyTerminal(t *testing.T) {
	s := start(t, 2)
	lines := s.code(s.screens[0].request(t))
	s.screens[1].request(t)
	s.screens[0].keys.Close() // a serial line that hangs up
	for _, l := range lines {
		s.screens[1].enter(t, l)
	}
	s.want(<-s.done)
	s.screens[0].see(t, "the code is right")
}

func TestARequestIsForgottenAfterItsTime(t *testing.T) {
	s := start(t, 1)
	c := s.screens[0]
	old := s.code(c.request(t))
	c.enter(t, old[0])
	c.see(t, "line 1 is right")
	s.over <- time.Now()
	c.see(t, "that request is over")
	lines := s.code(c.request(t))
	for _, l := range old {
		c.enter(t, l)
	}
	c.see(t, "not for this request")
	for _, l := range lines {
		c.enter(t, l)
	}
	s.want(<-s.done)
}

func TestHostileInputIsBounded(t *testing.T) {
	s := start(t, 1)
	c := s.screens[0]
	lines := s.code(c.request(t))
	go func() {
		io.WriteString(c.keys, strings.Repeat("A", 3<<20)+"\n")
		io.WriteString(c.keys, strings.Repeat("\x00\xff\x1b[2J\n", 100))
		io.WriteString(c.keys, strings.Repeat("\n", 50))
		io.WriteString(c.keys, strings.Repeat("0", recovery.MaxText-1)+"\n")
		for _, l := range lines {
			io.WriteString(c.keys, l+"\n")
		}
	}()
	s.want(<-s.done)
	c.see(t, "the line is too long")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slept != 102 {
		t.Errorf("slowed down %d times, want 102", s.slept)
	}
}

func TestThePromptEndsWithItsContext(t *testing.T) {
	s := start(t, 1)
	s.screens[0].request(t)
	s.cancel()
	if r := <-s.done; !errors.Is(r.err, context.Canceled) {
		t.Errorf("got %+v", r)
	}
}

func TestTheTerminalsAreThoseOfTheConsole(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"tty0", "ttyS0", "console"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for active, want := range map[string]int{"tty0 ttyS0\n": 2, "ttyS0 ttyS9": 1, "": 1, "../../etc/shadow": 1, "ttyS7": 1} {
		if got := openTerminals(dir, active); len(got) != want {
			t.Errorf("%q: %d terminals, want %d", active, len(got), want)
		}
	}
	if got := openTerminals(filepath.Join(dir, "none"), ""); len(got) != 0 {
		t.Errorf("%d terminals, want none", len(got))
	}
}
