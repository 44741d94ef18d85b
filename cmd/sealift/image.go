package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/progress"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/rootfs"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

func newImageCommand(e *env) *cobra.Command {
	return newGroup("image", "Build, verify and compare images", `
An image is a directory: disk image, UKI, installer, and a signed manifest that
holds their digests and the reference values for attestation.`, `
  sealift image build profiles/demo.yaml --keys keys --out build/image
  sealift image verify build/image --keys keys`,
		newImageBuildCommand(e), newImageVerifyCommand(e), newImageDiffCommand(e), newImageTestCommand(e))
}

type buildOptions struct {
	profile, arch, keys, out, cache, agent, pause string
	outputs                                       []string
	offline, reuse                                bool
	key                                           keyOptions
	builder                                       string // URI for the provenance
}

func newImageBuildCommand(e *env) *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build PROFILE",
		Short: "Build a signed image from a profile and its lock",
		Long: `Builds an image into --out: the UKI, the signed manifest, and the forms that
--output names: the disk as it is (raw), compressed for installers (raw.zst) or
for virtual machines (qcow2), a medium that installs without a network (iso),
and the installer for network boot (netboot).
Takes only what the lock beside the profile pins, from the cache or the network,
and checks every byte. Needs no root, no loop device and no container engine.
The same profile, lock, keys and programs give the same bytes. With --arch the
profile is built for another architecture than its own, from the lock of that
architecture: PROFILE.arm64.lock.yaml.

Beside the manifest lie SBOMs (SPDX 2.3, CycloneDX 1.6) and SLSA provenance. All
are signed with the image key, as bundles that cosign verifies offline.

Example:
  sealift image build profiles/demo.yaml --keys keys --out build/image
  sealift image build profiles/demo.yaml --key hashivault://fleet-image --out build/image
  cosign verify-blob --key keys/image.pub --insecure-ignore-tlog=true \
    --bundle build/image/manifest.json.sigstore.json build/image/manifest.json
  sealift image build profiles/demo.yaml --keys keys --out build/stick --output iso
  sealift image build profiles/demo.yaml --arch arm64 --keys keys --out build/arm64

EXIT STATUS
  0  all went well
  1  it failed
  2  the command line or the profile was wrong
  3  an input is not what the lock pins
  4  a locked input is to be had nowhere any more: lock anew`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.profile = args[0]
			return buildImage(cmd.Context(), e, o)
		},
	}
	f := cmd.Flags()
	addArchFlag(cmd, &o.arch)
	f.StringVar(&o.keys, "keys", "keys", "key `directory` of 'sealift keys init'")
	o.key.addFlags(f, "key", "image key, if not that of the key directory")
	f.StringVar(&o.builder, "builder-id", provenance.DefaultBuilder, "`URI` of who builds, for the provenance")
	f.StringVar(&o.out, "out", "", "`directory` for the image (required)")
	addOutputFlag(f, &o.outputs)
	f.StringVar(&o.cache, "cache", defaultCache(), "`directory` for downloads and built programs")
	f.StringVar(&o.agent, "agent", "", "sealift-agent `program` of the image's architecture (default: beside this program)")
	f.StringVar(&o.pause, "pause", "", "sealift-pause `program` (default: beside the agent)")
	f.BoolVar(&o.offline, "offline", false, "touch no network")
	f.BoolVar(&o.reuse, "reuse", false, "keep the image in --out if it was made from the same inputs and is whole, which takes reading it")
	required(cmd, "out")
	return cmd
}

// defaultCache returns the user's cache directory, as XDG has it.
func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ".sealift-cache"
	}
	return filepath.Join(dir, "sealift")
}

func buildImage(ctx context.Context, e *env, o buildOptions) error {
	outputs, err := parseOutputs(o.outputs)
	if err != nil {
		return err
	}
	profile, lock, err := loadProfileFor(o.profile, o.arch)
	if err != nil {
		return err
	}
	ring, err := openKeys(o.keys)
	if err != nil {
		return err
	}
	if err := o.findPrograms(profile.Arch); err != nil {
		return withHint(err, "make build, or say where it is with --agent and --pause")
	}
	stamp, err := inputStamp(ctx, o, profile.Arch, ring)
	if err != nil {
		return err
	}
	if o.reuse {
		m, err := reusable(ctx, o.out, stamp, ring)
		if err == nil {
			return e.print(m, "%s: reused", o.out)
		}
		if ctx.Err() != nil {
			return err
		}
	}
	m, err := buildFrom(ctx, e, o, outputs, profile, lock, ring)
	if err != nil {
		return busy(err)
	}
	if err := writeStamp(o.out, stamp, m); err != nil {
		return err
	}
	return printImage(e, o.out, m)
}

