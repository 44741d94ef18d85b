package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest/server"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3 // a verification refused what it was given
	exitGone    = 4 // a locked input is to be had nowhere any more
)

// exitStatus ends the help of every command but those with codes of their own.
const exitStatus = `

EXIT STATUS
  0  all went well
  1  it failed
  2  the command line, or a file that a person wrote, is wrong
  3  a verification refused what it was given`

// hinted is an error with the action that mends it.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// Hint is for those who do not know the type.
func (h hinted) Hint() string { return h.hint }

// withHint adds to an error what mends it.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hinted{err, fmt.Sprintf(format, args...)}
}

// refused marks an error as a verification's "no".
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// Is makes a refusal one of the attestation service.
func (r refused) Is(target error) bool { return target == server.ErrRefused }

// usage marks an error as the caller's.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// gone marks an input as lost.
type gone struct{ error }

func (g gone) Unwrap() error { return g.error }

// exitCode returns the code that says what kind of error err is.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, new(gone)):
		return exitGone
	case errors.As(err, new(refused)):
		return exitRefused
	case errors.As(err, new(usage)):
		return exitUsage
	}
	return exitFailed
}

// hintOf returns what mends err, or nothing.
func hintOf(err error) string {
	var hinter interface{ Hint() string }
	if errors.As(err, &hinter) {
		return hinter.Hint()
	}
	return ""
}

// fail tells of a command's error and returns its exit code. An error that only
// says that ctx ended is an interruption.
func (e *env) fail(ctx context.Context, err error) int {
	text, hint, code := err.Error(), hintOf(err), exitCode(err)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		text, hint, code = "interrupted", "", exitFailed
	}
	if e.json {
		b, err := json.Marshal(struct {
			Time  time.Time `json:"time"`
			Event string    `json:"event"`
			Text  string    `json:"text"`
			Hint  string    `json:"hint,omitempty"`
			Exit  int       `json:"exit"`
		}{e.now().UTC(), "error", text, hint, code})
		if err != nil {
			panic("sealift: BUG: " + err.Error())
		}
		fmt.Fprintf(e.err, "%s\n", b)
		return code
	}
	fmt.Fprintf(e.err, "sealift: error: %s\n", text)
	if hint != "" {
		fmt.Fprintf(e.err, "sealift: hint: %s\n", hint)
	}
	return code
}
