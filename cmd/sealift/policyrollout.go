package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/sign/bundle"
)

func newPolicyEnableCommand(e *env) *cobra.Command {
	var o operatorOptions
	var po proposalOptions
	var reason string
	var rollback bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "enable FILE",
		Short: "Have a running service go by a policy",
		Long: `Sends a signed policy with the files that it names to the service, which makes it
that of all its replicas, without a restart. It must be signed with the image key,
and its version must be above the present one. The role approver is needed.

No replica releases anything by the former policy more than 5 seconds after this;
one that cannot read the store, or the policy, releases nothing. The command waits
for --wait until every replica goes by it.

With --images, the signed manifest of an image is sent along to all replicas. It
stays until a policy no longer lists the image. The same policy may be enabled again
to add one.

--rollback allows a version below the present one, or a policy of another name. Try
a policy before with 'sealift policy whatif'.

Example:
  sealift policy enable policy.yaml --reason 'ticket 4711'
  sealift policy enable policy.yaml --images build/image-2 --reason 'image 1.5'
  sealift policy enable old.yaml --rollback --reason 'version 8 refuses store 12'

EXIT STATUS
  0  it is enabled, and every replica goes by it
  1  it failed; or it is enabled, and a replica does not go by it
  2  the command line, or the policy, is wrong
  3  the service refused it`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < 0 {
				return usage{fmt.Errorf("--wait is %v, want 0 or more", wait)}
			}
			p, err := po.proposal(args[0])
			if err != nil {
				return err
			}
			req := &api.PolicyEnable{Policy: p.Policy, Files: p.Files, Images: p.Images, Reason: reason, Rollback: rollback}
			req.Bundle, err = readFile(args[0]+sign.BundleSuffix, bundle.MaxSize)
			if errors.Is(err, os.ErrNotExist) {
				return withHint(refused{fmt.Errorf("policy %s is not signed", args[0])}, "sealift policy sign %s --keys KEYS", args[0])
			}
			if err != nil {
				return fmt.Errorf("read the signature of the policy: %w", err)
			}
			return o.do(func(client *operator.Client) error {
				state, err := client.EnablePolicy(cmd.Context(), req)
				var answer *operator.Error
				if errors.As(err, &answer) && answer.Status == http.StatusConflict {
					return refused{err}
				}
				if err != nil {
					return err
				}
				fmt.Fprintf(e.err, "enabled: policy %s version %d\n", state.Name, state.Version)
				return awaitPolicy(cmd.Context(), e, client, state, wait)
			})
		},
	}
	o.addFlags(cmd)
	po.addImagesFlag(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`text` for the audit log (required)")
	cmd.Flags().BoolVar(&rollback, "rollback", false, "allow a version below the present one, or a policy of another name")
	cmd.Flags().DurationVar(&wait, "wait", 15*time.Second, "`time` to wait for all replicas")
	required(cmd, "reason")
	return cmd
}

// policyAsk is how often awaitPolicy asks.
const policyAsk = time.Second

// awaitPolicy waits until every replica goes by what was enabled, and prints
// them.
func awaitPolicy(ctx context.Context, e *env, client *operator.Client, enabled *api.PolicyState, wait time.Duration) error {
	state := enabled
	for end := time.Now().Add(wait); behind(state) > 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(policyAsk, time.Until(end))):
		}
		next, err := client.Policy(ctx)
		if err != nil {
			return err
		}
		if next.Revision > enabled.Revision {
			return fmt.Errorf("policy %s version %d was enabled meanwhile", next.Name, next.Version)
		}
		state = next
	}
	if err := printPolicyStatus(e, state); err != nil {
		return err
	}
	if n := behind(state); n > 0 {
		return withHint(fmt.Errorf("the policy is enabled, and %d of %d replicas do not go by it: they release nothing, or have just ended", n, len(state.Replicas)),
			"their log says why; sealift policy status shows them")
	}
	return nil
}

// behind counts the replicas that do not go by what is enabled.
func behind(s *api.PolicyState) int {
	n := 0
	for _, r := range s.Replicas {
		if r.Revision != s.Revision || r.Fault != "" {
			n++
		}
	}
	return n
}

func newPolicyStatusCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which policy each replica of a service goes by",
		Long: `Prints the policy that is enabled, and of each replica that was heard of in the last
30 seconds the policy that it goes by, when it last saw that this is the enabled one,
and the digest of what else it judges by: images, firmware catalogue and TPM roots,
which must be the same for all.

Example:
  sealift policy status

EXIT STATUS
  0  every replica goes by it, and all judge by the same
  1  it failed
  2  the command line is wrong
  3  a replica does not go by it, or judges by something else`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				s, err := client.Policy(cmd.Context())
				if err != nil {
					return err
				}
				if err := printPolicyStatus(e, s); err != nil {
					return err
				}
				if n := behind(s); n > 0 {
					return refused{fmt.Errorf("%d of %d replicas do not go by the enabled policy: they release nothing", n, len(s.Replicas))}
				}
				for _, r := range s.Replicas {
					if r.Inputs != s.Replicas[0].Inputs {
						return withHint(refused{errors.New("the replicas do not judge by the same")}, "give all replicas the same images, firmware.catalogue and tpm in their configuration")
					}
				}
				return nil
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

// printPolicyStatus prints the policy without its text, and the replicas.
func printPolicyStatus(e *env, s *api.PolicyState) error {
	if e.json {
		short := *s
		short.Text = nil
		return e.print(short, "")
	}
	if s.Unproven != "" {
		fmt.Fprintf(e.out, "not proven, so nothing is released: %s\n", plain(s.Unproven))
	}
	if s.Name == "" {
		fmt.Fprintln(e.out, "policy: none")
	} else {
		fmt.Fprintf(e.out, "policy: %s version %d, SHA-256 %s, signed: %t, with %d manifests\n", plain(s.Name), s.Version, s.Digest, s.Signed, len(s.Images))
	}
	w := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REPLICA\tPOLICY\tVERSION\tCONFIRMED\tINPUTS\tSTATE")
	for _, r := range s.Replicas {
		state, name := "goes by it", r.Policy
		switch {
		case r.Fault != "":
			state = "releases nothing: " + r.Fault
		case r.Revision != s.Revision:
			state = "not yet"
		}
		if name == "" {
			name = "none"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.12s\t%s\n", plain(r.Name), plain(name), r.Version, r.Confirmed.Format(time.RFC3339), r.Inputs.String(), plain(state))
	}
	return w.Flush()
}
