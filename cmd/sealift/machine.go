package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
)

func newMachineCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "machine",
		Short: "See machines, and say which ones may have secrets",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMachineListCommand(e), newMachineShowCommand(e))
	for _, c := range []struct {
		verb, short, long string
		call              func(*operator.Client, context.Context, attest.MachineID, string) (*api.Machine, error)
	}{
		{"approve", "Enrol a machine that is pending", "A machine that shows up without an install record is pending. Approving it lets it\nhave secrets from its next boot on.", (*operator.Client).Approve},
		{"revoke", "Give a machine nothing any more", "Takes effect on the machine's next request. What it has already unlocked stays\nunlocked until it is off.", (*operator.Client).Revoke},
		{"reinstate", "Take back a revocation or a quarantine", "Lets a revoked or quarantined machine have secrets again.", (*operator.Client).Reinstate},
	} {
		var o operatorOptions
		var reason string
		sub := &cobra.Command{
			Use:   c.verb + " ID",
			Short: c.short,
			Long:  c.long + fmt.Sprintf("\n\nExample:\n  sealift machine %s 6f0c...e1 --reason 'ticket 4711'", c.verb) + exitStatus,
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				id, err := parseMachine(args[0])
				if err != nil {
					return err
				}
				client, err := o.client()
				if err != nil {
					return err
				}
				defer client.Close()
				m, err := c.call(client, cmd.Context(), id, reason)
				if err != nil {
					return err
				}
				return printMachines(e, []api.Machine{*m})
			},
		}
		o.addFlags(sub)
		sub.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
		sub.MarkFlagRequired("reason")
		cmd.AddCommand(sub)
	}
	return cmd
}

func newMachineListCommand(e *env) *cobra.Command {
	var o operatorOptions
	var state string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List machines",
		Long: `Lists the machines that the service knows. With --json, one object a line.

Example:
  sealift machine list --state pending` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			defer client.Close()
			all, err := client.Machines(cmd.Context(), attest.EnrolmentState(state))
			if err != nil {
				return err
			}
			return printMachines(e, all)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&state, "state", "", "only these: pending, enrolled, revoked or quarantined")
	return cmd
}

func newMachineShowCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one machine as JSON",
		Long: `Shows the service's record of one machine.

Example:
  sealift machine show 6f0c...e1` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseMachine(args[0])
			if err != nil {
				return err
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			defer client.Close()
			m, err := client.Machine(cmd.Context(), id)
			if err != nil {
				return err
			}
			enc := json.NewEncoder(e.out)
			enc.SetIndent("", "  ")
			return enc.Encode(m)
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
	fmt.Fprintln(w, "ID\tNODE\tSTATE\tJOINED\tLAST SEEN\tVERDICT\tFIRMWARE\tIMAGE")
	for _, m := range all {
		seen, verdict := "never", "-"
		if !m.LastSeen.IsZero() {
			seen, verdict = m.LastSeen.UTC().Format(time.RFC3339), "refused"
			if m.LastAllowed {
				verdict = "allowed"
			}
		}
		fw := string(m.Firmware.Verdict)
		if m.Firmware.Version != "" {
			fw = m.Firmware.Version + " " + fw
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%s\t%s\t%s\t%s\n", m.ID, m.NodeName, m.State, m.Joined, seen, verdict, fw, m.Image)
	}
	return w.Flush()
}
