package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/demo"
	"github.com/sealift/sealift/cmd/sealift/internal/lab"
)

type demoOptions struct {
	dir, cache, profile, agent string
	keep                       bool
}

func newDemoCommand(e *env) *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "One box, from nothing to a Kubernetes node, on real firmware",
		Long: `Runs the whole loop on this machine: makes keys and an image, installs a blank
virtual box over the network, boots it in a store, joins it to a real cluster,
refuses it seven times, moves it to another BIOS by campaign, writes the audit
report and reboots it. Needs the Debian packages that ` + "`make demo`" + ` installs; needs
neither root nor KVM.

A second run reuses keys, downloads, builds and the image if nothing changed.

Example:
  sealift demo --dir build/demo --cache build/cache` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), e, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "build/demo", "directory of the demo")
	f.StringVar(&o.cache, "cache", "build/cache", "directory for downloads and builds")
	f.StringVar(&o.profile, "profile", "profiles/demo.yaml", "profile to build")
	f.StringVar(&o.agent, "agent", "", "sealift-agent program (default: beside this program)")
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
	d := demo.New(ctx, demo.Options{Dir: o.dir, Cache: o.cache, Profile: o.profile, Sealift: self, Agent: o.agent, Log: log})
	defer d.Close()
	log.Note("Sealift demo in %s, boxes run by QEMU with %s", o.dir, d.Accelerator())

	began := time.Now()
	table := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "\nVERDICT\tTIME\tSTEP\tSEEN")
	var failed error
	for _, s := range d.Steps() {
		step, start := log.Step(s.Name), time.Now()
		seen, err := s.Run(ctx)
		took := time.Since(start).Seconds()
		if err != nil {
			step.Fail(err)
			fmt.Fprintf(table, "FAILED\t%.1f s\t%s\t\n", took, s.Name)
			failed = fmt.Errorf("step %q failed", s.Name)
			break
		}
		step.Done(seen)
		fmt.Fprintf(table, "ok\t%.1f s\t%s\t%s\n", took, s.Name, shorten(seen, 90))
	}
	fmt.Fprintf(table, "\t%.1f s\tall\t\n", time.Since(began).Seconds())
	for _, t := range d.Timings() {
		fmt.Fprintf(table, "\t%.1f s\t%s\tgoal: at most %.0f s\n", t.Took.Seconds(), t.What, t.Goal.Seconds())
	}
	if size, err := d.UKISize(); err == nil {
		fmt.Fprintf(table, "\t\tUKI\t%.1f MB, goal: at most 30 MB\n", float64(size)/1e6)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if failed != nil {
		return withHint(failed, "console and service logs are in %s", filepath.Join(o.dir, "fleet"))
	}
	fmt.Fprintf(e.out, "\nreport: %s\n", filepath.Join(o.dir, "report", "report.html"))
	if o.keep {
		fmt.Fprint(e.out, d.HowToLook())
		<-ctx.Done()
	}
	return nil
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
