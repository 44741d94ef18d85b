package provisioner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sealift/sealift/provisioner/api"
)

// maxHosts bounds a FileHosts: it keeps every host in memory, and whoever is on
// the network can invent MACs.
const maxHosts = 1 << 16

// FileHosts is a Store in one file, for one process: an append-only log of
// JSON lines, compacted as it grows. All hosts are held in memory.
type FileHosts struct {
	journal *journal

	mu    sync.Mutex
	hosts map[string]storedHost // by MAC
}

// storedHost keeps a host as its line, so that nobody shares memory with the store.
type storedHost struct{ line []byte }

// OpenFileHosts opens the store at path and creates it if it is not there. The
// file is locked against other processes until Close.
func OpenFileHosts(path string) (*FileHosts, error) {
	s := &FileHosts{hosts: make(map[string]storedHost)}
	j, err := openJournal(path, "hosts", func(line []byte) error {
		var h Host
		if err := json.Unmarshal(line, &h); err != nil {
			return err
		}
		if err := checkKey(h.Key); err != nil {
			return err
		}
		s.hosts[h.Key.MAC] = storedHost{line}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open hosts: %w", err)
	}
	s.journal = j
	j.start(len(s.hosts), s.lines)
	return s, nil
}

// Close writes what is pending and unlocks the file.
func (s *FileHosts) Close() error { return s.journal.close() }

func (s *FileHosts) lines() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := make([][]byte, 0, len(s.hosts))
	for _, h := range s.hosts {
		lines = append(lines, h.line)
	}
	return lines
}

func (h storedHost) decode() (Host, error) {
	var out Host
	if err := json.Unmarshal(h.line, &out); err != nil {
		return Host{}, fmt.Errorf("decode a stored host: %w", err)
	}
	return out, nil
}

// Host implements Store.
func (s *FileHosts) Host(ctx context.Context, key api.HostKey) (Host, error) {
	s.mu.Lock()
	h, ok := s.hosts[key.MAC]
	s.mu.Unlock()
	if !ok {
		return Host{}, fmt.Errorf("host %s: %w", key.MAC, ErrNoHost)
	}
	return h.decode()
}

// Update implements Store.
func (s *FileHosts) Update(ctx context.Context, key api.HostKey, change func(*Host) error) (Host, error) {
	if err := checkKey(key); err != nil {
		return Host{}, err
	}
	committed := make(chan error, 1)
	host, wait, err := s.update(key, change, committed)
	if err != nil || !wait {
		return host, err
	}
	select {
	case err := <-committed:
		if err != nil {
			return Host{}, fmt.Errorf("store host %s: %w", key.MAC, err)
		}
		return host, nil
	case <-ctx.Done():
		return Host{}, fmt.Errorf("store host %s: %w", key.MAC, ctx.Err())
	}
}

// update changes the host in memory and queues its line under one lock, so
// that the file has the changes in the order in which they were seen.
func (s *FileHosts) update(key api.HostKey, change func(*Host) error, committed chan<- error) (host Host, wait bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.hosts[key.MAC]
	if ok {
		if host, err = old.decode(); err != nil {
			return Host{}, false, err
		}
	} else {
		host = Host{Key: key}
	}
	if err := change(&host); err != nil {
		return Host{}, false, err
	}
	if host.Key.MAC != key.MAC {
		return Host{}, false, fmt.Errorf("store host %s: a change may not rename it to %q", key.MAC, host.Key.MAC)
	}
	if !ok && len(s.hosts) >= maxHosts {
		return Host{}, false, fmt.Errorf("store host %s: the store is full with %d hosts", key.MAC, maxHosts)
	}
	line, err := json.Marshal(host)
	if err != nil {
		return Host{}, false, fmt.Errorf("store host %s: %w", key.MAC, err)
	}
	// An unchanged host costs no write, but its line may still be on the way
	// to the disk, or have failed to get there: then it is queued again.
	if ok && bytes.Equal(line, old.line) && s.journal.isSettled() {
		return host, false, nil
	}
	if err := s.journal.append(line, func(err error) { committed <- err }); err != nil {
		return Host{}, false, fmt.Errorf("store host %s: %w", key.MAC, err)
	}
	s.hosts[key.MAC] = storedHost{line}
	return host, true, nil
}

// All implements Store.
func (s *FileHosts) All(ctx context.Context) ([]Host, error) {
	lines := s.lines()
	hosts := make([]Host, 0, len(lines))
	for _, line := range lines {
		h, err := storedHost{line}.decode()
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Key.MAC, b.Key.MAC) })
	return hosts, nil
}
