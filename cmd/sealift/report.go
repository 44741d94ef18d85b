package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
)

func newReportCommand(e *env) *cobra.Command {
	return newGroup("report", "Write reports for people", `
Reports are made from the log of decisions, which is verified on the way.`, `
  sealift report attestation --key release.pub --out report`,
		newReportAttestationCommand(e))
}

// reportOptions are what a report is of, and what is to show that its log is the
// service's.
type reportOptions struct {
	machine, out string
	key, head    string
	former       []string
	chainOnly    bool
}

func newReportAttestationCommand(e *env) *cobra.Command {
	var o operatorOptions
	var r reportOptions
	cmd := &cobra.Command{
		Use:   "attestation",
		Short: "Write what happened to a machine, or to the fleet, as HTML and JSON",
		Long: `Writes report.html and report.json into --out: each verdict with its findings and
facts, each release, each refusal, the campaigns, and what was shown of the log that
it is made from.

That the log is one chain proves nothing of who wrote it: anybody can make one. With
--key, the public release key, the service signs where its log ends, and the report is
of the log up to there; an enrolment that the service did not sign is marked. Where the
release key was changed, --former takes those before it. With --head the log must have the entry whose hash was kept
elsewhere, which shows nothing of the entries after it. Without both the report says
that nothing was shown; --chain-only takes that. A report that is not verified is
written all the same, says why, and the exit status is 3.

Example:
  sealift report attestation --key release.pub --machine 6f0c...e1 --out report

EXIT STATUS
  0  it is written, and the log is the service's; with --chain-only, it is a chain
  1  it failed
  2  the command line, or the key, is wrong
  3  it is written, and the log was altered, or nothing shows that the service wrote it`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options := audit.ReportOptions{Generated: e.now().UTC()}
			if r.machine != "" {
				if err := checkMachine(r.machine); err != nil {
					return err
				}
			}
			if r.chainOnly && (r.key != "" || r.head != "") {
				return usage{errors.New("--chain-only is for a log of which nothing else is to be shown: leave it out with --key and --head")}
			}
			if err := options.Kept.UnmarshalText([]byte(r.head)); err != nil {
				return usage{fmt.Errorf("--head: %w", err)}
			}
			if r.key == "" && len(r.former) > 0 {
				return usage{errors.New("--former is for what was signed before the present release key: give that with --key")}
			}
			if r.key != "" {
				var err error
				if options.Key, err = readReleaseKey(r.key); err != nil {
					return err
				}
				for _, file := range r.former {
					key, err := readReleaseKey(file)
					if err != nil {
						return err
					}
					options.Former = append(options.Former, key)
				}
				if err := (audit.ReleaseKeys{Present: options.Key, Former: options.Former}).Check(); err != nil {
					return usage{fmt.Errorf("--key and --former: %w", err)}
				}
			}
			return o.do(func(client *operator.Client) (err error) {
				if r.machine != "" {
					if options.Machine, err = findMachine(cmd.Context(), client, r.machine); err != nil {
						return err
					}
				}
				return makeReport(cmd.Context(), e, client, &r, options)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&r.machine, "machine", "", "one machine's `id`, first digits of it, or its node's name (default: the whole fleet)")
	cmd.Flags().StringVar(&r.out, "out", "", "`directory` to write into (required)")
	cmd.Flags().StringVar(&r.key, "key", "", "PEM `file` with the public release key of the service (release.pub)")
	cmd.Flags().StringArrayVar(&r.former, "former", nil, "PEM `file` with a public release key that the service had before, the latest last (repeatable)")
	cmd.Flags().StringVar(&r.head, "head", "", "`hash` of an entry that was kept elsewhere, which the log must have")
	cmd.Flags().BoolVar(&r.chainOnly, "chain-only", false, "check the chain alone, which does not show who wrote it")
	required(cmd, "out")
	return cmd
}

// makeReport makes a report of the service's log. A service that signs nothing, as it
// is of an earlier version or finds its log altered, has its report all the same.
func makeReport(ctx context.Context, e *env, client *operator.Client, o *reportOptions, options audit.ReportOptions) error {
	var refusal error
	if options.Key != nil {
		signed, err := client.AuditHead(ctx)
		var answer *operator.Error
		switch {
		case err == nil:
			options.Signed = signed
		case errors.As(err, &answer) && (answer.Status == http.StatusNotFound || answer.Status == http.StatusConflict):
			refusal = err
		default:
			return err
		}
	}
	report, err := audit.Build(client.Audit(ctx, 1, attest.MachineID{}), options)
	if err != nil {
		return err
	}
	if refusal != nil && report.Chain.Unproven != "" {
		report.Chain.Unproven += ": " + refusal.Error()
	}
	return tellReport(e, report, o)
}

// tellReport writes a report and says where it is, and what was shown of its log. One
// on a log that is not verified is written too: it shows what is known.
func tellReport(e *env, r *audit.Report, o *reportOptions) error {
	c := &r.Chain
	if !r.Subject.IsZero() && len(r.Machines) == 0 {
		nothing := fmt.Errorf("the audit log tells nothing of machine %s", r.Subject)
		switch {
		case !c.Intact: // what is missing may have told of it
			return refused{fmt.Errorf("%w, and is not as it was written: %s", nothing, c.Broken)}
		case !c.Verified && (o.key != "" || o.head != ""):
			return refused{fmt.Errorf("%w, and nothing shows that the service wrote it: %s", nothing, c.Unproven)}
		}
		return withHint(nothing, "sealift machine list shows the ids")
	}
	if err := writeReport(r, o.out); err != nil {
		return err
	}
	page := filepath.Join(o.out, "report.html")
	text := page
	if c.Signed != nil {
		text += fmt.Sprintf("\nsigned by the service at %s, up to entry %d", c.Signed.Time.Format(time.RFC3339), c.Head.Seq)
	}
	if c.Kept != nil && c.Verified {
		text += fmt.Sprintf("\nentry %d has the hash that was given", c.Kept.Seq)
	}
	if c.Intact && !c.Verified {
		text += "\nnot shown: that the service wrote the log, and that it is all there"
	}
	if err := e.print(struct {
		HTML  string           `json:"html"`
		JSON  string           `json:"json"`
		Chain audit.ChainState `json:"chain"`
	}{page, filepath.Join(o.out, "report.json"), r.Chain}, "%s", text); err != nil {
		return err
	}
	switch {
	case !c.Intact:
		return refused{fmt.Errorf("the audit log is not as it was written: %s", c.Broken)}
	case !c.Verified && !o.chainOnly:
		return withHint(refused{fmt.Errorf("the audit log is a chain of %d entries, and nothing shows that the service wrote it: %s", c.Entries, c.Unproven)},
			"give the service's public release key (--key release.pub) or the hash of an entry that was kept elsewhere (--head HASH); --chain-only checks the chain alone")
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