// loadProfile reads a profile and the lock beside it, which must fit it.
func loadProfile(file string) (*profiles.Profile, *profiles.Lock, error) {
	return loadProfileFor(file, "")
}

// loadProfileFor is loadProfile with a value of --arch.
func loadProfileFor(file, arch string) (*profiles.Profile, *profiles.Lock, error) {
	if err := checkArch(arch); err != nil {
		return nil, nil, err
	}
	profile, err := profiles.LoadFor(file, arch)
	if err != nil {
		return nil, nil, faulty(err)
	}
	relock := "sealift profile lock " + file
	if arch != "" {
		relock += " --arch " + arch
	}
	lock, err := profiles.LoadLock(profiles.LockPathFor(file, profile.Arch))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, withHint(err, "%s", relock)
	}
	if err != nil {
		return nil, nil, faulty(err)
	}
	if err := lock.CheckProfile(profile); err != nil {
		return nil, nil, withHint(err, "%s", relock)
	}
	return profile, lock, nil
}

// faulty marks what is wrong inside a profile or lock as the caller's. A file
// that cannot be read is an ordinary failure.
func faulty(err error) error {
	if errors.As(err, new(*profiles.FileError)) {
		return usage{err}
	}
	return err
}

// inputStamp names everything that decides an image's bytes: the profile, its
// lock, the programs and the public keys.
func inputStamp(ctx context.Context, o buildOptions, arch string, ring *keyring.Keyring) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", o.outputs, o.builder)
	fmt.Fprintln(h, arch)
	for _, name := range []string{keyring.FilePK, keyring.FileKEK, keyring.FileDB, keyring.FileServiceCA} {
		b, err := ring.CertificatePEM(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
	}
	for _, name := range []string{keyring.FileImage, keyring.FilePCR, keyring.FileRelease} {
		b, err := ring.PublicPEM(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	for _, file := range []string{o.profile, profiles.LockPathFor(o.profile, arch), o.agent, o.pause, self} {
		sum, err := fileSum(ctx, file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%x\n", sum)
	}
	return fmt.Sprintf("%x\n", h.Sum(nil)), nil
}

// fileSum returns the SHA-256 of a file, which may be many gigabytes.
func fileSum(ctx context.Context, file string) ([]byte, error) {
	f, err := profiles.OpenRegular(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch _, err := io.CopyN(h, f, 16<<20); {
		case err == io.EOF:
			return h.Sum(nil), nil
		case err != nil:
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
}

// buildFrom fetches the inputs, puts the trees together and builds.
func buildFrom(ctx context.Context, e *env, o buildOptions, outputs []image.Output, profile *profiles.Profile, lock *profiles.Lock, ring *keyring.Keyring) (_ *manifest.Manifest, err error) {
	steps := newSteps(e.progress())
	defer func() {
		if err != nil {
			steps.fail(err)
		}
	}()
	// Before the work, so that a key that cannot be had costs none.
	signer, err := o.key.imageSigner(ctx, e, ring)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, signer.Close()) }()
	fetcher := &inputs.Fetcher{
		Cache: inputs.Cache{Dir: o.cache}, Client: e.client, Offline: o.offline, Profile: o.profile,
		Progress: func(ev inputs.Event) { steps.update(ev.Item, ev.Done, ev.Total) },
	}
	in, err := fetcher.Fetch(ctx, profile, lock)
	if err != nil {
		switch {
		case errors.Is(err, inputs.ErrGone):
			return nil, gone{err}
		case errors.As(err, new(*inputs.MismatchError)):
			return nil, refused{err}
		}
		return nil, err
	}
	epoch, err := lockEpoch(lock)
	if err != nil {
		return nil, err
	}
	steps.update("file trees", 0, 0)
	builder, err := rootfs.New(rootfs.Config{Profile: profile, Inputs: in, Agent: o.agent, Pause: o.pause, Epoch: epoch.Unix(), TempDir: o.cache})
	if err != nil {
		return nil, err
	}
	root, err := builder.Root(ctx)
	if err != nil {
		return nil, err
	}
	boot, installer, err := initrds(builder, profile, ring)
	if err != nil {
		return nil, err
	}
	osRelease, err := root.ReadFile("/etc/os-release", 64<<10)
	if err != nil {
		return nil, err
	}
	digest, err := lock.Digest()
	if err != nil {
		return nil, err
	}
	build := image.BuildInput{
		Profile: profile, LockDigest: digest, Epoch: epoch,
		Root: root, Boot: boot, Installer: installer,
		Kernel: builder.Kernel, KernelRelease: builder.KernelVersion, Stub: builder.Stub, OSRelease: osRelease,
		Output: o.out, Outputs: outputs, Progress: steps.update,
	}
	if build.PolicyDBX, err = profile.PolicyDBX(o.profile); err != nil {
		return nil, err
	}
	if build.DB, err = ring.DB(); err != nil {
		return nil, err
	}
	if build.Enrolment, err = ring.Enrolment(); err != nil {
		return nil, err
	}
	if build.PCR, err = ring.PCR(); err != nil {
		return nil, err
	}
	build.Signer = signer
	if build.Packages, err = fetcher.Packages(ctx, in); err != nil {
		return nil, err
	}
	if build.Base, err = baseImage(ctx, o.cache, in, profile, lock); err != nil {
		return nil, err
	}
	if build.Provenance, err = o.provenance(ctx, lock, ring); err != nil {
		return nil, err
	}
	m, err := image.Build(ctx, build)
	if err != nil {
		return nil, err
	}
	steps.done()
	return m, nil
}

// initrds makes the initramfs of the image and that of its installer.
func initrds(b *rootfs.Builder, p *profiles.Profile, ring *keyring.Keyring) (boot, installer *tree.Tree, err error) {
	ca, err := ring.CertificatePEM(keyring.FileServiceCA)
	if err != nil {
		return nil, nil, err
	}
	pub := map[string][]byte{}
	for _, name := range []string{keyring.FileRelease, keyring.FilePCR, keyring.FileImage} {
		if pub[name], err = ring.PublicPEM(name); err != nil {
			return nil, nil, err
		}
	}
	extra, err := b.AttestCA()
	if err != nil {
		return nil, nil, err
	}
	ca = append(ca, extra...)
	boot, _, err = b.Initrd(profiles.AgentConfig{
		Mode: profiles.ModeBoot, AttestURL: p.Attest.URL, AttestCA: string(ca),
		ReleaseKey: string(pub[keyring.FileRelease]), PCRKey: string(pub[keyring.FilePCR]),
	})
	if err != nil {
		return nil, nil, err
	}
	installer, _, err = b.Initrd(profiles.AgentConfig{
		Mode: profiles.ModeInstall, ImageKey: string(pub[keyring.FileImage]),
		MinDisk: int64(p.Install.MinDisk) << 20, Wipe: p.Install.Wipe, Hardware: p.Hardware,
	})
	if err != nil {
		return nil, nil, err
	}
	for _, v := range []efivar.Variable{efivar.PK, efivar.KEK, efivar.DB} {
		auth, err := ring.Auth(v)
		if err != nil {
			return nil, nil, err
		}
		if err := installer.WriteFile(fmt.Sprintf("%s/%s.auth", profiles.SecureBootDir, v), auth, 0o644); err != nil {
			return nil, nil, err
		}
	}
	return boot, installer, nil
}

// lockEpoch returns the time that stands for "now" in an image: when the
// newest of the locked package indexes was signed.
func lockEpoch(lock *profiles.Lock) (time.Time, error) {
	var newest time.Time
	for _, r := range lock.Debian.Releases {
		t, err := time.Parse(time.RFC3339, r.Date)
		if err != nil {
			return newest, fmt.Errorf("lock: release %s: %w", r.Suite, err)
		}
		if t.After(newest) {
			newest = t
		}
	}
	if newest.IsZero() {
		return newest, errors.New("lock: it names no release, so the image would have no date")
	}
	return newest.UTC(), nil
}

func printImage(e *env, dir string, m *manifest.Manifest) error {
	var files strings.Builder
	for _, a := range m.Artifacts {
		fmt.Fprintf(&files, "%s %s, ", a.Name, progress.Bytes(a.Size))
	}
	mark := ""
	if m.Debug {
		mark = "; marked debug, not for production"
	}
	return e.print(m, "%sroot %s in %s%s", files.String(), m.Root.RootHash.String()[:16], dir, mark)
}
