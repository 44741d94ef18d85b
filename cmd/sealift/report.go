package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

func newReportCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Write reports for people",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o operatorOptions
	var machine, out string
	attestation := &cobra.Command{
		Use:   "attestation",
		Short: "Write what happened to a machine, or to the fleet, as HTML and JSON",
		Long: `Writes report.html and report.json into --out: each verdict with its findings and
facts, each release, each refusal, the campaigns, and whether the chain of
decisions is intact. The report of a broken chain says so, and exits with 3.

Example:
  sealift report attestation --machine 6f0c...e1 --out report` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options := audit.ReportOptions{Generated: e.now().UTC()}
			if machine != "" {
				id, err := parseMachine(machine)
				if err != nil {
					return err
				}
				options.Machine = id
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			defer client.Close()
			report, err := audit.Build(client.Audit(cmd.Context(), 1, attest.MachineID{}), options)
			if err != nil {
				return err
			}
			if err := writeReport(report, out); err != nil {
				return err
			}
			fmt.Fprintln(e.out, filepath.Join(out, "report.html"))
			if !report.Chain.Verified {
				return refused{fmt.Errorf("the audit log is not as it was written: %s", report.Chain.Broken)}
			}
			return nil
		},
	}
	o.addFlags(attestation)
	attestation.Flags().StringVar(&machine, "machine", "", "one machine's id (default: the whole fleet)")
	attestation.Flags().StringVar(&out, "out", "", "directory to write into (required)")
	attestation.MarkFlagRequired("out")
	cmd.AddCommand(attestation)
	return cmd
}

func writeReport(r *audit.Report, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, "report.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "report.html"), page.Bytes(), 0o644)
}
