// Package lab gives a program its own network namespaces, with or without
// root, so that boxes, factories and stores can stand side by side on one
// machine and reach nothing else.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// insideEnv marks a process that Enter has already moved.
const insideEnv = "SEALIFT_LAB_INSIDE"

// Enter makes sure that this process may create namespaces. Root may: Enter
// returns false and nil, and the caller goes on. Any other user gets a user
// namespace in which it is root: Enter runs the program again inside it, waits
// for it, and returns true with its exit code. It passes files on, from
// descriptor 3.
func Enter(ctx context.Context, files ...*os.File) (done bool, code int, err error) {
	if os.Geteuid() == 0 {
		return false, 0, nil
	}
	if Inside() {
		return false, 0, errors.New("enter a user namespace: still not root inside it")
	}
	self, err := os.Executable()
	if err != nil {
		return false, 0, fmt.Errorf("enter a user namespace: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		return false, 0, fmt.Errorf("enter a user namespace: %w (as root this needs none; else allow it with: sysctl kernel.unprivileged_userns_clone=1)", err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return true, exit.ExitCode(), nil
	}
	return true, 0, err
}

// Inside reports whether this process is one that Enter has started: it reaches
// no network but those that it makes.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Namespace is a network namespace, held open by an idle process. Close frees it.
type Namespace struct {
	Name string // for messages

	holder *exec.Cmd
	stdin  io.Closer
}

// NewNamespace makes an empty network namespace with its loopback up.
func NewNamespace(ctx context.Context, name string) (*Namespace, error) {
	// cat ends when its input does, so a killed parent leaves nothing behind.
	holder := exec.Command("cat")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	stdin, err := holder.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	if err := holder.Start(); err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	ns := &Namespace{Name: name, holder: holder, stdin: stdin}
	if err := ns.IP(ctx, "link set lo up"); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// Close ends the holder. Processes inside keep the namespace alive until they end.
func (n *Namespace) Close() error {
	n.stdin.Close()
	err := n.holder.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// PID returns the holder's process id, by which other tools name the namespace.
func (n *Namespace) PID() int { return n.holder.Process.Pid }

// Command is exec.CommandContext for a program that runs inside the namespace.
// It ends with SIGTERM when ctx does.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", n.PID()), "--", name}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd
}

// IP runs iproute2 commands, one per argument, inside the namespace.
func (n *Namespace) IP(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		out, err := n.Command(ctx, "ip", strings.Fields(c)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("namespace %s: ip %s: %w: %s", n.Name, c, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
