package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

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
changed already stay as they are, so a command that was cut off can be repeated and
goes on. It takes as long as the service's limits say: 10,000 machines some 90 s with
those that it has by itself.` + whichMachine + `

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
			for _, arg := range args {
				if err := checkMachine(arg); err != nil {
					return err
				}
			}
			return o.do(func(client *operator.Client) error {
				var ids []attest.MachineID
				for _, arg := range args {
					id, err := findMachine(cmd.Context(), client, arg)
					if err != nil {
						return err
					}
					ids = append(ids, id)
				}
				return rotateKeys(cmd.Context(), e, client, ids, all, reason)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	cmd.Flags().BoolVar(&all, "all", false, "all machines that have a disk key")
	required(cmd, "reason")
	return cmd
}

// rotateChunk is how many machines are printed at a time.
const rotateChunk = 500

// rotateKeys asks for one machine after the other, and prints those that are to
// get another key as it goes. The first error ends it; what was asked for stays
// so. Of all machines, those whose key is being changed already are left out, so
// that one that was cut off goes on where it was.
func rotateKeys(ctx context.Context, e *env, client *operator.Client, ids []attest.MachineID, all bool, reason string) error {
	asked, done, under := []api.Machine{}, 0, 0
	flush := func() error {
		err := printMachines(e, asked)
		done, asked = done+len(asked), asked[:0]
		return err
	}
	rotate := func(id attest.MachineID) error {
		m, err := rotateKey(ctx, client, id, reason)
		var answer *operator.Error
		if all && errors.As(err, &answer) && answer.Status == http.StatusConflict && answer.Answer.Code == api.CodeNoDiskKey {
			return nil
		}
		if err != nil {
			return fmt.Errorf("machine %s, after %d that were asked for: %w", id, done+len(asked), err)
		}
		if asked = append(asked, *m); len(asked) == rotateChunk {
			return flush()
		}
		return nil
	}
	if !all {
		for _, id := range ids {
			if err := rotate(id); err != nil {
				return errors.Join(err, flush())
			}
		}
		return flush()
	}
	for m, err := range client.AllMachines(ctx, attest.StateUnknown) {
		switch {
		case err != nil:
		case m.Rotation != nil:
			under++
		default:
			err = rotate(m.ID)
		}
		if err != nil {
			return withHint(errors.Join(err, flush()), "the same command goes on with the machines that are left")
		}
	}
	if len(asked) > 0 || done == 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(e.err, "sealift: %d machines are to get another disk key, the keys of %d were being changed already\n", done, under)
	return err
}

// rotateKey asks for one machine, and again if the service could not do it then:
// asked for twice is asked for once.
func rotateKey(ctx context.Context, client *operator.Client, id attest.MachineID, reason string) (m *api.Machine, err error) {
	for range 3 {
		var answer *operator.Error
		if m, err = client.RotateKey(ctx, id, reason); !errors.As(err, &answer) || answer.Status != http.StatusServiceUnavailable {
			break
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return m, err
}
