package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Processes starts programs and reaps every child, also those that it did not
// start: PID 1 inherits all orphans. It waits for any child at once, so
// os/exec, which waits for one, must not be used beside it.
type Processes struct {
	mu      sync.Mutex
	waiting map[int]chan<- syscall.WaitStatus // guarded by mu; channels have room for one
}

// Command is a program to start.
type Command struct {
	Args []string // Args[0] is the path
	Env  []string // NAME=value
	Out  *os.File // standard output and error
	// Cgroup is the directory of the cgroup v2 to start in. Optional: the
	// caller's.
	Cgroup string
}

// Process is a started program.
type Process struct {
	PID  int
	done <-chan syscall.WaitStatus
}

// NewProcesses returns an empty set. Run must be running before Start.
func NewProcesses() *Processes {
	return &Processes{waiting: map[int]chan<- syscall.WaitStatus{}}
}

// Run reaps children until ctx ends.
func (p *Processes) Run(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	p.Reap()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ch:
			p.Reap()
		}
	}
}

// Reap collects all children that have ended, and reports whether any child
// is left.
func (p *Processes) Reap() (left bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return false // ECHILD
		case pid == 0:
			return true
		}
		if ch, ok := p.waiting[pid]; ok {
			delete(p.waiting, pid)
			ch <- ws
		}
	}
}

// Start starts a program with standard input from /dev/null.
func (p *Processes) Start(c Command) (_ *Process, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("start %s: %w", c.Args[0], err)
		}
	}()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// A session of its own: Ctrl-C on the console is not for services.
	attr := &syscall.SysProcAttr{Setsid: true}
	if c.Cgroup != "" {
		dir, err := os.OpenFile(c.Cgroup, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	done := make(chan syscall.WaitStatus, 1)
	// The child may end before it is known here, so Reap has to wait.
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(c.Args[0], c.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   c.Env,
		Files: []uintptr{null.Fd(), c.Out.Fd(), c.Out.Fd()},
		Sys:   attr,
	})
	if err != nil {
		return nil, err
	}
	p.waiting[pid] = done
	return &Process{PID: pid, done: done}, nil
}

// Done returns the channel on which the way the program ended comes once.
func (p *Process) Done() <-chan syscall.WaitStatus { return p.done }

// describe says how a program ended.
func describe(ws syscall.WaitStatus) string {
	switch {
	case ws.Signaled():
		return "killed by " + ws.Signal().String()
	case ws.ExitStatus() == 0:
		return "exit status 0"
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}
