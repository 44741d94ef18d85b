package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog is the size at which a log is put aside, in bytes. The one before it
// is kept, so a service's logs take at most twice as much.
const maxLog = 4 << 20

// maxLogLine bounds what Mirror sees of one line, in bytes.
const maxLogLine = 2 << 10

// Log collects the output of one service in a file of bounded size. A full or
// broken disk drops output; it never stops a service.
type Log struct {
	path   string
	mirror func(line string)

	read, write *os.File
	wg          sync.WaitGroup
	file        *os.File // owned by copy
	size        int64    // owned by copy
	err         error    // of the file, owned by copy until wg is done
}

// OpenLog starts to collect into path, whose directory is made. Mirror, which
// is optional, is called with each line.
func OpenLog(path string, mirror func(line string)) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	// Programs that are not written in Go do not expect EAGAIN from it.
	if err := unix.SetNonblock(int(w.Fd()), false); err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, errors.Join(err, r.Close(), w.Close()))
	}
	l := &Log{path: path, mirror: mirror, read: r, write: w}
	l.wg.Go(l.copy)
	return l, nil
}

// Sink is what the service writes to.
func (l *Log) Sink() *os.File { return l.write }

// Close stops to collect, also while a process still holds the sink, and
// closes the file. It returns the first error that lost output.
func (l *Log) Close() error {
	err := errors.Join(l.write.Close(), l.read.Close())
	l.wg.Wait()
	return errors.Join(err, l.err)
}

// drain closes the log after everything that was written to it is copied. It
// waits for every process that holds the sink.
func (l *Log) drain() error {
	err := l.write.Close()
	l.wg.Wait()
	return errors.Join(err, l.read.Close(), l.err)
}

func (l *Log) copy() {
	buf := make([]byte, 32<<10)
	var line []byte
	for {
		n, err := l.read.Read(buf)
		if n > 0 {
			if werr := l.append(buf[:n]); werr != nil && l.err == nil {
				l.err = werr
			}
			if l.mirror != nil {
				line = l.lines(line, buf[:n])
			}
		}
		if err != nil {
			if l.file != nil {
				l.err = errors.Join(l.err, l.file.Close())
			}
			return
		}
	}
}

func (l *Log) append(b []byte) error {
	if l.file != nil && l.size+int64(len(b)) > maxLog {
		err := l.file.Close()
		l.file = nil
		if err := errors.Join(err, os.Rename(l.path, l.path+".1")); err != nil {
			return fmt.Errorf("put log aside: %w", err)
		}
	}
	if l.file == nil {
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		if l.size, err = f.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("open log: %w", errors.Join(err, f.Close()))
		}
		l.file = f
	}
	n, err := l.file.Write(b)
	l.size += int64(n)
	return err
}

// lines gives each complete line of rest and b to the mirror, and returns
// what is left over.
func (l *Log) lines(rest, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			rest = append(rest, b...)
			return rest[:min(len(rest), maxLogLine)]
		}
		rest = append(rest, b[:i]...)
		l.mirror(string(rest[:min(len(rest), maxLogLine)]))
		rest, b = rest[:0], b[i+1:]
	}
}

// isError reports whether a line of a Kubernetes component or of containerd
// is an error: klog puts the severity first ("E0102 15:04:05..."), containerd
// writes logfmt.
func isError(line string) bool {
	if len(line) > 5 && (line[0] == 'E' || line[0] == 'F') && digits(line[1:5]) {
		return true
	}
	b := []byte(line)
	return bytes.Contains(b, []byte("level=error")) || bytes.Contains(b, []byte("level=fatal")) || bytes.HasPrefix(b, []byte("panic:"))
}

func digits(s string) bool {
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return true
}
