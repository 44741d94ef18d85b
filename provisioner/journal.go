package provisioner

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of a journal.
const (
	maxJournalLine    = 2 << 20 // bytes of one line: a host with the largest record, every byte of it escaped
	maxJournalPending = 4096    // lines waiting for the disk
	compactSlack      = 1024    // superseded lines that are always tolerated
)

var (
	errJournalBusy   = errors.New("too many changes wait for the disk")
	errJournalClosed = errors.New("journal is closed")
)

// journal is an append-only file of JSON lines in which a later line replaces
// an earlier one of the same key. It commits in groups: while one fsync runs,
// new lines gather, and the next fsync makes all of them durable at once. So
// the rate of durable changes is not bound by the rate of fsyncs, and a DHCP
// ACK can wait for its lease without a goroutine of its own.
//
// A line that was cut off by a power failure is the last one, was promised to
// nobody, and is dropped when the file is opened. Damage elsewhere is an error.
type journal struct {
	path string
	kind string
	// snapshot returns every live line. It is called by the writer, may take
	// the owner's lock, and so must not be called with a lock that is held
	// during append.
	snapshot func() [][]byte
	lock     *os.File

	mu      sync.Mutex
	wake    sync.Cond
	pending []journalEntry
	settled bool // every line that was ever queued is durable
	closed  bool

	done chan struct{} // closed when the writer has ended

	// Owned by the writer after start.
	file   *os.File
	lines  int // in the file, without the header
	live   int // in the last snapshot
	broken bool
}

type journalEntry struct {
	line []byte
	done func(error)
}

type journalHeader struct {
	Sealift string `json:"sealift"`
	Version int    `json:"version"`
}

// openJournal opens or creates the journal at path and hands each of its lines
// to load. A second process that opens the same path is refused.
func openJournal(path, kind string, load func(line []byte) error) (_ *journal, err error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: another process uses it: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	j := &journal{path: path, kind: kind, lock: lock, file: file, settled: true, done: make(chan struct{})}
	j.wake.L = &j.mu
	if err := j.load(load); err != nil {
		return nil, err
	}
	return j, nil
}

func (j *journal) load(load func([]byte) error) error {
	r := bufio.NewReaderSize(j.file, 64<<10)
	var good int64 // bytes up to the end of the last whole line
	for number := 0; ; number++ {
		line, err := readLine(r)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: line %d: %w", j.path, number+1, err)
		}
		size := int64(len(line)) + 1
		if number == 0 {
			var h journalHeader
			if err := json.Unmarshal(line, &h); err != nil || h.Sealift != j.kind || h.Version != 1 {
				return fmt.Errorf("%s: not a %s file of version 1: it begins with %.40q", j.path, j.kind, line)
			}
		} else {
			if err := load(line); err != nil {
				return fmt.Errorf("%s: line %d: %w", j.path, number+1, err)
			}
			j.lines++
		}
		good += size
	}
	if good == 0 {
		header, err := json.Marshal(journalHeader{j.kind, 1})
		if err != nil {
			return err
		}
		header = append(header, '\n')
		if _, err := j.file.WriteAt(header, 0); err != nil {
			return fmt.Errorf("%s: write header: %w", j.path, err)
		}
		good = int64(len(header))
	}
	if err := j.file.Truncate(good); err != nil {
		return fmt.Errorf("%s: drop an unfinished line: %w", j.path, err)
	}
	if _, err := j.file.Seek(good, io.SeekStart); err != nil {
		return fmt.Errorf("%s: %w", j.path, err)
	}
	if err := errors.Join(j.file.Sync(), syncDir(j.path)); err != nil {
		return fmt.Errorf("%s: sync: %w", j.path, err)
	}
	return nil
}

// readLine returns the next line without its newline, and io.EOF for a last
// line that has none.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case err != bufio.ErrBufferFull:
			return nil, err
		case len(line) > maxJournalLine:
			return nil, fmt.Errorf("longer than %d bytes", maxJournalLine)
		}
	}
}

