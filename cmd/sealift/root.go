package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sealift/sealift/cmd/sealift/internal/progress"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3 // a verification refused what it was given
	exitGone    = 4 // a locked input is to be had nowhere any more
)

// env is what a command may touch of the outside, beside its arguments.
type env struct {
	in   io.Reader
	out  io.Writer // results
	err  io.Writer // talk
	json bool      // --json
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

// hinted is an error with the action that mends it.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// withHint adds a hint to an error that has none.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hinted{err, fmt.Sprintf(format, args...)}
}

// refused marks an error as a verification's "no".
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// usage marks an error as the caller's.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// run executes one command line and returns the exit code.
func run(ctx context.Context, e env, args []string) int {
	root := newRootCommand(&e)
	root.SetArgs(args)
	root.SetIn(e.in)
	root.SetOut(e.out)
	root.SetErr(e.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(e.err, "sealift: error: %v\n", err)
	var h hinted
	var hinter interface{ Hint() string }
	switch {
	case errors.As(err, &h):
		fmt.Fprintf(e.err, "sealift: hint: %s\n", h.hint)
	case errors.As(err, &hinter) && hinter.Hint() != "":
		fmt.Fprintf(e.err, "sealift: hint: %s\n", hinter.Hint())
	}
	switch {
	case errors.As(err, new(gone)):
		return exitGone
	case errors.As(err, new(refused)):
		return exitRefused
	case errors.As(err, new(usage)):
		return exitUsage
	}
	return exitFailed
}

const exitStatus = `

EXIT STATUS
  0  all went well
  1  it failed
  2  the command line was wrong
  3  a verification refused what it was given`

func newRootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "sealift",
		Short: "From a profile to a machine that has proven what it booted",
		Long: `Sealift builds signed, immutable Kubernetes edge OS images, boots bare metal
into them, and releases disk keys and cluster join tokens only to machines
whose TPM proves that they booted exactly that image on approved firmware.

A first tour:
  sealift keys init keys
  sealift image build profiles/demo.yaml --keys keys --out build/image
  sealift serve --config serve.yaml
  sealift machine list` + exitStatus,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().BoolVar(&e.json, "json", false, "write results and events as JSON, one object a line")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(commands(e)...)
	markUsageErrors(root)
	return root
}

// markUsageErrors makes a wrong number of arguments exit with 2, everywhere.
func markUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return withHint(usage{err}, "%s --help", cmd.CommandPath())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		markUsageErrors(c)
	}
}
