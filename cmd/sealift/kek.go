package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/kek"
	"github.com/sealift/sealift/image/sign"
)

// kekConfig says where the key-encryption key is that disk keys are stored
// under, and where those are that it replaced.
type kekConfig struct {
	File    string `yaml:"file"`    // of 'sealift keys init' or 'sealift keys kek init'
	URI     string `yaml:"uri"`     // or of the key in a key management service or token
	Wrapped string `yaml:"wrapped"` // with the file of 'sealift keys kek wrap'

	Former []kek.Source `yaml:"former"` // optional: they still open what is under them
	Lost   []string     `yaml:"lost"`   // optional: ids of keys that are lost for good
}

func (c kekConfig) present() kek.Source {
	return kek.Source{File: c.File, URI: c.URI, Wrapped: c.Wrapped}
}

func (c kekConfig) check() error {
	if err := c.present().Check(); err != nil {
		return fmt.Errorf("kek: %w", err)
	}
	for i, f := range c.Former {
		if err := f.Check(); err != nil {
			return fmt.Errorf("kek.former[%d]: %w", i, err)
		}
	}
	return nil
}

// open returns the keys, the present one first.
func (c kekConfig) open(ctx context.Context) ([]attest.Secret, error) {
	var keys []attest.Secret
	for _, s := range append([]kek.Source{c.present()}, c.Former...) {
		key, err := s.Open(ctx, nil)
		if err != nil {
			return nil, hintOfSource(err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// hintOfSource says what mends a key that cannot be had.
func hintOfSource(err error) error {
	switch {
	case errors.Is(err, sign.ErrNoPKCS11):
		return withHint(err, "CGO_ENABLED=1 go build ./cmd/sealift")
	case errors.Is(err, os.ErrNotExist):
		return withHint(err, "restore the file from its backup; for a new service, make one: sealift keys kek init FILE")
	}
	return err
}

func newKEKCommand(e *env) *cobra.Command {
	return newGroup("kek", "Make, show and change the key that disk keys are stored under", `
The service stores disk keys under a key-encryption key that is not in its
database: in a file, or in a file that only a key management service or a token
decrypts. To change it, make a new one, configure it as 'kek' with the old one
under 'kek.former', and restart the service: it brings everything under the new
one while it answers. 'status' shows when the old one can go. Keep a backup of
the key: without it no disk opens.`, `
  sealift keys kek status`,
		newKEKInitCommand(e), newKEKWrapCommand(e), newKEKShowCommand(e), newKEKStatusCommand(e), newKEKRewrapCommand(e))
}

// made is what the commands say of a key.
type madeKEK struct {
	File string `json:"file"`
	ID   string `json:"id"`
}

func newKEKInitCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "init FILE",
		Short: "Make a key in a file",
		Long: `Makes FILE, of mode 0600, with a new key, and prints the key's id. A file that
exists is never touched. Keep a copy of it where the database's backups are not.

Example:
  sealift keys kek init kek-2.key` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := kek.Init(args[0])
			if errors.Is(err, os.ErrExist) {
				return withHint(err, "choose another file; keys are never overwritten")
			}
			if err != nil {
				return err
			}
			return e.print(madeKEK{args[0], id}, "%s %s", id, args[0])
		},
	}
}

func newKEKWrapCommand(e *env) *cobra.Command {
	var o keyOptions
	var uri, from string
	cmd := &cobra.Command{
		Use:   "wrap FILE",
		Short: "Make a key in a file that only a key management service decrypts",
		Long: `Makes FILE, of mode 0600, with a key that the key which --uri names has encrypted:
hashivault://KEY or openbao://KEY (transit engine), awskms://, gcpkms://,
azurekms://, or pkcs11: with an AES key. The key inside is new, or that of the
file --from. It is decrypted once to prove that it can be had, and then at each
start of the service. The key's id is printed.

The service finds its credentials where its own tools do, such as in VAULT_ADDR
and VAULT_TOKEN. A file that exists is never touched.

Example:
  sealift keys kek wrap kek.wrapped --uri hashivault://fleet-kek` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var key attest.Secret
			if from != "" {
				var err error
				if key, err = kek.ReadFile(from); err != nil {
					return err
				}
				defer clear(key)
			}
			id, err := kek.Wrap(cmd.Context(), args[0], uri, key, func() ([]byte, error) { return o.secret(e) })
			if errors.Is(err, os.ErrExist) {
				return withHint(err, "choose another file; keys are never overwritten")
			}
			if err != nil {
				return hintOfSource(err)
			}
			return e.print(madeKEK{args[0], id}, "%s %s", id, args[0])
		},
	}
	cmd.Flags().StringVar(&uri, "uri", "", "`URI` of the key that encrypts (required)")
	cmd.Flags().StringVar(&from, "from", "", "`file` with the key to wrap (default: a new one)")
	o.addPassword(cmd.Flags(), "uri")
	required(cmd, "uri")
	return cmd
}

