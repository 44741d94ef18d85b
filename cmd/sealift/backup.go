package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/backup"
	"github.com/sealift/sealift/cmd/sealift/internal/pgstore"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

func newBackupCommand(e *env) *cobra.Command {
	var config, out string
	var leaveOut, anyLog bool
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy the service's state into one file",
		Long: `Writes what the store of the configuration holds at one moment into one file, mode
0600, while the service runs. The file is the same for SQLite and PostgreSQL. It is
signed with the release key; disk keys in it stay under the key-encryption key, so
keep the key directory, or the key service, as well: without it no disk opens.

The head that is printed is the last entry of the audit log in the backup. What the
service decides later is not in it: export the audit log often, and keep it elsewhere.

Evidence that is not as it was stored ends it: somebody altered the database, or its
disk fails. --leave-out-damaged makes a backup of the rest, and names what it lacks.

So does an audit log that is not the one whose end the service signed, in the store and
in the witness file of the configuration (exit 3): it was altered, or the store was
turned back. --any-log makes a backup all the same, and says so.

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
			store, err := openServed(cmd.Context(), c.Store)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, store.Close()) }()
			// What is wrong with the log ends it, or is told once.
			told := false
			pass := func(err error) error {
				if !anyLog || !errors.Is(err, errNotSeen) {
					return err
				}
				if !told {
					told = true
					fmt.Fprintf(e.err, "sealift: backed up all the same: %v\n", err)
				}
				return nil
			}
			keys, err := c.Release.keys(&key.PublicKey)
			if err != nil {
				return err
			}
			heads, err := readSignedHeads(keys, c.Witness)
			if err := pass(err); err != nil {
				return notSeen(err)
			}
			var m *backup.Manifest
			err = writeFile(out, 0o600, func(w io.Writer) (err error) {
				m, err = backup.Write(w, key, backup.Manifest{Taken: e.now().UTC(), Program: version()}, func(each func(server.Record) error) error {
					return store.Dump(cmd.Context(), func(r server.Record) error {
						if err := pass(heads.add(r)); err != nil {
							return err
						}
						if r.Damaged == nil || !leaveOut {
							return each(r)
						}
						fmt.Fprintf(e.err, "sealift: left out: evidence %s, which is damaged\n", r.Damaged)
						return nil
					})
				})
				if err == nil && m.Head.Seq == 0 {
					return fmt.Errorf("%s is empty: no service was ever started on it", storeName(c.Store))
				}
				if err == nil {
					err = pass(heads.end())
				}
				return err
			})
			if errors.Is(err, errNotSeen) {
				return notSeen(err)
			}
			if errors.Is(err, backup.ErrDamaged) {
				return withHint(err, "find out who altered the database, or whether its disk fails; --leave-out-damaged makes a backup of the rest")
			}
			if err != nil {
				return err
			}
			return e.print(m, "%d machines, %d releases, %d audit entries\nhead %s", m.Count.Machines, m.Count.Releases, m.Count.Entries, m.Head.Hash)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `file` of the service (required)")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write (required)")
	cmd.Flags().BoolVar(&leaveOut, "leave-out-damaged", false, "leave out evidence that is not as it was stored")
	cmd.Flags().BoolVar(&anyLog, "any-log", false, "take an audit log that is not the one whose end the service signed")
	required(cmd, "config", "out")
	return cmd
}

// notSeen is the refusal of a log that is not the one whose end was signed.
func notSeen(err error) error {
	return withHint(refused{err}, "docs/audit.md says what may have happened; if the release key was changed, name the public key of the former one under release.former; if the store was exchanged on purpose, or to keep a copy of what was altered: --any-log")
}

type restoreOptions struct {
	config, log, head, reason string
	check, unsigned           bool
}

func newRestoreCommand(e *env) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Fill an empty store from a backup",
		Long: `Fills the store of the configuration, which must be empty, from what 'sealift backup'
wrote. A file that was altered or cut short, or that another fleet made, is refused,
and the store stays empty. One that was signed with a former release key of the same
fleet is taken if the configuration names that key (release.former).

The service decided more after the backup was made. Give the newest export of its
audit log as --audit: it is appended to the backup's, and its revocations,
quarantines, enrolments, installs, serial numbers, releases and campaigns are
repeated. The export must end with a head that the service signed, as those of
'sealift audit export' do; one of an earlier version needs --audit-unsigned, and you
must know where it comes from. Give the hash of the last entry that the service ever wrote as --head, if it
was kept elsewhere or the service was stopped before the backup: files that end in it
have lost nothing.

Without --head a revocation may have been lost. The restored service then releases
nothing until an approver says with 'sealift restore accept' that none was, and each
machine must start anew once more, because the boot that it is in may have had its
release. So must machines that are enrolled later, until 'sealift restore settle'.
Releases that were open are void in any case. What cannot be rebuilt, disk keys made
after the backup above all, is listed by machine, each with the command that mends it.
Machines that were released after the backup must start anew once before reports of
their running systems are accepted again; they are listed, too.

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
	f.BoolVar(&o.unsigned, "audit-unsigned", false, "take an audit log whose head is not signed, which anybody could have made")
	f.StringVar(&o.head, "head", "", "`hash` of the last audit entry that the service ever wrote")
	f.StringVar(&o.reason, "reason", "", "why, for the audit log (required)")
	f.BoolVar(&o.check, "check", false, "verify the files and say what would be done; change nothing")
	required(cmd, "config", "reason")
	cmd.AddCommand(newRestoreAcceptCommand(e), newRestoreSettleCommand(e), newRestoreStatusCommand(e))
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
	keys, err := c.Release.keys(&key.PublicKey)
	if err != nil {
		return err
	}
	f, err := profiles.OpenRegular(file)
	if err != nil {
		return fmt.Errorf("open the backup: %w", err)
	}
	defer f.Close() // only read
	order := &backup.Order{Backup: f, Key: &key.PublicKey, FormerKeys: keys.Former, Head: head, By: "unknown", Reason: o.reason, Now: e.now().UTC(), UnsignedLog: o.unsigned}
	order.SignHead = func(s audit.HeadStatement) (*audit.Envelope, error) { return audit.Sign(key, audit.SeenType, s) }
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
	// All is verified before a store is made.
	load := func(ctx context.Context, records iter.Seq2[server.Record, error]) (err error) {
		if _, err := os.Stat(c.Store); !pgstore.IsDSN(c.Store) && errors.Is(err, os.ErrNotExist) {
			return sqlstore.Fill(ctx, c.Store, records)
		}
		store, err := openStore(ctx, c.Store)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return store.Load(ctx, records)
	}
	if o.check {
		load = nil
	}
	report, err := backup.Restore(cmd.Context(), load, order)
	switch {
	case errors.Is(err, backup.ErrUnsignedLog):
		return withHint(refused{err}, "export it again with 'sealift audit export'; or, if you know where the file comes from, give --audit-unsigned")
	case errors.Is(err, audit.ErrUnknownKey):
		return withHint(refused{err}, hintFormer)
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
	writeNotReplayed(&b, r.NotReplayed)
	writeMissing(&b, r.Missing)
	writeMissing(&b, r.MustStart)
	if r.Complete {
		b.WriteString("nothing was lost: the log ends with the entry that was named\n")
	} else {
		b.WriteString("decisions may be lost: each machine must start anew once\n")
	}
	if r.Held {
		b.WriteString("held: nothing is released until 'sealift restore accept'\n")
	}
	if r.Unsettled {
		b.WriteString("unsettled: machines that are enrolled from now on must start once more, until 'sealift restore settle'\n")
	}
	fmt.Fprintf(&b, "head %s", r.Head.Hash)
	return b.String()
}

// writeNotReplayed writes a line for each kind of entry that could not be repeated.
func writeNotReplayed[K ~string](b *strings.Builder, counts map[K]int64) {
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(b, "%d of %q could not be repeated\n", counts[kind], plain(string(kind)))
	}
}

