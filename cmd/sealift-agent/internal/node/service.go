package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/profiles"
)

// Pauses before a service that ended is started again.
const (
	restartFirst = time.Second
	restartMax   = 30 * time.Second
	restartReset = time.Minute // a service that ran so long starts over with restartFirst
)

// stopGrace is how long a service has between SIGTERM and SIGKILL.
const stopGrace = 10 * time.Second

// supervisor keeps one service running.
type supervisor struct {
	service profiles.Service
	expand  func(string) string // of ${NAME} in an argument
	procs   *Processes
	out     *os.File
	cgroup  string // directory of its cgroup; empty: none
	step    func(format string, args ...any)
	sleep   func(context.Context, time.Duration) error

	stop context.CancelFunc // of run's context
	done chan struct{}      // closed when run has returned

	mu  sync.Mutex
	pid int // guarded by mu; 0 while it is not running
}

// supervise starts run. It does not end with parent: services are stopped one
// after the other, by stop.
func (s *supervisor) supervise(parent context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	s.stop, s.done = cancel, make(chan struct{})
	go func() {
		defer close(s.done)
		s.run(ctx)
	}()
}

// run starts the service, and starts it again whenever it ends, until ctx
// ends; then it stops the service and returns.
func (s *supervisor) run(ctx context.Context) {
	pause := restartFirst
	for ctx.Err() == nil {
		began := time.Now()
		how := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > restartReset {
			pause = restartFirst
		}
		s.step("%s ended: %s, starting it again in %s", s.service.Name, how, pause)
		if s.sleep(ctx, pause) != nil {
			return
		}
		pause = min(2*pause, restartMax)
	}
}

// once runs the service to its end and says how it ended.
func (s *supervisor) once(ctx context.Context) string {
	args := make([]string, len(s.service.Args))
	for i, a := range s.service.Args {
		args[i] = s.expand(a)
	}
	p, err := s.procs.Start(Command{Args: args, Env: s.service.Env, Out: s.out, Cgroup: s.cgroup})
	if err != nil {
		return err.Error()
	}
	s.setPID(p.PID)
	defer s.setPID(0)
	s.step("%s started", s.service.Name)
	select {
	case ws := <-p.Done():
		return describe(ws)
	case <-ctx.Done():
	}
	s.signal(unix.SIGTERM)
	kill := time.NewTimer(stopGrace)
	defer kill.Stop()
	for {
		select {
		case ws := <-p.Done():
			return describe(ws)
		case <-kill.C:
			s.step("%s does not stop, killing it", s.service.Name)
			s.signal(unix.SIGKILL)
		}
	}
}

func (s *supervisor) setPID(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pid = pid
}

// restart ends the service, which run then starts again with the arguments as
// they expand by then.
func (s *supervisor) restart() { s.signal(unix.SIGTERM) }

func (s *supervisor) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid > 0 {
		// The process may have ended by itself a moment ago.
		_ = unix.Kill(s.pid, sig)
	}
}

// uses reports whether an argument of the service names the variable.
func uses(s profiles.Service, variable string) bool {
	return slices.ContainsFunc(s.Args, func(a string) bool { return strings.Contains(a, variable) })
}

// waitSocket waits until a Unix socket accepts connections.
func waitSocket(ctx context.Context, path string) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// cgroupRoot is the mount point of cgroup v2, and systemSlice the cgroup in
// it that holds the services.
const (
	cgroupRoot  = "/sys/fs/cgroup"
	systemSlice = cgroupRoot + "/system"
)

// makeCgroup makes the cgroup of a service.
func makeCgroup(name string) (string, error) {
	dir := filepath.Join(systemSlice, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup of %s: %w", name, err)
	}
	return dir, nil
}

// enableControllers makes all controllers of the kernel available to pods and
// to services. A cgroup has memory.current only if its parent says so.
func enableControllers() error {
	if err := os.MkdirAll(systemSlice, 0o755); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	for _, dir := range []string{cgroupRoot, systemSlice} {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("enable cgroup controllers: %w", err)
		}
		for c := range strings.FieldsSeq(string(b)) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return fmt.Errorf("enable cgroup controller %s in %s: %w", c, dir, err)
			}
		}
	}
	return nil
}