func newKEKShowCommand(e *env) *cobra.Command {
	var o keyOptions
	var uri string
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Open a key and show its id",
		Long: `Opens the key in FILE, which the service that --uri names decrypts if it is
wrapped, and prints its id, as 'sealift keys kek status' and the audit log name
it. The key itself is never shown.

Example:
  sealift keys kek show keys/disk-kek.key
  sealift keys kek show kek.wrapped --uri hashivault://fleet-kek` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := kek.Source{File: args[0]}
			if uri != "" {
				s = kek.Source{URI: uri, Wrapped: args[0]}
			}
			key, err := s.Open(cmd.Context(), func() ([]byte, error) { return o.secret(e) })
			if err != nil {
				return hintOfSource(err)
			}
			defer clear(key)
			id := server.KEKID(key)
			return e.print(madeKEK{args[0], id}, "%s %s", id, args[0])
		},
	}
	cmd.Flags().StringVar(&uri, "uri", "", "`URI` of the key that decrypts FILE, if it is wrapped")
	o.addPassword(cmd.Flags(), "uri")
	return cmd
}

func newKEKStatusCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how many disk keys are under which key",
		Long: `Shows which keys the service has and what is under each: disk keys, those that
machines are to get (NEXT), those of disks that a reinstall replaced (FORMER),
and releases of the last hour that are not confirmed. A former key can be taken
out of the configuration, of every replica, when all of its counts are 0. The
answer is that of the replica that was asked.

Example:
  sealift keys kek status` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				st, err := client.KEK(cmd.Context())
				if err != nil {
					return err
				}
				return printKEK(e, st)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func newKEKRewrapCommand(e *env) *cobra.Command {
	var o operatorOptions
	var reason string
	cmd := &cobra.Command{
		Use:   "rewrap",
		Short: "Bring all disk keys under the present key",
		Long: `Does what the service does at each start: every disk key that is under a former
key comes under the present one, while releases go on. It is of use when a
replica that still had the old configuration was at work meanwhile. Cut off, it
goes on where it was when it is asked again.

Example:
  sealift keys kek rewrap --reason 'ticket 4711'` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				st, err := client.Rewrap(cmd.Context(), reason)
				if err != nil {
					return err
				}
				return printKEK(e, st)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	required(cmd, "reason")
	return cmd
}

func printKEK(e *env, st *api.KEKStatus) error {
	if e.json {
		return e.print(st, "")
	}
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "KEK\tROLE\tDISK KEYS\tNEXT\tFORMER\tRELEASES")
	for _, u := range st.Uses {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\n", plain(u.KEK), u.Role, u.DiskKeys, u.NextKeys, u.FormerKeys, u.Releases)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if r := st.Rewrap; r != nil {
		end := "not finished"
		if !r.Finished.IsZero() {
			end = "finished " + r.Finished.UTC().Format(time.RFC3339)
		}
		_, err := fmt.Fprintf(e.out, "last rewrap: %d disk keys to %s, started %s, %s\n", r.Keys, r.To, r.Started.UTC().Format(time.RFC3339), end)
		return err
	}
	return nil
}
