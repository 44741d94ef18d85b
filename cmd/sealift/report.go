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
	"github.com/sealift/sealift/attest/client/operator"
)

func newReportCommand(e *env) *cobra.Command {
	return newGroup("report", "Write reports for people", `
Reports are made from the log of decisions, whose chain is verified on the way.`, `
  sealift report attestation --out report`,
		newReportAttestationCommand(e))
}

func newReportAttestationCommand(e *env) *cobra.Command {
	var o operatorOptions
	var machine, out string
	cmd := &cobra.Command{
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
			return o.do(func(client *operator.Client) error {
				report, err := audit.Build(client.Audit(cmd.Context(), 1, attest.MachineID{}), options)
				if err != nil {
					return err
				}
				return tellReport(e, report, out)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&machine, "machine", "", "one machine's `id` (default: the whole fleet)")
	cmd.Flags().StringVar(&out, "out", "", "`directory` to write into (required)")
	required(cmd, "out")
	return cmd
}

// tellReport writes a report and says where it is. One on a broken chain is
// written too: it shows what is known and where the break is.
func tellReport(e *env, r *audit.Report, dir string) error {
	if !r.Subject.IsZero() && len(r.Machines) == 0 {
		return withHint(fmt.Errorf("the audit log tells nothing of machine %s", r.Subject), "sealift machine list shows the ids")
	}
	if err := writeReport(r, dir); err != nil {
		return err
	}
	page := filepath.Join(dir, "report.html")
	if err := e.print(struct {
		HTML  string           `json:"html"`
		JSON  string           `json:"json"`
		Chain audit.ChainState `json:"chain"`
	}{page, filepath.Join(dir, "report.json"), r.Chain}, "%s", page); err != nil {
		return err
	}
	if !r.Chain.Verified {
		return refused{fmt.Errorf("the audit log is not as it was written: %s", r.Chain.Broken)}
	}
	return nil
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
