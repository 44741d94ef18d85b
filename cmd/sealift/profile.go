package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/profiles"
)

func newProfileCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Check and lock profiles",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	lint := &cobra.Command{
		Use:   "lint PROFILE",
		Short: "Check a profile, and whether its lock fits it",
		Long: `Checks a profile strictly: unknown fields, wrong types and bad values are named
with file, line and column.

Example:
  sealift profile lint profiles/demo.yaml` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, _, err := loadProfile(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s: %s %s, %s %s\n", args[0], p.Name, p.Version, p.Kubernetes.Distro, p.Kubernetes.Version)
			return nil
		},
	}
	var cache string
	lock := &cobra.Command{
		Use:   "lock PROFILE",
		Short: "Resolve every input of a profile to a digest",
		Long: `Reads Debian's signed package indexes, resolves the dependency closure, and
writes name, version, address and SHA-256 of every input into the lock beside
the profile: PROFILE.lock.yaml. Builds take only what the lock pins.

Example:
  sealift profile lock profiles/demo.yaml` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return lockProfile(cmd.Context(), e, args[0], cache) },
	}
	lock.Flags().StringVar(&cache, "cache", defaultCache(), "directory for downloads")
	cmd.AddCommand(lint, lock)
	return cmd
}

func lockProfile(ctx context.Context, e *env, file, cache string) error {
	p, err := profiles.Load(file)
	if err != nil {
		return usage{err}
	}
	steps := newSteps(e.progress())
	r := &inputs.Resolver{
		Cache: inputs.Cache{Dir: cache}, Profile: file, Now: e.now(),
		Progress: func(ev inputs.Event) { steps.update(ev.Item, ev.Done, ev.Total) },
	}
	lock, err := r.Resolve(ctx, p)
	if err != nil {
		steps.fail(err)
		return err
	}
	steps.done()
	b, err := lock.Encode()
	if err != nil {
		return err
	}
	to := profiles.LockPath(file)
	if err := replaceFile(to, b, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s: %d Debian packages, %d Go programs\n", to, len(lock.Debian.Packages), len(lock.Go.Builds))
	return nil
}
