package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealift/sealift/profiles"
)

// asInit makes the test binary the PID 1 of a process namespace.
const asInit = "SEALIFT_TEST_AS_INIT"

func TestMain(m *testing.M) {
	if os.Getenv(asInit) != "" {
		os.Exit(initMain())
	}
	os.Exit(m.Run())
}

// initMain starts a program that leaves orphans behind, and reaps them all.
func initMain() int {
	if os.Getpid() != 1 {
		fmt.Println("not PID 1 but", os.Getpid())
		return 1
	}
	p := NewProcesses()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go p.Run(ctx)
	sh, err := p.Start(Command{
		Args: []string{"/bin/sh", "-c", "for i in 1 2 3; do (sleep 0.1 & sleep 0.2 &) ; done; exit 7"},
		Out:  os.Stdout,
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(describe(<-sh.Done()))
	for range 500 {
		if !p.Reap() {
			fmt.Println("no child left")
			return 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("children are left")
	return 1
}

func TestPID1ReapsOrphansAndKnowsItsOwn(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asInit+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("no process namespace: %v", err)
		}
		t.Skipf("no process namespace: %v", err)
	}
	if got, want := string(out), "exit status 7\nno child left\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// reaping runs a Processes for the length of a test.
func reaping(t *testing.T) *Processes {
	p := NewProcesses()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return p
}

func TestStartReportsAProgramThatIsNotThere(t *testing.T) {
	_, err := reaping(t).Start(Command{Args: []string{"/nonexistent"}, Out: os.Stdout})
	if err == nil || !strings.Contains(err.Error(), "start /nonexistent") {
		t.Errorf("got %v", err)
	}
}

// recorder collects what a supervisor says.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) step(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func TestSupervisorStartsAgainWithGrowingPauses(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rec := &recorder{}
	var pauses []time.Duration
	ctx, cancel := context.WithCancel(t.Context())
	s := supervisor{
		service: profiles.Service{Name: "svc", Args: []string{"/bin/sh", "-c", "echo ${NODE_IP}; exit 3"}},
		expand:  func(a string) string { return strings.ReplaceAll(a, profiles.VarNodeIP, "10.0.0.7") },
		procs:   reaping(t), out: f, step: rec.step,
		sleep: func(_ context.Context, d time.Duration) error {
			if pauses = append(pauses, d); len(pauses) == 7 {
				cancel()
			}
			return nil
		},
	}
	s.run(ctx)
	want := []time.Duration{1, 2, 4, 8, 16, 30, 30}
	for i := range want {
		want[i] *= time.Second
	}
	if !slices.Equal(pauses, want) {
		t.Errorf("got pauses %v, want %v", pauses, want)
	}
	b, err := os.ReadFile(out)
	if err != nil || string(b) != strings.Repeat("10.0.0.7\n", 7) {
		t.Errorf("got output %q, %v", b, err)
	}
	if rec.lines[0] != "svc started" || rec.lines[1] != "svc ended: exit status 3, starting it again in 1s" {
		t.Errorf("got lines %q", rec.lines[:2])
	}
}

func TestSupervisorStopsItsService(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	started := make(chan struct{})
	s := supervisor{
		service: profiles.Service{Name: "svc", Args: []string{"/bin/sleep", "600"}},
		expand:  func(a string) string { return a },
		procs:   reaping(t), out: null, sleep: sleep,
		step: func(string, ...any) { close(started) },
	}
	s.supervise(t.Context())
	<-started
	s.stop()
	<-s.done
	if s.pid != 0 {
		t.Errorf("process %d is left", s.pid)
	}
}

func TestSupervisorReportsAProgramThatIsNotThere(t *testing.T) {
	rec := &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	s := supervisor{
		service: profiles.Service{Name: "svc", Args: []string{"/nonexistent"}},
		expand:  func(a string) string { return a },
		procs:   reaping(t), out: os.Stdout, step: rec.step,
		sleep: func(context.Context, time.Duration) error { cancel(); return nil },
	}
	s.run(ctx)
	if len(rec.lines) != 1 || !strings.Contains(rec.lines[0], "no such file or directory, starting it again in 1s") {
		t.Errorf("got %q", rec.lines)
	}
}

func TestLogIsBoundedAndMirrored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log/svc.log")
	var lines []string
	l, err := OpenLog(path, func(s string) { lines = append(lines, s) })
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	for range 3 * maxLog / len(line) {
		if _, err := l.Sink().WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Sink().WriteString("last\n" + strings.Repeat("y", 3*maxLogLine) + "\nunfinished"); err != nil {
		t.Fatal(err)
	}
	if err := l.drain(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + ".1"} {
		st, err := os.Stat(name)
		if err != nil || st.Size() == 0 || st.Size() > maxLog {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 {
		t.Errorf("got %v, %v, want two files", entries, err)
	}
	if n := 3*maxLog/len(line) + 2; len(lines) != n || lines[n-2] != "last" || len(lines[n-1]) != maxLogLine {
		t.Errorf("got %d lines, want %d", len(lines), n)
	}
}

func TestIsError(t *testing.T) {
	for line, want := range map[string]bool{
		`E0102 15:04:05.1 kubelet.go:1] "bad"`:   true,
		`F0102 15:04:05.1 server.go:1] "worse"`:  true,
		`I0102 15:04:05.1 server.go:1] "fine"`:   false,
		`time="x" level=error msg="bad"`:         true,
		`time="x" level=info msg="fine"`:         false,
		`panic: runtime error`:                   true,
		`Error: not klog`:                        false,
		``:                                       false,
		`Extra words of five characters`:         false,
		`time="x" level=fatal msg="worse"`:       true,
		`W0102 15:04:05.1 server.go:1] "warned"`: false,
	} {
		if got := isError(line); got != want {
			t.Errorf("%q: got %v", line, got)
		}
	}
}
