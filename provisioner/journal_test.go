package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sealift/sealift/provisioner/api"
)

func TestOpeningAJournal(t *testing.T) {
	const head = `{"sealift":"hosts","version":1}` + "\n"
	host := func(n int) string {
		return fmt.Sprintf(`{"key":{"mac":"02:00:00:00:00:%02x","uuid":""},"state":"seen"}`, n)
	}
	for _, c := range []struct {
		name, content string
		hosts         int
		err           string
	}{
		{"a new file", "", 0, ""},
		{"only a header", head, 0, ""},
		{"two hosts", head + host(1) + "\n" + host(2) + "\n", 2, ""},
		{"a later line replaces an earlier one", head + host(1) + "\n" + host(1) + "\n", 1, ""},
		{"an unfinished last line is dropped", head + host(1) + "\n" + host(2)[:20], 1, ""},
		{"an unfinished header is written anew", head[:10], 0, ""},
		{"a damaged line in the middle is an error", head + "{\n" + host(2) + "\n", 0, "line 2"},
		{"a line that is no host is an error", head + "{}\n", 0, "line 2"},
		{"a file of another kind is not touched", `{"sealift":"leases","version":1}` + "\n", 0, "not a hosts file of version 1"},
		{"a later version is not touched", `{"sealift":"hosts","version":2}` + "\n", 0, "not a hosts file of version 1"},
		{"a file of somebody else is not touched", "# config\nx=1\n", 0, "not a hosts file of version 1"},
		{"an endless line is refused", head + strings.Repeat("x", maxJournalLine+100000) + "\n", 0, "longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hosts")
			if c.content != "" {
				if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := OpenFileHosts(path)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error is %v, want one with %q", err, c.err)
				}
				if got, _ := os.ReadFile(path); string(got) != c.content {
					t.Error("a file that was refused has changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			all, err := s.All(t.Context())
			if err != nil || len(all) != c.hosts {
				t.Errorf("%d hosts, %v, want %d", len(all), err, c.hosts)
			}
			// It can be appended to, and read again.
			key := api.HostKey{MAC: "02:00:00:00:00:ff"}
			if _, err := s.Update(t.Context(), key, func(h *Host) error { h.State = Seen; return nil }); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = OpenFileHosts(path); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if all, err = s.All(t.Context()); err != nil || len(all) != c.hosts+1 {
				t.Errorf("%d hosts after a change, %v, want %d", len(all), err, c.hosts+1)
			}
		})
	}
}

func TestConcurrentUpdatesOfHostsAreNotLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	s, err := OpenFileHosts(path)
	if err != nil {
		t.Fatal(err)
	}
	const hosts, clients, rounds = 20, 8, 100
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range rounds {
				key := api.HostKey{MAC: fmt.Sprintf("02:00:00:00:00:%02x", i%hosts)}
				if _, err := s.Update(t.Context(), key, func(h *Host) error {
					if h.Progress == nil {
						h.Progress = &api.Progress{}
					}
					h.Progress.Done++
					h.Progress.Text = strings.Repeat("x", 500)
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenFileHosts(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, h := range all {
		sum += h.Progress.Done
	}
	if len(all) != hosts || sum != clients*rounds {
		t.Errorf("%d hosts with %d changes, want %d with %d", len(all), sum, hosts, clients*rounds)
	}
}

func TestAJournalIsCompactedAsItGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	s, err := OpenFileHosts(path)
	if err != nil {
		t.Fatal(err)
	}
	key := api.HostKey{MAC: "02:00:00:00:00:01"}
	for i := range 3 * compactSlack {
		if _, err := s.Update(t.Context(), key, func(h *Host) error {
			h.Progress = &api.Progress{Done: int64(i)}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > compactSlack+10 {
		t.Errorf("%d lines for one host", n)
	}
	if s, err = OpenFileHosts(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if h, err := s.Host(t.Context(), key); err != nil || h.Progress.Done != 3*compactSlack-1 {
		t.Errorf("the host is %+v, %v", h, err)
	}
}

// A change whose write failed is reported, and the next one that succeeds
// makes it durable: "failed, but persisted".
func TestAFailedWriteIsReportedAndMended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	s, err := OpenFileHosts(path)
	if err != nil {
		t.Fatal(err)
	}
	set := func(mac string) error {
		_, err := s.Update(t.Context(), api.HostKey{MAC: mac}, func(h *Host) error { h.State = Seen; return nil })
		return err
	}
	if err := set("02:00:00:00:00:01"); err != nil {
		t.Fatal(err)
	}
	// The writer is idle, so its file can be broken under it, as by a disk
	// that has gone; and a directory in place of the new file keeps it broken.
	s.journal.file.Close()
	if err := os.MkdirAll(path+".tmp/in-the-way", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := set("02:00:00:00:00:02"); err == nil {
			t.Error("a change is confirmed that was not written")
		}
	}
	if err := os.RemoveAll(path + ".tmp"); err != nil {
		t.Fatal(err)
	}
	if err := set("02:00:00:00:00:02"); err != nil {
		t.Errorf("after the disk is back: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenFileHosts(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if all, err := s.All(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%d hosts, %v, want 2", len(all), err)
	}
}

func TestUpdatesThatAreRefusedChangeNothing(t *testing.T) {
	s, err := OpenFileHosts(filepath.Join(t.TempDir(), "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	key := api.HostKey{MAC: "02:00:00:00:00:01"}
	mine := errors.New("mine")
	if _, err := s.Update(t.Context(), key, func(h *Host) error { h.State = Seen; return mine }); !errors.Is(err, mine) {
		t.Errorf("error is %v, want the one of the change", err)
	}
	if _, err := s.Host(t.Context(), key); !errors.Is(err, ErrNoHost) {
		t.Errorf("a refused change made a host: %v", err)
	}
	if err := Reinstall(t.Context(), s, key); !errors.Is(err, ErrNoHost) {
		t.Errorf("reinstall of an unknown host: %v", err)
	}
	if _, err := s.Update(t.Context(), key, func(h *Host) error { h.Key.MAC = "02:00:00:00:00:02"; return nil }); err == nil {
		t.Error("a host was renamed")
	}
	for _, bad := range []api.HostKey{{}, {MAC: "02-00-00-00-00-01"}, {MAC: "02:00:00:00:00:0A"}, {MAC: "02:00:00:00:00:00:00:01"},
		{MAC: key.MAC, UUID: "x"}, {MAC: key.MAC, UUID: "00112233-4455-6677-8899-AABBCCDDEEFF"}} {
		if _, err := s.Update(t.Context(), bad, func(*Host) error { return nil }); err == nil {
			t.Errorf("key %+v is accepted", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Update(ctx, key, func(h *Host) error { h.Record = json.RawMessage(`{}`); return nil }); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled update: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), key, func(h *Host) error { h.State = Failed; return nil }); !errors.Is(err, errJournalClosed) {
		t.Errorf("an update after Close: %v", err)
	}
}

func FuzzHostsFile(f *testing.F) {
	f.Add([]byte(`{"sealift":"hosts","version":1}` + "\n" + `{"key":{"mac":"02:00:00:00:00:01","uuid":""},"state":"seen"}` + "\n{"))
	f.Add([]byte("\n\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenFileHosts(path)
		if err != nil {
			return
		}
		before, err := s.All(t.Context())
		if err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if s, err = OpenFileHosts(path); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if after, err := s.All(t.Context()); err != nil || len(after) != len(before) {
			t.Errorf("%d hosts, %v, then %d", len(before), err, len(after))
		}
	})
}
