package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgstore"
	"github.com/sealift/sealift/cmd/sealift/internal/sqlstore"
)

// retentionConfig says how long what nothing needs is kept.
type retentionConfig struct {
	Evidence age `yaml:"evidence"` // e.g. 400d; for ever if left out
}

// age is how old something is: a number of days, as 400d, or a duration as Go
// writes it, as 36h.
type age time.Duration

// parseAge reads an age of at least server.MinRetention.
func parseAge(s string) (age, error) {
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d < server.MinRetention || d%time.Second != 0 {
		return 0, fmt.Errorf("%q is no age: want a number of days, as 400d, or a duration, as 36h, of at least 24h", s)
	}
	return age(d), nil
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (a *age) UnmarshalYAML(b []byte) (err error) {
	*a, err = parseAge(strings.Trim(strings.TrimSpace(string(b)), `"'`))
	return err
}

func (a age) String() string {
	d := time.Duration(a)
	if d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

func newStoreCommand(e *env) *cobra.Command {
	return newGroup("store", "See what the service's store holds, and make it forget old evidence", `
The store keeps machines, releases, the audit log, documents, and the evidence of
every boot. Evidence takes the most room, and is the only thing that may be removed.`, `
  sealift store status
  sealift store prune --evidence-older-than 400d --dry-run`,
		newStoreStatusCommand(e), newStorePruneCommand(e))
}

// storeOptions say which store: that of a running service, or the one that a
// configuration names.
type storeOptions struct {
	operatorOptions
	config, older string
}

func (o *storeOptions) addFlags(cmd *cobra.Command) {
	o.operatorOptions.addFlags(cmd)
	cmd.Flags().StringVar(&o.config, "config", "", "configuration `file` of the service, to open its store here and not to ask the service")
}

func (o *storeOptions) age() (time.Duration, error) {
	if o.older == "" {
		return 0, nil
	}
	a, err := parseAge(o.older)
	if err != nil {
		return 0, usage{fmt.Errorf("--evidence-older-than: %w", err)}
	}
	return time.Duration(a), nil
}

// open opens the store that the configuration names. It makes none.
func (o *storeOptions) open(ctx context.Context) (*serveConfig, stateStore, error) {
	c, err := readServeConfig(o.config)
	if err != nil {
		return nil, nil, err
	}
	store, err := openServed(ctx, c.Store)
	return c, store, err
}

func newStoreStatusCommand(e *env) *cobra.Command {
	var o storeOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the store holds and what room it takes",
		Long: `Shows how many records of each kind the store has and what room they take, how far
back evidence goes, and how much of it pruning would remove now: what is older than
--evidence-older-than, or than the retention of the service if it has one. It asks a
running service, or opens the store of --config. What a table takes is not measured
("-") in a SQLite file of more than 4 GiB.

Example:
  sealift store status --evidence-older-than 400d` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			older, err := o.age()
			if err != nil {
				return err
			}
			if o.config != "" {
				return localStatus(cmd.Context(), e, &o, older)
			}
			return o.do(func(client *operator.Client) error {
				st, err := client.Store(cmd.Context(), older)
				if err == nil && older == 0 && st.Retention > 0 {
					st, err = client.Store(cmd.Context(), time.Duration(st.Retention)*time.Second)
				}
				if err != nil {
					return err
				}
				return printStore(e, st)
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&o.older, "evidence-older-than", "", "`age` of evidence to count, as 400d")
	return cmd
}

func localStatus(ctx context.Context, e *env, o *storeOptions, older time.Duration) (err error) {
	c, store, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	st, err := store.Usage(ctx)
	if err != nil {
		return err
	}
	retention := time.Duration(c.Retention.Evidence)
	st.Retention = int64(retention / time.Second)
	if older == 0 {
		older = retention
	}
	if older > 0 {
		report, err := server.Prune(ctx, store, server.PruneOrder{Before: e.now().Add(-older), DryRun: true})
		if err != nil {
			return err
		}
		st.Prune = &report
	}
	return printStore(e, st)
}

// room is a number of bytes for people.
func room(n int64) string {
	switch {
	case n < 0:
		return "-"
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	case n < 10_000_000_000:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

func printStore(e *env, st *api.StoreStatus) error {
	if e.json {
		return e.print(st, "")
	}
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "store\t%s, tables of version %d\n", plain(st.Store), st.Schema)
	size := room(st.Bytes)
	if st.FreeBytes > 0 {
		size += fmt.Sprintf(", %s of it free for what comes next", room(st.FreeBytes))
	}
	fmt.Fprintf(w, "size\t%s\n", size)
	for _, r := range []struct {
		name string
		api.StoreRecords
		more string
	}{
		{"machines", st.Machines, ""},
		{"releases", st.Releases, fmt.Sprintf("%d without an outcome", st.OpenReleases)},
		{"documents", st.Documents, ""},
		{"evidence", st.Evidence, evidenceSpan(st)},
		{"parts of it", st.Parts, ""},
		{"audit entries", st.Audit, ""},
	} {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", r.name, r.Count, room(r.Bytes), r.more)
	}
	fmt.Fprintf(w, "pruned\t%d\tpieces of evidence, which are remembered\n", st.Pruned)
	retention := "none: evidence is kept for ever"
	if st.Retention > 0 {
		retention = age(time.Duration(st.Retention) * time.Second).String()
	}
	fmt.Fprintf(w, "retention\t%s\n", retention)
	if err := w.Flush(); err != nil {
		return err
	}
	if st.Prune == nil {
		return nil
	}
	return e.print(nil, "%s", pruneText(st.Prune))
}

// evidenceSpan says how far back evidence goes.
func evidenceSpan(st *api.StoreStatus) string {
	s := ""
	if !st.OldestEvidence.IsZero() {
		s = fmt.Sprintf("from %s to %s", st.OldestEvidence.Format(time.RFC3339), st.NewestEvidence.Format(time.RFC3339))
	}
	if st.Unindexed > 0 {
		s += fmt.Sprintf(" (and %d of an earlier version, whose age is not noted yet)", st.Unindexed)
	}
	return s
}

// pruneText says what pruning did, or would do.
func pruneText(r *api.PruneReport) string {
	verb := "pruned"
	if r.DryRun {
		verb = "would prune"
	}
	s := fmt.Sprintf("%s %d pieces of evidence from before %s", verb, r.Removed, r.Before.Format(time.RFC3339))
	if r.Parts > 0 {
		s += fmt.Sprintf(", and %d parts that they shared", r.Parts)
	}
	s += ": " + room(r.Bytes)
	for _, k := range []struct {
		need api.Need
		text string
	}{
		{api.NeedLast, "the last, or last accepted, of their machines"},
		{api.NeedState, "of machines that are pending or quarantined"},
		{api.NeedRelease, "of releases without an outcome"},
	} {
		if n := r.Kept[k.need]; n > 0 {
			s += fmt.Sprintf("\nkept %d: %s", n, k.text)
		}
	}
	return s
}

func newStorePruneCommand(e *env) *cobra.Command {
	var o storeOptions
	var reason string
	var dry, vacuum, clockIsRight bool
	cmd := &cobra.Command{
		Use:   "prune --evidence-older-than AGE",
		Short: "Remove old evidence that nothing needs",
		Long: `Removes evidence that is older than AGE (400d, 36h; at least 24h), a little at a time,
while the service goes on. What was removed is recorded in the audit log, piece by
piece, and whoever asks for it later is told when it was pruned.

Kept in any case:
  - the last evidence of each machine, and the last that was accepted
  - all evidence of machines that are pending or quarantined
  - the evidence of a release that has no outcome, until the machine has had another
    and was heard of a year after it
  - machines, releases, documents, and the audit log: releases keep a boot from
    having two, and the log is a chain

A clock that is more than 7 days later than when evidence was pruned last, or than
the service noted since, may be wrong, and nothing is pruned by it. If it is right,
--clock-is-right says so.

A running service does it, for an approver. With --config the store is opened here,
which is as safe, whether the service runs or not. Cut off, what was removed is
recorded, and the same command goes on.

The room is used again by what is stored next. --vacuum, with --config and SQLite,
gives it back to the file system: it writes the file anew, which needs room for a
second copy, and the service can write nothing meanwhile, so stop it first. For
PostgreSQL see docs/store.md.

Example:
  sealift store prune --evidence-older-than 400d --dry-run
  sealift store prune --evidence-older-than 400d --reason 'retention of ticket 4711'` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			older, err := o.age()
			if err != nil {
				return err
			}
			if vacuum && (o.config == "" || dry) {
				return usage{errors.New("--vacuum needs --config, and does not go with --dry-run")}
			}
			if o.config != "" {
				return pruneLocally(cmd.Context(), e, &o, older, reason, dry, vacuum, clockIsRight)
			}
			return o.do(func(client *operator.Client) error {
				req := &api.PruneRequest{Older: int64(older / time.Second), Reason: reason, DryRun: dry, ClockIsRight: clockIsRight}
				for r, err := range client.Prune(cmd.Context(), req) {
					if err != nil {
						return err
					}
					if !r.Done {
						fmt.Fprintf(e.err, "sealift: %d pieces of evidence so far\n", r.Removed)
						continue
					}
					return e.print(r, "%s", pruneText(&r))
				}
				return nil
			})
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.older, "evidence-older-than", "", "`age` of evidence to remove, as 400d (required)")
	f.StringVar(&reason, "reason", "", "why, for the audit log")
	f.BoolVar(&dry, "dry-run", false, "only say what would be removed")
	f.BoolVar(&clockIsRight, "clock-is-right", false, "prune also if the clock is more than 7 days later than the last time")
	f.BoolVar(&vacuum, "vacuum", false, "give the room back to the file system")
	required(cmd, "evidence-older-than")
	return cmd
}

func pruneLocally(ctx context.Context, e *env, o *storeOptions, older time.Duration, reason string, dry, vacuum, clockIsRight bool) (err error) {
	c, store, err := o.open(ctx)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, store.Close())
		}
	}()
	if vacuum && pgstore.IsDSN(c.Store) {
		return usage{errors.New("--vacuum is for SQLite: see docs/store.md for PostgreSQL")}
	}
	by := "unknown"
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	if !dry {
		if _, err := server.NotePruneClock(ctx, store, e.now(), clockIsRight); errors.As(err, new(*server.ClockError)) {
			return withHint(err, "look at this machine's clock; if it is right, give --clock-is-right")
		} else if err != nil {
			return err
		}
	}
	report, err := server.Prune(ctx, store, server.PruneOrder{
		Before: e.now().Add(-older), By: "local: " + by, Reason: reason, DryRun: dry, Now: e.now, Rest: server.Rest,
	})
	if err != nil {
		return errors.Join(err, e.print(report, "%s", pruneText(&report)))
	}
	if vacuum {
		closed = true
		if err := store.Close(); err != nil {
			return err
		}
		if err := sqlstore.Vacuum(ctx, c.Store); err != nil {
			return err
		}
	}
	return e.print(report, "%s", pruneText(&report))
}
