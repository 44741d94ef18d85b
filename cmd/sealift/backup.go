package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/cmd/sealift/internal/pgstore"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

func newBackupCommand(e *env) *cobra.Command {
	var config, out string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy the service's state into one file",
		Long: `Writes what the store of the configuration holds at one moment into one file, mode
0600, while the service runs. The file is the same for SQLite and PostgreSQL. It is
signed with the release key; disk keys in it stay under the key-encryption key, so
keep the key directory, or the key service, as well: without it no disk opens.

The head that is printed is the last entry of the audit log in the backup. What the
service decides later is not in it: export the audit log often, and keep it elsewhere.

Example:
  sealift backup --config serve.yaml --out sealift-backup.zst` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := readServeConfig(config)
			if err != nil {
				return err
			}
			ring, err := openKeys(c.Keys)
			if err != nil {
				return err
			}
			key, err := ring.Release()
			if err != nil {
				return err
			}
			if !pgstore.IsDSN(c.Store) {
				if _, err := os.Stat(c.Store); err != nil {
					return withHint(fmt.Errorf("open database: %w", err), "the service makes it on its first start")
				}
			}
			store, err := openStore(cmd.Context(), c.Store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			var m *backup.Manifest
			err = writeFile(out, 0o600, func(w io.Writer) (err error) {
				m, err = backup.Write(w, key, backup.Manifest{Taken: e.now().UTC(), Program: version()}, func(each func(server.Record) error) error {
					return store.Dump(cmd.Context(), each)
				})
				if err == nil && m.Head.Seq == 0 {
					return fmt.Errorf("%s is empty: no service was ever started on it", storeName(c.Store))
				}
				return err
			})
			if err != nil {
				return err
			}
			return e.print(m, "%d machines, %d releases, %d audit entries\nhead %s", m.Count.Machines, m.Count.Releases, m.Count.Entries, m.Head.Hash)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` of the service (required)")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (required)")
	required(cmd, "config", "out")
	return cmd
}

type restoreOptions struct {
	config, log, head, reason string
	check                     bool
}

func newRestoreCommand(e *env) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Fill an empty store from a backup",
		Long: `Fills the store of the configuration, which must be empty, from what 'sealift backup'
wrote. A file that was altered or cut short, or that another fleet made, is refused,
and the store stays empty.

The service decided more after the backup was made. Give the newest export of its
audit log as --audit: it is appended to the backup's, and its revocations,
quarantines, enrolments, installs, releases and campaigns are repeated. Give the hash
of the last entry that the service ever wrote as --head, if it was kept elsewhere or
the service was stopped before the backup: files that end in it have lost nothing.

Without --head a revocation may have been lost. The restored service then releases
nothing until an approver says with 'sealift restore accept' that none was, and each
machine must start anew once more, because the boot that it is in may have had its
release. Releases that were open are void in any case. Disk keys made
after the backup are lost; the machines are named, and must be installed again.

To move to another store, stop the service, back up, name the other store in the
configuration, and restore with --head as the backup printed it.

Example:
  sealift restore sealift-backup.zst --config serve.yaml --audit audit.jsonl --reason 'disk of srv1 died'` + exitStatus,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%s takes FILE, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return restore(cmd, e, &o, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "configuration `file` of the service (required)")
	f.StringVar(&o.log, "audit", "", "`file` of 'sealift audit export', written after the backup")
	f.StringVar(&o.head, "head", "", "`hash` of the last audit entry that the service ever wrote")
	f.StringVar(&o.reason, "reason", "", "why, for the audit log (required)")
	f.BoolVar(&o.check, "check", false, "verify the files and say what would be done; change nothing")
	required(cmd, "config", "reason")
	cmd.AddCommand(newRestoreAcceptCommand(e), newRestoreStatusCommand(e))
	return cmd
}

func restore(cmd *cobra.Command, e *env, o *restoreOptions, file string) (err error) {
	var head manifest.SHA256
	if err := head.UnmarshalText([]byte(o.head)); err != nil {
		return usage{fmt.Errorf("--head: %w", err)}
	}
	if o.reason = strings.TrimSpace(o.reason); o.reason == "" {
		return usage{errors.New("--reason is empty")}
	}
	c, err := readServeConfig(o.config)
	if err != nil {
		return err
	}
	ring, err := openKeys(c.Keys)
	if err != nil {
		return err
	}
	key, err := ring.Release()
	if err != nil {
		return err
	}
	f, err := profiles.OpenRegular(file)
	if err != nil {
		return fmt.Errorf("open the backup: %w", err)
	}
	defer f.Close() // only read
	order := &backup.Order{Backup: f, Key: &key.PublicKey, Head: head, By: "unknown", Reason: o.reason, Now: e.now().UTC()}
	if u, err := user.Current(); err == nil {
		order.By = u.Username
	}
	if o.log != "" {
		log, err := profiles.OpenRegular(o.log)
		if err != nil {
			return fmt.Errorf("open the audit log: %w", err)
		}
		defer log.Close() // only read
		order.Log = log
	}
	// Verified before a store is made.
	report, err := backup.Restore(cmd.Context(), nil, order)
	if err == nil && !o.check {
		var store stateStore
		if store, err = openStore(cmd.Context(), c.Store); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		report, err = backup.Restore(cmd.Context(), store, order)
	}
	switch {
	case errors.As(err, new(*backup.RefusedError)):
		return refused{err}
	case errors.Is(err, server.ErrConflict):
		return withHint(fmt.Errorf("restore: %w", err), "a store is restored into once, before any service was started on it: name a file that is not there, or an empty database, as store in %s", o.config)
	case err != nil:
		return err
	}
	return e.print(report, "%s", restoreText(report, c.Store, o.check))
}

// restoreText says to a person what a restore did and what is to be done.
func restoreText(r *backup.Report, store string, check bool) string {
	var b strings.Builder
	verb := "restored"
	if check {
		verb = "would restore"
	}
	fmt.Fprintf(&b, "%s %d machines, %d releases, %d audit entries of %s into %s\n", verb,
		r.Backup.Count.Machines, r.Backup.Count.Releases, r.Backup.Count.Entries, r.Backup.Taken.Format(time.RFC3339), storeName(store))
	fmt.Fprintf(&b, "%d later audit entries repeated\n", r.Replayed)
	for kind, n := range r.NotReplayed {
		fmt.Fprintf(&b, "%d entries %q could not be repeated\n", n, plain(string(kind)))
	}
	for _, id := range r.LostKeys {
		fmt.Fprintf(&b, "machine %s: its disk key was made after the backup and is lost; it is quarantined until it is installed again\n", id)
	}
	if r.Complete {
		fmt.Fprintf(&b, "nothing was lost: the log ends with the entry that was named\n")
	} else {
		fmt.Fprintf(&b, "held: nothing is released until 'sealift restore accept'; each machine must start anew once\n")
	}
	fmt.Fprintf(&b, "head %s", r.Head.Hash)
	return b.String()
}

func newRestoreAcceptCommand(e *env) *cobra.Command {
	var o operatorOptions
	var reason string
	cmd := &cobra.Command{
		Use:   "accept",
		Short: "Let a restored service release secrets",
		Long: `Says, as an approver, that the machines of a restored service are as they should be:
that whoever was revoked or quarantined after the backup is so again. From then on
secrets are released. Revoke first, accept then.

Example:
  sealift machine list --state enrolled
  sealift machine revoke 6f0c...e1 --reason 'was revoked before the disk died'
  sealift restore accept --reason 'compared with the tickets of this week'` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				s, err := client.AcceptRestore(cmd.Context(), reason)
				if err != nil {
					return err
				}
				return printRestore(e, s)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit log (required)")
	required(cmd, "reason")
	return cmd
}

func newRestoreStatusCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the service is held after a restore",
		Long: `Shows when the service's store was last restored from a backup, and whether secrets
are held back because nobody has accepted that yet.

Example:
  sealift restore status` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				s, err := client.Restore(cmd.Context())
				if err != nil {
					return err
				}
				return printRestore(e, s)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func printRestore(e *env, s *api.RestoreStatus) error {
	switch {
	case s.Restored.IsZero():
		return e.print(s, "never restored")
	case s.Held:
		return e.print(s, "held: restored %s by %s from a backup of %s (%s), not accepted yet",
			s.Restored.Format(time.RFC3339), plain(s.By), s.Taken.Format(time.RFC3339), plain(s.Reason))
	case s.Accepted.IsZero():
		return e.print(s, "restored %s by %s from a backup of %s (%s), with nothing lost",
			s.Restored.Format(time.RFC3339), plain(s.By), s.Taken.Format(time.RFC3339), plain(s.Reason))
	}
	return e.print(s, "restored %s by %s from a backup of %s (%s), accepted %s by %s",
		s.Restored.Format(time.RFC3339), plain(s.By), s.Taken.Format(time.RFC3339), plain(s.Reason), s.Accepted.Format(time.RFC3339), plain(s.AcceptedBy))
}
