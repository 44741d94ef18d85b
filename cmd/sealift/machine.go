package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
)

func newMachineCommand(e *env) *cobra.Command {
	return newGroup("machine", "See machines, and say which ones may have secrets", `
A machine is known by its TPM's endorsement key. Only an enrolled one is given a
disk key and a join token, and only when what it booted is allowed.`, `
  sealift machine list`,
		newMachineListCommand(e), newMachineShowCommand(e), newMachineImportCommand(e), newMachineExpectedCommand(e), newMachineWithdrawCommand(e), newMachineReEnrolCommand(e),
		newMachineStateCommand(e, "approve", "Enrol a machine that is pending", `A machine that shows up without an install record is pending. Approving it lets it
have secrets from its next boot on. Approving one that is enrolled forgets what its
TPM was (attestation key, firmware version, counters, clock), after TPM2_Clear or
another change that was meant: its next evidence sets them anew. What the service has
of the machine and cannot read ("record.damaged") is written anew: its own record from
the decision log, whose its TPM and serial number are from the records of machines.
That is then all that is done: look at what the machine is, and approve it once more
if that is meant. A machine whose disk key was in the record is quarantined; reinstate
it, and install it again.`, trustedMachine, (*operator.Client).Approve),
		newMachineStateCommand(e, "revoke", "Give a machine nothing any more", `Takes effect on the machine's next request. What it has already unlocked stays
unlocked until it is off.`+whichMachine, findMachine, (*operator.Client).Revoke),
		newMachineStateCommand(e, "quarantine", "Give a machine nothing until it was inspected", `Takes effect on the machine's next request, as a revocation does; it says that
something is wrong with the machine, not that it is gone. Its open join token is
deleted and its node cordoned, or deleted if the service is configured so. A report
of the running system that shows a change does the same by itself.`+whichMachine, findMachine, (*operator.Client).Quarantine),
		newMachineStateCommand(e, "reinstate", "Take back a revocation or a quarantine", `Lets a revoked or quarantined machine have secrets again. Restart a quarantined
machine first: what was measured in its present boot stays measured, and its next
report would quarantine it again. Let the cluster use its node again with
kubectl uncordon NODE.`, trustedMachine, (*operator.Client).Reinstate),
		newRecoveryKeyCommand(e), newRecoveryApproveCommand(e), newRecoveryShowCommand(e),
		newMachineStateCommand(e, "rejoin", "Let a node join the cluster again", `A machine gets a join token until its node has joined. For a node whose kubelet
certificate was lost or ran out, this makes the next release hold a token again.
Restart the machine then: a boot has one release.`+whichMachine, findMachine, (*operator.Client).Rejoin),
		newMachineRotateKeyCommand(e))
}

