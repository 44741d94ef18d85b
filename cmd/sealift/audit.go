package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/image/manifest"
)

func newAuditCommand(e *env) *cobra.Command {
	return newGroup("audit", "Export and verify the log of decisions", `
The service chains each of its decisions to the one before by hash. An exported
log is checked anywhere, without the service and without a key.`, `
  sealift audit export --out audit.jsonl
  sealift audit verify audit.jsonl`,
		newAuditExportCommand(e), newAuditVerifyCommand(e))
}

func newAuditExportCommand(e *env) *cobra.Command {
	var o operatorOptions
	var from int64
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the audit log, one JSON object a line",
		Long: `Writes every decision that the service made, with the hash that chains each entry
to the one before. Keep the last hash somewhere else: it proves that the log was
not cut short or written anew. With --out the file is there whole or not at all.

Example:
  sealift audit export --out audit.jsonl` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from < 1 {
				return usage{fmt.Errorf("--from is %d, want 1 or more", from)}
			}
			return o.do(func(client *operator.Client) error {
				write := func(w io.Writer) error { return exportAudit(cmd.Context(), client, from, w) }
				if out == "" {
					return write(e.out)
				}
				return writeFile(out, 0o600, write)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().Int64Var(&from, "from", 1, "number of the first entry")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (default: standard output)")
	return cmd
}

func exportAudit(ctx context.Context, client *operator.Client, from int64, w io.Writer) error {
	var line []byte
	for entry, err := range client.Audit(ctx, from, attest.MachineID{}) {
		if err != nil {
			return err
		}
		if line, err = audit.AppendLine(line[:0], entry); err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return fmt.Errorf("write the audit log: %w", err)
		}
	}
	return nil
}

func newAuditVerifyCommand(e *env) *cobra.Command {
	var head string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Find the first altered, missing or moved entry of an exported log",
		Long: `Checks the hash chain of a log that 'sealift audit export' wrote from its first
entry on, and prints its head. Needs no service and no key. FILE may be - for
standard input. A log that was cut short at its end is still a chain: give the
last hash that was kept elsewhere as --head to see that it is all there.

Example:
  sealift audit verify audit.jsonl` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var want manifest.SHA256
			if err := want.UnmarshalText([]byte(head)); err != nil {
				return usage{fmt.Errorf("--head: %w", err)}
			}
			if args[0] == "-" {
				return verifyAudit(cmd.Context(), e, "the log", e.in, want)
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the audit log: %w", err)
			}
			defer f.Close() // only read
			return verifyAudit(cmd.Context(), e, args[0], f, want)
		},
	}
	cmd.Flags().StringVar(&head, "head", "", "`hash` that the last entry must have")
	return cmd
}

func verifyAudit(ctx context.Context, e *env, name string, r io.Reader, want manifest.SHA256) error {
	head, n, err := audit.Verify(r)
	switch {
	case errors.As(err, new(*audit.BrokenError)):
		return withHint(refused{fmt.Errorf("%s is not as it was written: %w", name, err)}, "the %d entries before it are intact; compare with another export", n)
	case err != nil:
		return err
	case ctx.Err() != nil: // a Ctrl-C that ended the other side of a pipe has cut the log
		return ctx.Err()
	case n == 0:
		return refused{fmt.Errorf("%s holds no entries, so it proves nothing", name)}
	case !want.IsZero() && head.Hash != want:
		return withHint(refused{fmt.Errorf("%s does not end where it should: its head is %s, --head is %s", name, head.Hash, want)},
			"it was cut short or written anew, or it is longer than when --head was kept")
	}
	return e.print(struct {
		Entries int64      `json:"entries"`
		Head    audit.Head `json:"head"`
	}{n, head}, "%d entries intact, head %s", n, head.Hash)
}
