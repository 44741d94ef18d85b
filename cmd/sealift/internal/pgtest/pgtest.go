// Package pgtest runs a PostgreSQL server for a test, from the Debian package
// postgresql, in a directory of its own and on a Unix socket only. As root it
// runs as another user, because the server refuses to be root.
package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for the server. A test that waits so long fails.
const patience = time.Minute

// Server is a running PostgreSQL server.
type Server struct {
	dir        string // holds the data and the socket
	bin        string // of the server's programs
	credential *syscall.Credential
	postmaster *exec.Cmd
	log        *os.File
	databases  atomic.Int64
}

// programs returns the directory of the server's programs: of the newest that
// Debian has installed, or else of the one in PATH.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })), nil
	}
	path, err := exec.LookPath("initdb")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", errors.New("initdb is not below /usr/lib/postgresql nor in PATH")
	}
	return filepath.Dir(path), nil
}

// Start starts a server with an empty cluster and stops it when the test ends.
// It skips the test where PostgreSQL is not installed, or fails it if
// REQUIRE_TOOLS is set.
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	bin, err := programs()
	if err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			tb.Fatalf("PostgreSQL is needed: %v", err)
		}
		tb.Skipf("PostgreSQL is needed: %v", err)
	}
	// Not tb.TempDir: others may not look into that, and the server is one.
	dir, err := os.MkdirTemp(place(), "pg-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	s := &Server{dir: dir, bin: bin}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		if err != nil {
			tb.Fatal(err)
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr, os.Chown(dir, int(uid), int(gid))); err != nil {
			tb.Fatal(err)
		}
		s.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	// The cluster itself need not survive a power cut; what the tests do in it
	// is fsynced as in production.
	if out, err := s.command("initdb", "--pgdata", s.data(), "--username", "sealift", "--auth", "trust", "--no-sync", "--encoding", "SQL_ASCII", "--locale", "C").CombinedOutput(); err != nil {
		tb.Fatalf("initdb: %v\n%s", err, out)
	}
	conf := "listen_addresses = ''\nunix_socket_directories = '" + dir + "'\nmax_connections = 200\nshared_buffers = 32MB\nmax_wal_size = 128MB\n" + strings.Join(settings, "\n") + "\n"
	if err := appendFile(filepath.Join(s.data(), "postgresql.conf"), conf); err != nil {
		tb.Fatal(err)
	}
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.log.Close() })
	if err := s.run(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			if b, err := os.ReadFile(s.log.Name()); err == nil {
				tb.Logf("PostgreSQL's log ends with:\n%s", b[max(0, len(b)-4000):])
			}
		}
		s.Kill()
	})
	return s
}

// place returns the directory to work in: memory if there is enough of it. The
// server's crashes that tests make are those of processes, which lose nothing
// that was written, be it to a disk or not.
func place() string {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Bavail*uint64(st.Bsize) < 2<<30 {
		return ""
	}
	return shm
}

func appendFile(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run starts the server and waits until it answers. After a kill the last of
// the old one's processes may still hold its shared memory, so it is tried
// until that is gone.
func (s *Server) run() error {
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		cmd := s.command("postgres", "-D", s.data())
		cmd.Stdout, cmd.Stderr = s.log, s.log
		if err := cmd.Start(); err != nil {
			return err
		}
		gone := make(chan error, 1)
		go func() { gone <- cmd.Wait() }()
		for time.Now().Before(end) {
			if s.command("pg_isready", "--quiet", "--host", s.dir, "--dbname", "postgres").Run() == nil {
				s.postmaster = cmd
				return nil
			}
			select {
			case last = <-gone:
			case <-time.After(20 * time.Millisecond):
				continue
			}
			break
		}
	}
	b, err := os.ReadFile(s.log.Name())
	return errors.Join(fmt.Errorf("PostgreSQL did not start: %w\n%s", last, b), err)
}

// Kill sends SIGKILL to all the processes of the server, as a crash of the
// machine would end them.
func (s *Server) Kill() {
	pid := s.postmaster.Process.Pid
	// Stopped first, so that it starts no more of them meanwhile.
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	children := childrenOf(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for _, c := range children {
		_ = syscall.Kill(c, syscall.SIGKILL) // may have ended by itself
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !slices.ContainsFunc(append(children, pid), alive) {
			return
		}
	}
}

// alive reports whether a process runs: it exists and is no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// childrenOf reads /proc for the processes whose parent is pid.
func childrenOf(pid int) []int {
	var out []int
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		// pid (comm) state ppid ...; comm may hold anything
		i := bytes.LastIndexByte(b, ')')
		fields := strings.Fields(string(b[i+1:]))
		child, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			out = append(out, child)
		}
	}
	return out
}

// Restart starts the server again after Kill.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	if err := s.run(); err != nil {
		tb.Fatal(err)
	}
}

// DSN names a database of the server.
func (s *Server) DSN(database string) string {
	q := url.Values{"host": {s.dir}}
	return "postgres://sealift@/" + database + "?" + q.Encode()
}

// Database makes an empty database, which goes with the test, and returns its
// DSN.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	s.SQL(tb, "postgres", "CREATE DATABASE "+name)
	tb.Cleanup(func() { s.SQL(tb, "postgres", "DROP DATABASE "+name+" WITH (FORCE)") })
	return s.DSN(name)
}

// SQL runs statements with psql, which knows nothing of our own client, and
// returns what they print.
func (s *Server) SQL(tb testing.TB, database, query string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience) // tb.Context has ended when the test cleans up
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "psql"), "--no-psqlrc", "--quiet", "--tuples-only", "--no-align",
		"--set", "ON_ERROR_STOP=1", "--host", s.dir, "--username", "sealift", "--dbname", database, "--command", query)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("psql: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}
