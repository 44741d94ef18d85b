package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/recovery"
)

// recoveryPoll is how often --wait asks whether a recovery is approved.
const recoveryPoll = 2 * time.Second

func newRecoveryKeyCommand(e *env) *cobra.Command {
	var o operatorOptions
	var req api.RecoveryOpen
	var wait bool
	cmd := &cobra.Command{
		Use:   "recovery-key ID",
		Short: "Get a one-time code that opens the disk of a machine in this boot",
		Long: `For a machine that gets no release: its evidence is refused, or it does not reach
the service. It shows a request on its console, which --request takes as text or,
with -, from standard input. The first call opens a recovery. When two people have
approved it with 'sealift machine recovery-approve', the same call again prints the
code, once. Who opened it may be one of the two who approve. With --wait the call
waits for them.

The code is for this boot of this machine alone, and for at most one hour. Every
step is in the audit log, the code is not.

Example:
  sealift machine recovery-key 6f0c...e1 --reason 'store 12: line is down' --wait \
    --request '0G4YQ ... / ... / ... / ...'` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseMachine(args[0])
			if err != nil {
				return err
			}
			if req.Request == "-" {
				b, err := io.ReadAll(io.LimitReader(e.in, recovery.MaxText+1))
				if err != nil {
					return fmt.Errorf("read the request: %w", err)
				}
				req.Request = string(b)
			}
			if len(req.Request) > recovery.MaxText {
				return usage{fmt.Errorf("the request has more than %d bytes", recovery.MaxText)}
			}
			return o.do(func(client *operator.Client) error {
				r, err := client.OpenRecovery(cmd.Context(), id, &req)
				if err != nil {
					return err
				}
				if wait {
					if r, err = awaitApprovals(cmd.Context(), e, client, r); err != nil {
						return err
					}
				}
				if len(r.Approvals) < api.RecoveryApprovals {
					return printRecovery(e, r)
				}
				code, err := client.TakeRecoveryCode(cmd.Context(), id, r.ID)
				if err != nil {
					return err
				}
				defer clear(code.Code)
				return printRecoveryCode(e, code)
			})
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Request, "request", "", "the `text` on the machine's console, or - (required)")
	f.StringVar(&req.Reason, "reason", "", "why, for the audit log (required)")
	f.IntVar(&req.Minutes, "minutes", 60, "how long the recovery and its code are good for, at most 60")
	f.BoolVar(&wait, "wait", false, "wait until two people have approved")
	required(cmd, "request", "reason")
	return cmd
}

// awaitApprovals asks until a recovery is approved or over.
func awaitApprovals(ctx context.Context, e *env, client *operator.Client, r *api.Recovery) (*api.Recovery, error) {
	for told := -1; len(r.Approvals) < api.RecoveryApprovals; {
		if n := len(r.Approvals); n != told {
			told = n
			fmt.Fprintf(e.err, "%d of %d approvals; another person: sealift machine recovery-approve %s %s --reason TEXT\n", n, api.RecoveryApprovals, r.Machine, r.ID)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(recoveryPoll):
		}
		now, err := client.Recovery(ctx, r.Machine)
		if err != nil {
			return nil, err
		}
		if now.ID != r.ID {
			return nil, fmt.Errorf("recovery %s: %s of %s took its place", r.ID, now.ID, plain(now.By))
		}
		if !e.now().Before(now.Expires) {
			return nil, fmt.Errorf("recovery %s was over at %s without two approvals", r.ID, now.Expires.UTC().Format(time.RFC3339))
		}
		r = now
	}
	return r, nil
}

func newRecoveryApproveCommand(e *env) *cobra.Command {
	var o operatorOptions
	var reason string
	cmd := &cobra.Command{
		Use:   "recovery-approve ID REQUEST",
		Short: "Approve the recovery of a machine",
		Long: `Approves that who opened a recovery is given a code that opens the machine's disk.
Two people must, and nobody counts twice, under whatever name or certificate. Ask
first: is somebody you know at the machine, and is the request the one on its
console? 'sealift machine recovery-show ID' tells who opened it, and why.

Example:
  sealift machine recovery-approve 6f0c...e1 5e1f0a2b3c4d --reason 'spoke with store 12'` + exitStatus,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseMachine(args[0])
			if err != nil {
				return err
			}
			return o.do(func(client *operator.Client) error {
				r, err := client.ApproveRecovery(cmd.Context(), id, &api.RecoveryApprove{Request: args[1], Reason: reason})
				if err != nil {
					return err
				}
				return printRecovery(e, r)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	required(cmd, "reason")
	return cmd
}

func newRecoveryShowCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "recovery-show ID",
		Short: "Show the last recovery of a machine",
		Long: `Shows who opened the last recovery of a machine, why, who approved it, and whether
its code was given.` + whichMachine + `

Example:
  sealift machine recovery-show 6f0c...e1` + exitStatus,
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
				r, err := client.Recovery(cmd.Context(), id)
				if err != nil {
					return err
				}
				return printRecovery(e, r)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func printRecovery(e *env, r *api.Recovery) error {
	if e.json {
		return json.NewEncoder(e.out).Encode(r)
	}
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "RECOVERY\t%s\n", r.ID)
	fmt.Fprintf(w, "MACHINE\t%s (%s)\n", r.Machine, r.NodeName)
	fmt.Fprintf(w, "OPENED\t%s by %s: %s\n", r.Opened.UTC().Format(time.RFC3339), plain(r.By), plain(r.Reason))
	fmt.Fprintf(w, "UNTIL\t%s\n", r.Expires.UTC().Format(time.RFC3339))
	// The request as the machine shows it, for those who approve to compare.
	for i, l := range recovery.RequestOf(r.BootKey, r.Machine, r.DiskGUID) {
		fmt.Fprintf(w, "REQUEST %d\t%s\n", i+1, l)
	}
	for _, a := range r.Approvals {
		fmt.Fprintf(w, "APPROVED\t%s by %s: %s\n", a.Time.UTC().Format(time.RFC3339), plain(a.By), plain(a.Reason))
	}
	switch {
	case !r.Given.IsZero():
		fmt.Fprintf(w, "CODE\tgiven %s\n", r.Given.UTC().Format(time.RFC3339))
	case len(r.Approvals) < api.RecoveryApprovals:
		fmt.Fprintf(w, "CODE\tneeds %d more: sealift machine recovery-approve %s %s --reason TEXT\n", api.RecoveryApprovals-len(r.Approvals), r.Machine, r.ID)
	default:
		fmt.Fprintf(w, "CODE\tfor %s: the same recovery-key command again\n", plain(r.By))
	}
	return w.Flush()
}

// printRecoveryCode prints a code, which is what was asked for: the one place
// where a secret is.
func printRecoveryCode(e *env, c *api.RecoveryCode) error {
	lines := strings.Split(string(c.Code), "\n")
	if e.json {
		return json.NewEncoder(e.out).Encode(struct {
			Lines    []string         `json:"lines"`
			Machine  attest.MachineID `json:"machine"`
			NodeName string           `json:"nodeName"`
			Expires  time.Time        `json:"expires"`
		}{lines, c.Recovery.Machine, c.Recovery.NodeName, c.Recovery.Expires})
	}
	for i, l := range lines {
		if _, err := fmt.Fprintf(e.out, "%d: %s\n", i+1, l); err != nil {
			return err
		}
	}
	fmt.Fprintf(e.err, "type these lines at %s before %s and before it restarts\n", c.Recovery.NodeName, c.Recovery.Expires.UTC().Format(time.RFC3339))
	return nil
}