// writeMissing writes a line for each thing that a restore could not rebuild.
func writeMissing(b *strings.Builder, all []api.RestoreMissing) {
	for _, m := range all {
		var who []string
		if !m.Machine.IsZero() {
			who = append(who, "machine "+m.Machine.String())
		}
		if m.NodeName != "" {
			who = append(who, "node "+plain(m.NodeName))
		}
		if m.Serial != "" {
			who = append(who, fmt.Sprintf("serial number %q", plain(m.Serial)))
		}
		what := plain(m.What)
		if len(who) > 0 {
			what = strings.Join(who, ", ") + ": " + what
		}
		fmt.Fprintf(b, "missing: %s\n  mend: %s\n", what, plain(m.Mend))
	}
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

func newRestoreSettleCommand(e *env) *cobra.Command {
	var o operatorOptions
	var reason string
	cmd := &cobra.Command{
		Use:   "settle",
		Short: "Take machines that a restored service does not know as new",
		Long: `After a restore that lost decisions, a machine that was enrolled and released after
the backup is unknown, and may still be in the boot that had its release. So the
first boot in which a machine that was enrolled since asks gets nothing, and the
machine starts once more. This ends that: it says, as an approver, that each machine
that ran before the restore has started anew since, or is off.

Example:
  sealift restore settle --reason 'power of all sites was cut on Sunday'` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				s, err := client.SettleRestore(cmd.Context(), reason)
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
		Long: `Shows when the service's store was last restored from a backup, whether secrets are
held back because nobody has accepted that yet, whether machines that are enrolled now
must start once more, and what the restore could not rebuild: the policy that was
enabled after the backup, and what of which machine.

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
	if s.Restored.IsZero() {
		return e.print(s, "never restored")
	}
	var b strings.Builder
	if s.Held {
		b.WriteString("held: ")
	}
	fmt.Fprintf(&b, "restored %s by %s from a backup of %s (%s)", s.Restored.Format(time.RFC3339), plain(s.By), s.Taken.Format(time.RFC3339), plain(s.Reason))
	switch {
	case s.Held:
		b.WriteString(", not accepted yet")
	case !s.Accepted.IsZero():
		fmt.Fprintf(&b, ", accepted %s by %s", s.Accepted.Format(time.RFC3339), plain(s.AcceptedBy))
	default:
		b.WriteString(", with nothing lost")
	}
	b.WriteString("\n")
	switch {
	case s.Unsettled:
		b.WriteString("machines that are enrolled now must start once more, until 'sealift restore settle'\n")
	case !s.Settled.IsZero():
		fmt.Fprintf(&b, "settled %s by %s\n", s.Settled.Format(time.RFC3339), plain(s.SettledBy))
	}
	writeNotReplayed(&b, s.NotReplayed)
	writeMissing(&b, s.Missing)
	if s.MissingMore > 0 {
		fmt.Fprintf(&b, "and %d more, which the restore printed\n", s.MissingMore)
	}
	return e.print(s, "%s", strings.TrimSuffix(b.String(), "\n"))
}
