package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/demo"
	"github.com/sealift/sealift/cmd/sealift/internal/lab"
)

type demoOptions struct {
	dir, cache, profile, agent string
	keep, noReports            bool
}

func newDemoCommand(e *env) *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "One box, from nothing to a Kubernetes node, on real firmware",
		Long: `Runs the whole loop on this machine: makes keys and an image, installs a blank
virtual box over the network, boots it in a store, joins it to a real cluster,
changes the key of its disk, refuses it seven times and opens it once with a
recovery code, takes a second box whose TPM has SHA-384 alone as far, moves the
first one to another BIOS by campaign, writes the audit report and reboots it.
Needs the Debian packages that 'make demo' installs; needs neither root nor KVM.

A second run reuses keys, downloads, builds and the image if nothing changed.

Example:
  sealift demo --dir build/demo --cache build/cache` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), e, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "build/demo", "`directory` of the demo")
	f.StringVar(&o.cache, "cache", "build/cache", "`directory` for downloads and builds")
	f.StringVar(&o.profile, "profile", "profiles/demo.yaml", "profile `file` to build")
	f.StringVar(&o.agent, "agent", "", "sealift-agent `program` (default: beside this program)")
	f.BoolVar(&o.noReports, "no-reports", false, "the running box does not report")
	f.BoolVar(&o.keep, "keep", false, "leave the fleet running at the end, until interrupted")
	return cmd
}

func runDemo(ctx context.Context, e *env, o demoOptions) error {
	if done, code, err := lab.Enter(ctx); done || err != nil {
		if err == nil && code != 0 {
			return errors.New("the demo failed, see above")
		}
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if o.agent == "" {
		o.agent = filepath.Join(filepath.Dir(self), "sealift-agent")
	}
	for _, p := range []*string{&o.dir, &o.cache, &o.profile, &o.agent} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	log := e.progress()
	d := demo.New(ctx, demo.Options{Dir: o.dir, Cache: o.cache, Profile: o.profile, Sealift: self, Agent: o.agent, Log: log, NoReports: o.noReports})
	defer d.Close()
	log.Note("Sealift demo in %s, boxes run by QEMU with %s", o.dir, d.Accelerator())

	began := time.Now()
	table := newDemoTable(e)
	var failed error
	for _, s := range d.Steps() {
		step, start := log.Step(s.Name), time.Now()
		seen, err := s.Run(ctx)
		took := time.Since(start).Seconds()
		if err != nil {
			step.Fail(err)
			table.row(demoRow{Verdict: "failed", Seconds: took, Step: s.Name, Seen: err.Error()})
			failed = fmt.Errorf("step %q failed: %w", s.Name, err)
			break
		}
		step.Done(seen)
		table.row(demoRow{Verdict: "ok", Seconds: took, Step: s.Name, Seen: seen})
	}
	table.row(demoRow{Seconds: time.Since(began).Seconds(), Step: "all"})
	for _, t := range d.Timings() {
		table.row(demoRow{Seconds: t.Took.Seconds(), Step: t.What, Seen: fmt.Sprintf("goal: at most %.0f s", t.Goal.Seconds())})
	}
	if size, err := d.UKISize(); err == nil {
		table.row(demoRow{Step: "UKI", Seen: fmt.Sprintf("%.1f MB, goal: at most 30 MB", float64(size)/1e6)})
	}
	if err := table.end(); err != nil {
		return err
	}
	if failed != nil {
		return withHint(failed, "console and service logs are in %s", filepath.Join(o.dir, "fleet"))
	}
	page := filepath.Join(o.dir, "report", "report.html")
	if err := e.print(struct {
		Report string `json:"report"`
	}{page}, "\nreport: %s", page); err != nil {
		return err
	}
	if o.keep {
		log.Note("%s", d.HowToLook())
		<-ctx.Done()
	}
	return nil
}

// demoRow is one line of the demo's result.
type demoRow struct {
	Verdict string  `json:"verdict,omitempty"` // ok, failed; empty for a figure
	Seconds float64 `json:"seconds,omitempty"`
	Step    string  `json:"step"`
	Seen    string  `json:"seen,omitempty"`
}

// demoTable shows the demo's result: rows at the end for people, one object a
// line as they come with --json.
type demoTable struct {
	json *json.Encoder
	text *tabwriter.Writer
	err  error // the first
}

func newDemoTable(e *env) *demoTable {
	if e.json {
		return &demoTable{json: json.NewEncoder(e.out)}
	}
	t := &demoTable{text: tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)}
	_, t.err = fmt.Fprintln(t.text, "\nVERDICT\tTIME\tSTEP\tSEEN")
	return t
}

func (t *demoTable) row(r demoRow) {
	var err error
	if t.json != nil {
		err = t.json.Encode(r)
	} else {
		took := ""
		if r.Seconds > 0 {
			took = fmt.Sprintf("%.1f s", r.Seconds)
		}
		_, err = fmt.Fprintf(t.text, "%s\t%s\t%s\t%s\n", r.Verdict, took, r.Step, shorten(strings.ReplaceAll(r.Seen, "\n", " "), 90))
	}
	t.err = errors.Join(t.err, err)
}

func (t *demoTable) end() error {
	if t.json != nil {
		return t.err
	}
	return errors.Join(t.err, t.text.Flush())
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