// start begins to write. live is the number of lines that snapshot would return.
func (j *journal) start(live int, snapshot func() [][]byte) {
	j.snapshot, j.live = snapshot, live
	go j.run()
}

// append queues a line, without its newline, and never blocks. done is called
// from the writer's goroutine once the line is durable or has failed; it must
// not block. An error means that done will not be called.
func (j *journal) append(line []byte, done func(error)) error {
	if len(line) >= maxJournalLine {
		return fmt.Errorf("%s: a line of %d bytes, at most %d are allowed", j.path, len(line), maxJournalLine-1)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errJournalClosed
	}
	if len(j.pending) >= maxJournalPending {
		return errJournalBusy
	}
	j.pending = append(j.pending, journalEntry{line, done})
	j.settled = false
	j.wake.Signal()
	return nil
}

// isSettled reports whether every line that was ever queued is durable.
func (j *journal) isSettled() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.settled
}

// close writes what is pending, then closes the file.
func (j *journal) close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return errJournalClosed
	}
	j.closed = true
	j.wake.Signal()
	j.mu.Unlock()
	if j.snapshot != nil {
		<-j.done
	}
	return errors.Join(j.file.Close(), j.lock.Close())
}

func (j *journal) run() {
	defer close(j.done)
	var batch []journalEntry
	for {
		j.mu.Lock()
		for len(j.pending) == 0 && !j.closed {
			j.wake.Wait()
		}
		if len(j.pending) == 0 {
			j.mu.Unlock()
			return
		}
		batch, j.pending = j.pending, batch[:0]
		j.mu.Unlock()

		err := j.commit(batch)
		if err == nil {
			j.mu.Lock()
			j.settled = len(j.pending) == 0
			j.mu.Unlock()
		}
		for i := range batch {
			batch[i].done(err)
			batch[i] = journalEntry{}
		}
		if !j.broken && j.lines > 2*j.live+compactSlack {
			// The batch is durable already; if this fails, the next commit
			// tries again and reports it.
			j.broken = j.compact() != nil
		}
	}
}

// commit makes a batch durable. After a failed write nobody knows what is in
// the file, so the next commit writes a fresh one from the owner's state.
func (j *journal) commit(batch []journalEntry) error {
	if j.broken {
		if err := j.compact(); err != nil {
			return err
		}
		j.broken = false
	}
	var buf bytes.Buffer
	for _, e := range batch {
		buf.Write(e.line)
		buf.WriteByte('\n')
	}
	if _, err := j.file.Write(buf.Bytes()); err != nil {
		j.broken = true
		return fmt.Errorf("append to %s: %w", j.path, err)
	}
	if err := unix.Fdatasync(int(j.file.Fd())); err != nil {
		j.broken = true
		return fmt.Errorf("sync %s: %w", j.path, err)
	}
	j.lines += len(batch)
	return nil
}

// compact replaces the file by one that holds only live lines. Lines that are
// pending meanwhile are in the owner's state already; appending them again
// changes nothing, because they come in the same order.
func (j *journal) compact() (err error) {
	lines := j.snapshot()
	tmp := j.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("compact %s: %w", j.path, err)
	}
	defer func() {
		if err != nil && j.file != f {
			f.Close()
			os.Remove(tmp)
		}
	}()
	w := bufio.NewWriterSize(f, 256<<10)
	header, err := json.Marshal(journalHeader{j.kind, 1})
	if err != nil {
		return err
	}
	w.Write(append(header, '\n'))
	for _, line := range lines {
		w.Write(line)
		w.WriteByte('\n')
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return fmt.Errorf("compact %s: %w", j.path, err)
	}
	if err := os.Rename(tmp, j.path); err != nil {
		return fmt.Errorf("compact %s: %w", j.path, err)
	}
	j.file.Close()
	j.file, j.lines, j.live = f, len(lines), len(lines)
	// If this fails, the file is whole all the same; but which of the two
	// files has the name after a power failure is open.
	if err := syncDir(j.path); err != nil {
		return fmt.Errorf("compact %s: %w", j.path, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
