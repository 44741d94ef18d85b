package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

func newAuditCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Export and verify the log of decisions",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o operatorOptions
	var from int64
	export := &cobra.Command{
		Use:   "export",
		Short: "Write the audit log to standard output, one JSON object a line",
		Long: `Writes every decision that the service made, with the hash that chains each entry
to the one before. Keep the last hash somewhere else: it proves that the log was
not cut short or written anew.

Example:
  sealift audit export > audit.jsonl` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			defer client.Close()
			var line []byte
			for entry, err := range client.Audit(cmd.Context(), from, attest.MachineID{}) {
				if err != nil {
					return err
				}
				if line, err = audit.AppendLine(line[:0], entry); err != nil {
					return err
				}
				if _, err := e.out.Write(line); err != nil {
					return err
				}
			}
			return nil
		},
	}
	o.addFlags(export)
	export.Flags().Int64Var(&from, "from", 1, "first entry")

	verify := &cobra.Command{
		Use:   "verify FILE",
		Short: "Find the first altered, missing or moved entry of an exported log",
		Long: `Checks the hash chain of a log that ` + "`sealift audit export`" + ` wrote and prints its head.
Needs no service and no key.

Example:
  sealift audit verify audit.jsonl` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) (err error) {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the audit log: %w", err)
			}
			defer f.Close()
			head, n, err := audit.Verify(f)
			if errors.As(err, new(*audit.BrokenError)) {
				return withHint(refused{fmt.Errorf("%s is not as it was written: %w", args[0], err)}, "the %d entries before it are intact; compare with another export", n)
			}
			if err != nil {
				return err
			}
			if n == 0 {
				return refused{fmt.Errorf("%s holds no entries, so it proves nothing", args[0])}
			}
			fmt.Fprintf(e.out, "%d entries intact, head %s\n", n, head.Hash)
			return nil
		},
	}
	cmd.AddCommand(export, verify)
	return cmd
}
