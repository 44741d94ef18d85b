package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Host is a service in a process of its own, so that what it uses can be told
// from what the simulator uses.
type Host struct {
	Nodes, Operators string // addresses of its APIs

	cmd   *exec.Cmd
	store string // its database
	log   *tail
	done  chan struct{} // closed when the process has ended
	err   error         // of the process; read after done
}

// startTimeout bounds the start of the service.
const startTimeout = time.Minute

// StartHost runs program, which is `sealift --json serve`, and waits until it
// serves. store is the path of its database. Log lines go to logTo.
func StartHost(ctx context.Context, store string, logTo io.Writer, program string, args ...string) (*Host, error) {
	h := &Host{cmd: exec.Command(program, args...), store: store, done: make(chan struct{}), log: new(tail)}
	pipe, err := h.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	serving := make(chan [2]string, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		found := false
		s := bufio.NewScanner(pipe)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			line := append(slices.Clone(s.Bytes()), '\n')
			h.log.add(line)
			_, _ = logTo.Write(line) // a log that cannot be kept must not stop the service
			var l struct{ Msg, Nodes, Operators string }
			if !found && bytes.Contains(line, []byte(`"serving"`)) && json.Unmarshal(line, &l) == nil && l.Msg == "serving" {
				found = true
				serving <- [2]string{l.Nodes, l.Operators}
			}
		}
		_, _ = io.Copy(io.Discard, pipe) // a line that is too long
	})
	go func() {
		reader.Wait()
		h.err = h.cmd.Wait()
		close(h.done)
	}()
	select {
	case a := <-serving:
		h.Nodes, h.Operators = a[0], a[1]
		return h, nil
	case <-h.done:
		return nil, fmt.Errorf("start the service: %w: %s", errors.Join(h.err, errors.New("it ended")), h.log)
	case <-time.After(startTimeout):
		err = errors.New("it does not serve")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, fmt.Errorf("start the service: %w", errors.Join(err, h.Close()))
}

// Close ends the service in order.
func (h *Host) Close() error {
	select {
	case <-h.done:
		return fmt.Errorf("the service ended by itself: %w: %s", h.err, h.log)
	default:
	}
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the service: %w", err)
	}
	select {
	case <-h.done:
		return nil
	case <-time.After(startTimeout):
		return errors.Join(errors.New("stop the service: it does not end, and was killed"), h.cmd.Process.Kill())
	}
}

// size is the size of the database with what belongs to it.
func (h *Host) size() int64 {
	files, err := filepath.Glob(h.store + "*")
	if err != nil {
		return 0
	}
	var n int64
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			n += st.Size()
		}
	}
	return n
}

// Meter starts to measure the service; the function that it returns adds what
// was used since to a report.
func (h *Host) Meter() (func(*Report) error, error) {
	pid := h.cmd.Process.Pid
	cpu, idle, _, err := process(pid)
	if err != nil {
		return nil, fmt.Errorf("measure the service: %w", err)
	}
	before := h.size()
	return func(r *Report) error {
		now, rss, peak, err := process(pid)
		if err != nil {
			return fmt.Errorf("measure the service: %w", err)
		}
		u := &Usage{CPU: now - cpu, RSS: rss, PeakRSS: peak, Idle: idle, Database: h.size()}
		if r.Releases > 0 {
			u.PerRelease = 1000 * u.CPU / float64(r.Releases)
			u.PerBoot = (u.Database - before) / r.Releases
		}
		r.Service = u
		return nil
	}, nil
}

// tail keeps the last lines of a log.
type tail struct {
	mu    sync.Mutex
	lines [][]byte // guarded by mu
}

func (t *tail) add(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, line)
	if len(t.lines) > 5 {
		t.lines = t.lines[1:]
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(bytes.Join(t.lines, nil)))
}
