package main

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
	"github.com/sealift/sealift/profiles/schema"
)

func newProfileCommand(e *env) *cobra.Command {
	return newGroup("profile", "Check, show and lock profiles", `
A profile says what an image consists of; the lock beside it pins each input by
digest.`, `
  sealift profile lint profiles/demo.yaml
  sealift profile lock profiles/demo.yaml`,
		newProfileLintCommand(e), newProfileShowCommand(e), newProfileSchemaCommand(e), newProfileLockCommand(e))
}

func newProfileShowCommand(e *env) *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use:   "show PROFILE",
		Short: "Print a profile with all defaults filled in",
		Long: `Prints what a build of the profile goes by: what the file says, and the default
of everything that it leaves out. The output is a profile itself: YAML, or with
--json JSON. It needs no lock.

Example:
  sealift profile show profiles/demo.yaml
  sealift profile show profiles/demo.yaml --arch arm64 --json` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := checkArch(arch); err != nil {
				return err
			}
			p, err := profiles.LoadFor(args[0], arch)
			if err != nil {
				return faulty(err)
			}
			text, err := p.Encode()
			if err != nil {
				return err
			}
			raw, err := p.EncodeJSON()
			if err != nil {
				return err
			}
			return e.print(raw, "%s", bytes.TrimSuffix(text, []byte("\n")))
		},
	}
	addArchFlag(cmd, &arch)
	return cmd
}

func newProfileSchemaCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the schema of profiles for editors",
		Long: `Prints the JSON Schema (draft 2020-12) that editors complete and check profiles
from.

For the YAML language server, the profile's first line names it:

  # yaml-language-server: $schema=profile.schema.json

Example:
  sealift profile schema > profile.schema.json` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.print(json.RawMessage(schema.Profile()), "%s", bytes.TrimSuffix(schema.Profile(), []byte("\n")))
		},
	}
}

func newProfileLintCommand(e *env) *cobra.Command {
	return &cobra.Command{
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
			return e.print(struct {
				File       string              `json:"file"`
				Name       string              `json:"name"`
				Version    string              `json:"version"`
				Kubernetes manifest.Kubernetes `json:"kubernetes"`
			}{args[0], p.Name, p.Version, manifest.Kubernetes{Distro: p.Kubernetes.Distro, Version: p.Kubernetes.Version}},
				"%s: %s %s, %s %s", args[0], p.Name, p.Version, p.Kubernetes.Distro, p.Kubernetes.Version)
		},
	}
}

func newProfileLockCommand(e *env) *cobra.Command {
	var cache, arch string
	var check bool
	cmd := &cobra.Command{
		Use:   "lock PROFILE",
		Short: "Resolve every input of a profile to a digest",
		Long: `Reads Debian's signed package indexes, resolves the dependency closure, and
writes name, version, address and SHA-256 of every input into the lock beside
the profile: PROFILE.lock.yaml, or PROFILE.arm64.lock.yaml for arm64. The files of
a distro's release are pinned by the vendor's own checksums, the images that it
lists and those of the profile by the digest that their tag has now. Builds take
only what the lock pins.

With --check nothing is written: what is newer than the lock is listed, and what
could not be asked.

Example:
  sealift profile lock profiles/demo.yaml
  sealift profile lock profiles/demo.yaml --arch arm64
  sealift profile lock profiles/demo.yaml --check

EXIT STATUS
  0  all went well; with --check: everything was looked at and nothing is newer
  1  it failed; with --check: something is newer, or could not be looked at
  2  the command line or the profile is wrong
  3  a signature or a digest is not what it must be`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if check {
				return checkLock(cmd.Context(), e, args[0], arch, cache)
			}
			return lockProfile(cmd.Context(), e, args[0], arch, cache)
		},
	}
	addArchFlag(cmd, &arch)
	cmd.Flags().StringVar(&cache, "cache", defaultCache(), "`directory` for downloads")
	cmd.Flags().BoolVar(&check, "check", false, "say what is newer than the lock, and write nothing")
	return cmd
}

func lockProfile(ctx context.Context, e *env, file, arch, cache string) error {
	if err := checkArch(arch); err != nil {
		return err
	}
	p, err := profiles.LoadFor(file, arch)
	if err != nil {
		return faulty(err)
	}
	steps := newSteps(e.progress())
	lock, err := newResolver(e, file, cache, steps).Resolve(ctx, p)
	if err != nil {
		steps.fail(err)
		return lockError(err)
	}
	steps.done()
	b, err := lock.Encode()
	if err != nil {
		return err
	}
	to := profiles.LockPathFor(file, p.Arch)
	if err := replaceFile(to, b, 0o644); err != nil {
		return err
	}
	return e.print(struct {
		File     string `json:"file"`
		Packages int    `json:"packages"`
		Programs int    `json:"programs"`
		Files    int    `json:"files"`
		Images   int    `json:"images"`
	}{to, len(lock.Debian.Packages), len(lock.Go.Builds), len(lock.Distro.Artifacts), len(lock.Images)},
		"%s: %s", to, counts(lock))
}
