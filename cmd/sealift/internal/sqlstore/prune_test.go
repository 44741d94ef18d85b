package sqlstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/cmd/sealift/internal/parts"
	"github.com/sealift/sealift/image/manifest"
)

// TestKilledWhilePruning kills a process that writes and prunes, beside another
// that does the same, and checks what it was told is durable.
func TestKilledWhilePruning(t *testing.T) {
	if path := os.Getenv("SQLSTORE_TEST_PRUNER"); path != "" {
		s, err := Open(context.Background(), path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var mu sync.Mutex
		storetest.Churn(context.Background(), fmt.Sprint("process ", os.Getpid(), " "), []server.Pruner{s}, func(d manifest.SHA256) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Println(d)
		}, func(err error) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		})
	}
	s := create(t)
	var durable []manifest.SHA256
	for round := range 3 {
		var mu sync.Mutex
		ctx, cancel := context.WithCancel(t.Context())
		var beside sync.WaitGroup
		if round == 2 {
			beside.Go(func() {
				storetest.Churn(ctx, "beside ", []server.Pruner{s}, func(d manifest.SHA256) {
					mu.Lock()
					defer mu.Unlock()
					durable = append(durable, d)
				}, func(err error) {
					if ctx.Err() == nil {
						t.Error(err)
					}
				})
			})
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhilePruning$")
		cmd.Env = append(os.Environ(), "SQLSTORE_TEST_PRUNER="+s.path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var d manifest.SHA256
			if err := d.UnmarshalText(lines.Bytes()); err != nil {
				continue // cut short by the kill
			}
			mu.Lock()
			durable = append(durable, d)
			mu.Unlock()
			if n == 60*(round+1) {
				if err := cmd.Process.Kill(); err != nil { // SIGKILL
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		cancel()
		beside.Wait()
		again, err := Open(t.Context(), s.path)
		if err != nil {
			t.Fatal(err)
		}
		storetest.CheckChurn(t, again, durable)
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Vacuum gives room back, and is done while another has the file open.
func TestVacuum(t *testing.T) {
	s := create(t)
	for i := range 200 {
		b := make([]byte, 8000)
		b[0], b[1] = '{', byte(i)
		if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
			t.Fatal(err)
		}
	}
	tamper(t, s, "DELETE FROM evidence")
	if u, err := s.Usage(t.Context()); err != nil || u.FreeBytes < 1_000_000 {
		t.Fatalf("%+v, %v", u, err)
	}
	if err := Vacuum(t.Context(), s.path); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.FreeBytes != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if st, err := os.Stat(s.path); err != nil || st.Size() > 500_000 {
		t.Errorf("%d bytes, %v", st.Size(), err)
	}
	if err := s.Commit(t.Context(), &server.Change{Evidence: []byte("x")}); err != nil {
		t.Error(err)
	}
	if err := Vacuum(t.Context(), filepath.Join(t.TempDir(), "none", "x")); err == nil {
		t.Error("no error where there is nothing")
	}
}

// Between the look at which parts are in use and their removal somebody writes
// evidence that refers to one.
func TestAPartThatIsUsedAgainIsNotRemoved(t *testing.T) {
	s := create(t)
	again, gone := []byte(`{"log":"`+strings.Repeat("a", 3000)+`"}`), []byte(`{"log":"`+strings.Repeat("b", 3000)+`"}`)
	for _, b := range [][]byte{again, gone} {
		if err := s.Commit(t.Context(), &server.Change{Evidence: b}); err != nil {
			t.Fatal(err)
		}
	}
	other := append(append([]byte{}, again...), ' ')
	once := true
	if err := s.Compact(t.Context(), time.Unix(0, 0), func(int, int64) error {
		if !once {
			return nil
		}
		once = false // in the new epoch
		return s.Commit(t.Context(), &server.Change{Evidence: other})
	}); err != nil {
		t.Fatal(err)
	}
	_, cutAgain := parts.Cut(again)
	_, cutGone := parts.Cut(gone)
	var epoch int64
	if err := s.read.QueryRowContext(t.Context(), "SELECT epoch FROM epoch").Scan(&epoch); err != nil {
		t.Fatal(err)
	}
	n, _, err := s.removeParts(t.Context(), []part{{digest: cutAgain[0].Digest[:]}, {digest: cutGone[0].Digest[:]}}, epoch)
	if err != nil || n != 1 {
		t.Errorf("%d were removed, %v", n, err)
	}
	if got, err := s.Evidence(t.Context(), sha256.Sum256(other)); err != nil || !bytes.Equal(got, other) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
