package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/sealift/sealift/cmd/sealift/internal/progress"
	"github.com/sealift/sealift/profiles"
)

// env is what a command may touch of the outside, beside its arguments.
type env struct {
	in   io.Reader
	out  io.Writer // results
	err  io.Writer // talk
	json bool      // --json
	// client fetches inputs of images. Optional; one with sane limits if nil.
	client *http.Client
}

// now is the clock of commands.
func (env) now() time.Time { return time.Now() }

// log returns a logger for servers: text for people, JSON with --json.
func (e *env) log(level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if e.json {
		return slog.New(slog.NewJSONHandler(e.err, opts))
	}
	return slog.New(slog.NewTextHandler(e.err, opts))
}

// serverLog returns the logger of a server that was asked for a format, or for
// none. debug logs every request, too.
func (e *env) serverLog(format string, debug bool) (*slog.Logger, error) {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	switch format {
	case "":
		return e.log(level), nil
	case "json":
		return slog.New(slog.NewJSONHandler(e.err, &slog.HandlerOptions{Level: level})), nil
	case "text":
		return slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: level})), nil
	}
	return nil, usage{fmt.Errorf("--log-format is %q, want text or json", format)}
}

// progress returns a reporter that fits the error stream.
func (e *env) progress() *progress.Reporter {
	mode := progress.Plain
	if e.json {
		mode = progress.JSON
	} else if f, ok := e.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		mode = progress.Terminal
	}
	return progress.New(e.err, mode, time.Now)
}

// print writes one result: v as one line of JSON with --json, else the text and
// a newline.
func (e *env) print(v any, format string, args ...any) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(v)
	}
	_, err := fmt.Fprintf(e.out, format+"\n", args...)
	return err
}

// plain makes text that a machine claimed fit for a terminal: what is not
// printable, and so could steer the terminal, becomes a question mark.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// maxSmall bounds files that a person writes or a key tool makes, bytes.
const maxSmall = 1 << 20

// readFile reads a regular file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := profiles.OpenRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, nil
}

// replaceFile writes a file so that readers see the old content or the new,
// and so that an interruption leaves no part of one.
func replaceFile(name string, b []byte, mode os.FileMode) error {
	return writeFile(name, mode, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// writeFile is replaceFile for content that is made as it is written. If write
// fails the old file stays.
func writeFile(name string, mode os.FileMode, write func(io.Writer) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	if err := errors.Join(write(tmp), tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return err
	}
	done = true
	return nil
}
