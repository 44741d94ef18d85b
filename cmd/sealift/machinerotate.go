package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
)

func newMachineRotateKeyCommand(e *env) *cobra.Command {
	var o operatorOptions
	var reason string
	var all bool
	cmd := &cobra.Command{
		Use:   "rotate-key {ID... | --all}",
		Short: "Give machines another disk key",
		Long: `The next release of each machine holds another disk key beside the present one.
The machine makes it the key of its volume, proves that it opens, destroys what
the old one opened, and tells the service, which then forgets the old one. This
happens when the machine boots; 'sealift machine show ID' has "rotation" until
then. Whatever cuts it off, the machine's next boot opens the disk and goes on.
The volume is not encrypted anew.

With --all, every machine that has a disk key. Machines whose key is being
changed already stay as they are, so the command can be repeated.

Example:
  sealift machine rotate-key 6f0c...e1 --reason 'ticket 4711'
  sealift machine rotate-key --all --reason 'yearly'` + exitStatus,
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("want machine IDs, or --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var ids []attest.MachineID
			for _, arg := range args {
				id, err := parseMachine(arg)
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return o.do(func(client *operator.Client) error { return rotateKeys(cmd.Context(), e, client, ids, all, reason) })
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	cmd.Flags().BoolVar(&all, "all", false, "all machines that have a disk key")
	required(cmd, "reason")
	return cmd
}

// rotateKeys asks for one machine after the other, and prints those that are to
// get another key. The first error ends it; what was asked for stays so.
func rotateKeys(ctx context.Context, e *env, client *operator.Client, ids []attest.MachineID, all bool, reason string) error {
	if all {
		machines, err := client.Machines(ctx, attest.StateUnknown)
		if err != nil {
			return err
		}
		for _, m := range machines {
			ids = append(ids, m.ID)
		}
	}
	asked := []api.Machine{}
	for i, id := range ids {
		m, err := client.RotateKey(ctx, id, reason)
		var answer *operator.Error
		if all && errors.As(err, &answer) && answer.Status == http.StatusConflict && answer.Answer.Code == api.CodeNoDiskKey {
			continue
		}
		if err != nil {
			return errors.Join(fmt.Errorf("machine %s, after %d of %d: %w", id, i, len(ids), err), printMachines(e, asked))
		}
		asked = append(asked, *m)
	}
	return printMachines(e, asked)
}