func newMachineStateCommand(e *env, verb, short, long string, find func(context.Context, *operator.Client, string) (attest.MachineID, error), change func(*operator.Client, context.Context, attest.MachineID, string) (*api.Machine, error)) *cobra.Command {
	var o operatorOptions
	var reason string
	cmd := &cobra.Command{
		Use:   verb + " ID",
		Short: short,
		Long:  long + fmt.Sprintf("\n\nExample:\n  sealift machine %s 6f0c...e1 --reason 'ticket 4711'", verb) + exitStatus,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkMachine(args[0]); err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				id, err := find(cmd.Context(), client, args[0])
				if err != nil {
					return err
				}
				m, err := change(client, cmd.Context(), id, reason)
				if err != nil {
					return err
				}
				return printMachines(e, []api.Machine{*m})
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	required(cmd, "reason")
	return cmd
}

func newMachineListCommand(e *env) *cobra.Command {
	var o operatorOptions
	var state, banks string
	var stale bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List machines",
		Long: `Lists the machines that the service knows. With --json, one object a line. A machine
is stale if no report of its running system came in time: it is off, cut off, or no
longer what it was. That refuses it nothing.

BANKS is what a machine answered when it was asked last to prove which PCR banks are
active (tpm.proveBanks of the policy): proven; failed, if the proof does not hold or
shows a bank that is not quoted; unable, if its TPM cannot give one; silent, if its
agent is too old to say. It is asked when it boots.

Example:
  sealift machine list --state pending
  sealift machine list --banks unable --json` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch s := attest.EnrolmentState(state); s {
			case attest.StateUnknown, attest.StatePending, attest.StateEnrolled, attest.StateRevoked, attest.StateQuarantined:
			default:
				return usage{fmt.Errorf("--state is %q, want pending, enrolled, revoked or quarantined", s)}
			}
			if err := checkBanksFlag(banks); err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				all, err := client.Machines(cmd.Context(), attest.EnrolmentState(state))
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(m api.Machine) bool { return !answeredBanks(&m, banks) })
				if stale {
					all = slices.DeleteFunc(all, func(m api.Machine) bool { return !m.Stale })
				}
				return printMachines(e, all)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().BoolVar(&stale, "stale", false, "only those that are stale")
	cmd.Flags().StringVar(&banks, "banks", "", "only those whose `answer` is proven, failed, unable or silent, or that are not-asked")
	cmd.Flags().StringVar(&state, "state", "", "only these: pending, enrolled, revoked or quarantined")
	return cmd
}

func newMachineShowCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one machine as JSON",
		Long: `Shows the service's record of one machine: indented, or on one line with --json.
If its last evidence was refused, an auditor sees the refusal explained; 'sealift
attest explain' shows it for people.` + whichMachine + `

Example:
  sealift machine show 6f0c...e1
  sealift machine show box-6f0c12a9b7` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkMachine(args[0]); err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				id, err := findMachine(cmd.Context(), client, args[0])
				if err != nil {
					return err
				}
				m, err := client.Machine(cmd.Context(), id)
				if err != nil {
					return err
				}
				shown := struct {
					*api.Machine
					Refusal *attest.Explanation `json:"refusal,omitempty"`
				}{Machine: m}
				if !m.LastAllowed && !m.LastEvidence.IsZero() {
					shown.Refusal, err = client.Explanation(cmd.Context(), m.LastEvidence, nil)
					var answer *operator.Error
					if errors.As(err, &answer) && answer.Status == http.StatusForbidden {
						err = nil // an auditor sees why
					}
					if err != nil {
						return err
					}
				}
				enc := json.NewEncoder(e.out)
				if !e.json {
					enc.SetIndent("", "  ")
				}
				return enc.Encode(shown)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func printMachines(e *env, all []api.Machine) error {
	if e.json {
		enc := json.NewEncoder(e.out)
		for _, m := range all {
			if err := enc.Encode(m); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNODE\tSTATE\tJOINED\tLAST SEEN\tVERDICT\tLAST REPORT\tFIRMWARE\tIMAGE\tREASON\tBANKS")
	for _, m := range all {
		seen, verdict := "never", "-"
		if !m.LastSeen.IsZero() {
			seen, verdict = m.LastSeen.UTC().Format(time.RFC3339), "refused"
			if m.LastAllowed {
				verdict = "allowed"
			}
		}
		report, reason := "-", "-"
		if !m.LastReport.IsZero() {
			report = m.LastReport.UTC().Format(time.RFC3339)
		}
		if m.Stale {
			report += " (stale)"
		}
		if m.State != attest.StateEnrolled && m.Reason != "" {
			reason = shorten(plain(m.Reason), 80)
		}
		if m.Damaged != "" {
			verdict, reason = "refused", "its record cannot be read: sealift machine approve writes it anew"
		}
		fw := string(m.Firmware.Verdict)
		if m.Firmware.Version != "" {
			fw = plain(m.Firmware.Version) + " " + fw
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.ID, m.NodeName, m.State, m.Joined, seen, verdict, report, fw, plain(m.Image), reason, banksText(&m))
	}
	return w.Flush()
}
