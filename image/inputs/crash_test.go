package inputs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/image/manifest"
)

// child runs one test of this binary, which only does something there, in a
// process of its own.
func child(t *testing.T, test string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, "SEALIFT_CHILD="+test)...)
	return cmd
}

func childOnly(t *testing.T) {
	t.Helper()
	if os.Getenv("SEALIFT_CHILD") != t.Name() {
		t.Skip("runs in a child process only")
	}
}

// receiving waits until n temporary files of a cache have bytes in them. What
// slowServer has sent may still be on its way.
func receiving(t *testing.T, c Cache, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		got := 0
		for _, name := range leftovers(t, c) {
			if st, err := os.Stat(name); err == nil && st.Size() > 0 {
				got++
			}
		}
		if got >= n {
			return
		}
	}
	t.Fatalf("no %d downloads are under way after a minute", n)
}

// slowServer sends half of a file, says so, and sends the rest when it may.
func slowServer(t *testing.T, body []byte) (url string, half <-chan struct{}, rest chan<- struct{}) {
	t.Helper()
	sent, goOn := make(chan struct{}, 100), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:len(body)/2]) // the client may be gone
		w.(http.Flusher).Flush()
		sent <- struct{}{}
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
		_, _ = w.Write(body[len(body)/2:])
	}))
	t.Cleanup(s.Close)
	return s.URL, sent, goOn
}

func TestChildFetches(t *testing.T) {
	childOnly(t)
	f := &Fetcher{Cache: Cache{Dir: os.Getenv("CACHE")}, Profile: "shop.yaml"}
	want, err := parseSum(os.Getenv("WANT"))
	must(t, err)
	_, err = f.cached(t.Context(), "artifact", []string{os.Getenv("ADDRESS")}, 4<<20, want)
	must(t, err)
}

func TestAKilledDownloadLeavesNoArtifact(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	address, half, rest := slowServer(t, body)
	c := Cache{Dir: t.TempDir()}
	victim := child(t, "TestChildFetches", "CACHE="+c.Dir, "WANT="+hexSum(body), "ADDRESS="+address)
	must(t, victim.Start())
	<-half
	receiving(t, c, 1)
	// Another build is at the same file in the same cache.
	other := child(t, "TestChildFetches", "CACHE="+c.Dir, "WANT="+hexSum(body), "ADDRESS="+address)
	must(t, other.Start())
	<-half
	receiving(t, c, 2)
	must(t, victim.Process.Kill())
	var exit *exec.ExitError
	if err := victim.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v, want SIGKILL", err)
	}
	if _, err := c.Lookup(t.Context(), digestOf(body)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the kill: %v, want no artifact", err)
	}
	if n := len(leftovers(t, c)); n != 2 {
		t.Errorf("%d temporary files, want the dead one's and the living one's", n)
	}
	must(t, c.Sweep())
	if n := len(leftovers(t, c)); n != 1 {
		t.Errorf("%d temporary files after a sweep, want the living one's", n)
	}
	close(rest)
	if err := other.Wait(); err != nil {
		t.Errorf("the build beside it: %v", err)
	}
	if _, err := c.Lookup(t.Context(), digestOf(body)); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	sweepCheck(t, c)
}

func TestLocksAndBuildsShareACache(t *testing.T) {
	needTool(t, "go")
	v := vendors(t)[0]
	_, n, r, p := world(t, v)
	lock, err := r.Resolve(t.Context(), p)
	must(t, err)
	text, err := lock.Encode()
	must(t, err)
	c := Cache{Dir: t.TempDir()}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			if i%3 == 0 {
				mine := *r
				mine.Cache = c
				l, err := mine.Resolve(t.Context(), p)
				if err != nil {
					t.Error(err)
					return
				}
				if b, err := l.Encode(); err != nil || !bytes.Equal(b, text) {
					t.Errorf("a lock made beside others differs (%v)", err)
				}
				return
			}
			f := &Fetcher{Cache: c, Client: n.client(), Profile: "shop.yaml"}
			if _, err := f.Fetch(t.Context(), p, lock); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	sweepCheck(t, c)
}

func TestChildFillsTheDisk(t *testing.T) {
	childOnly(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	c := Cache{Dir: filepath.Join(dir, "cache")}
	large, small := bytes.Repeat([]byte("0123456789abcdef"), 1<<17), []byte("small")
	files := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = w.Write(large) // the client gives up half-way
			return
		}
		_, _ = w.Write(small)
	})
	s := httptest.NewServer(files)
	defer s.Close()
	f := &Fetcher{Cache: c, Profile: "shop.yaml"}
	get := func(name string, b []byte) error {
		_, err := f.cached(t.Context(), "artifact "+name, []string{s.URL + "/" + name}, int64(len(b)), digestOf(b))
		return err
	}
	err := get("large", large)
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "artifact large: write cache: ") {
		t.Errorf("a full disk: got %v, want ENOSPC with the artifact's name", err)
	}
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if _, err := c.Lookup(t.Context(), digestOf(large)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a full disk: %v, want no artifact", err)
	}
	// What the failure has freed is there for the next.
	must(t, get("small", small))
	// And so it is for what is made from inputs, and for the memo of it.
	noise := make([]byte, 900<<10) // does not get smaller when it is repacked
	rng := rand.NewChaCha8([32]byte{})
	_, err = rng.Read(noise)
	must(t, err)
	deb := makeDeb(t, "data.tar", makeTar(t, file("./noise", string(noise))))
	pkg := filepath.Join(t.TempDir(), "x.deb")
	must(t, os.WriteFile(pkg, deb, 0o644))
	if _, _, err := c.Put(t.Context(), bytes.NewReader(make([]byte, 400<<10)), manifest.SHA256{}, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.unpack(t.Context(), "package x", pkg, digestOf(deb)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("unpacking on a full disk: got %v, want ENOSPC", err)
	}
	if memos, err := filepath.Glob(filepath.Join(c.Dir, memoUnpack, "*")); err != nil || len(memos) > 0 {
		t.Errorf("remembered: %v, %v", memos, err)
	}
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	sweepCheck(t, c)
}

func TestAFullDiskLeavesNoArtifact(t *testing.T) {
	cmd := child(t, "TestChildFillsTheDisk")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("no user namespace: %v", err)
		}
		t.Skipf("no user namespace: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChildFillsTheDisk") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSweepLeavesWhatIsBeingWritten(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	must(t, c.Sweep()) // nothing there yet
	f, err := c.temp()
	must(t, err, os.WriteFile(filepath.Join(c.Dir, "tmp", "put-orphan"), []byte("half"), 0o644), os.Mkdir(filepath.Join(c.Dir, "tmp", "dir"), 0o755))
	must(t, c.Sweep())
	if left := leftovers(t, c); len(left) != 2 || left[1] != f.Name() {
		t.Errorf("after a sweep there are %v, want the directory and %s", left, f.Name())
	}
	must(t, f.Close(), c.Sweep())
	if left := leftovers(t, c); len(left) != 1 {
		t.Errorf("after the end there are %v, want the directory", left)
	}
}
