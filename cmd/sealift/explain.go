package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/image/manifest"
)

// explainOptions say what to explain, and by what.
type explainOptions struct {
	operatorOptions
	proposalOptions
	policy, config, last, writeLog string
}

func newAttestExplainCommand(e *env) *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain MACHINE|EVIDENCE|FILE",
		Short: "Explain why a machine was refused, event by event",
		Long: `Appraises stored evidence again and explains the verdict: each finding with the
component that it is about, how far it is proven, and the command that mends it;
and what changed since the last boot of the machine that was accepted.

MACHINE is the id of a machine, whose last evidence is explained; EVIDENCE is a
digest that the audit log names. The service does it, for an auditor. FILE is
stored evidence as JSON; it is explained here, by the images, firmware and TPM
roots of --config, and compared with the evidence in --last.

With --policy it is explained under that policy instead of the present one.

Each line ends with how far it is proven: quoted (signed by the TPM), digest (only
the digest is, the text beside it is a hint), claimed (the machine's word) or
recorded (the service's own record). A machine's state may have changed since it sent
what is explained; then a last line has it.

Example:
  sealift attest explain 6f0c...e1
  sealift attest explain evidence.json --config serve.yaml --policy new.yaml

EXIT STATUS
  0  it was explained, whatever the verdict
  1  it failed
  2  the command line, or a file that a person wrote, is wrong
  3  the service refused the operator`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if exists(args[0]) {
				return o.explainFile(cmd.Context(), e, args[0])
			}
			return o.explainStored(cmd.Context(), e, args[0])
		},
	}
	o.operatorOptions.addFlags(cmd)
	o.proposalOptions.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.policy, "policy", "", "policy `file` to explain under")
	f.StringVar(&o.config, "config", "", "configuration `file` of sealift serve, for evidence in a file")
	f.StringVar(&o.last, "last", "", "`file` with the last accepted evidence, to compare with")
	f.StringVar(&o.writeLog, "write-log", "", "`file` to write the event log of the evidence to, for sealift attest log")
	return cmd
}

func digestOfBytes(b []byte) manifest.SHA256 { return sha256.Sum256(b) }

// explained is what --json prints.
type explained struct {
	Evidence manifest.SHA256 `json:"evidence"`
	*attest.Explanation
}

func (o *explainOptions) explainFile(ctx context.Context, e *env, file string) error {
	if o.config == "" {
		return withHint(usage{errors.New("evidence in a file is explained by the reference values of a configuration")}, "sealift attest explain %s --config serve.yaml", file)
	}
	stored, digest, err := readEvidence(file)
	if err != nil {
		return err
	}
	source, _, err := sourceOf(e, o.config)
	if o.policy != "" {
		_, source, err = o.offline(e, o.config, o.policy)
	}
	if err != nil {
		return err
	}
	p, err := source.policy(ctx, stored.Machine)
	if err != nil {
		return err
	}
	var last *attest.Evidence
	if o.last != "" {
		accepted, _, err := readEvidence(o.last)
		if err != nil {
			return err
		}
		last = &accepted.Evidence
	}
	if err := o.saveLog(stored); err != nil {
		return err
	}
	return printExplanation(e, digest, attest.Explain(stored.Appraise(p), &stored.Evidence, p, last))
}

func (o *explainOptions) saveLog(stored *api.StoredEvidence) error {
	if o.writeLog == "" {
		return nil
	}
	return replaceFile(o.writeLog, stored.Evidence.EventLog, 0o644)
}

func (o *explainOptions) explainStored(ctx context.Context, e *env, name string) error {
	id, err := attest.ParseMachineID(name)
	if err != nil {
		return withHint(usage{fmt.Errorf("%s is neither a file nor the id of a machine or of evidence", name)}, "sealift machine list shows the ids")
	}
	var proposal *api.PolicyProposal
	if o.policy != "" {
		if proposal, err = o.proposal(o.policy); err != nil {
			return err
		}
	}
	return o.do(func(client *operator.Client) error {
		digest := manifest.SHA256(id) // both are 64 hex digits
		m, err := client.Machine(ctx, id)
		var answer *operator.Error
		switch {
		case err == nil && m.LastEvidence.IsZero():
			return fmt.Errorf("there is no stored evidence of machine %s: it has not asked since it was enrolled, or only without proof of its TPM", id)
		case err == nil:
			digest = m.LastEvidence
		case !errors.As(err, &answer) || answer.Status != http.StatusNotFound:
			return err
		}
		if o.writeLog != "" {
			b, err := client.Evidence(ctx, digest)
			if err != nil {
				return err
			}
			stored, err := api.DecodeEvidence(b)
			if err != nil {
				return err
			}
			if err := o.saveLog(stored); err != nil {
				return err
			}
		}
		x, err := client.Explanation(ctx, digest, proposal)
		if err != nil {
			return err
		}
		if err := printExplanation(e, digest, x); err != nil || m == nil || e.json {
			return err
		}
		return printStanding(e, m, x)
	})
}

// printStanding says that a machine's state is another than when it sent what was
// explained.
func printStanding(e *env, m *api.Machine, x *attest.Explanation) error {
	if slices.ContainsFunc(x.Facts, func(f attest.Fact) bool { return f.Name == "machine.state" && f.Value == string(m.State) }) {
		return nil
	}
	text, verb := "since then: the machine is "+string(m.State), ""
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	switch m.State {
	case attest.StatePending:
		verb = "approve"
	case attest.StateRevoked, attest.StateQuarantined:
		verb = "reinstate"
	}
	if err := e.print(nil, "%s [recorded]", plain(text)); err != nil || verb == "" {
		return err
	}
	return e.print(nil, "  command: sealift machine %s %s --reason TEXT", verb, m.ID)
}

func printExplanation(e *env, digest manifest.SHA256, x *attest.Explanation) error {
	if e.json {
		return e.print(explained{digest, x}, "")
	}
	verdict := "refused"
	if x.Allowed {
		verdict = "accepted"
	}
	if err := e.print(nil, "machine %s, evidence %s: %s", x.Machine, digest, verdict); err != nil {
		return err
	}
	for _, line := range x.Lines() {
		if err := e.print(nil, "%s", plain(line)); err != nil {
			return err
		}
	}
	for _, f := range x.Facts {
		if err := e.print(nil, "fact  %s  %s  [%s]", f.Name, plain(f.Value), f.Trust); err != nil {
			return err
		}
	}
	switch {
	case !x.Compared:
		return e.print(nil, "there is no accepted evidence of this machine to compare with")
	case len(x.Differences) == 0:
		return e.print(nil, "nothing that was measured changed since the last good boot")
	}
	return nil
}
