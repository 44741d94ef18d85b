// Package image builds images: from file trees, a kernel, a stub and keys to a
// GPT disk image with dm-verity and a signed unified kernel image, an installer,
// and a signed manifest with the reference values of both. Build is the way in.
//
// Building needs no root, no loop device and no clock. Equal input gives equal
// bytes, in another directory, at another time, under another user and with
// another number of processors. So do the signatures of a key in a file (RFC
// 6979); those of a key in a token or a key service are randomised, and with
// them the bundles and an installation medium differ.
package image

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/pkcs7"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/image/uki"
	"github.com/sealift/sealift/image/verity"
	"github.com/sealift/sealift/profiles"
)

// Names of the output files.
const (
	FileManifest  = "manifest.json"
	FileBundle    = FileManifest + sign.BundleSuffix
	FileDisk      = "disk.raw"
	FileDiskZstd  = "disk.raw.zst"
	FileUKI       = "uki.efi"
	FileInstaller = "installer.efi"
	FileQCOW2     = "disk.qcow2"
	FileISO       = "installer.iso"

	FileSPDX       = "sbom.spdx.json"
	FileCycloneDX  = "sbom.cdx.json"
	FileProvenance = "provenance.intoto.json"
)

const mib = 1 << 20

// BuildInput is everything that an image is made of. All fields are required
// unless marked Optional.
type BuildInput struct {
	Profile    *profiles.Profile // name, version, budgets, kernel parameters
	LockDigest manifest.SHA256   // of the lock file that the trees were made from
	Epoch      time.Time         // SOURCE_DATE_EPOCH: every time stamp in the image

	Root      *tree.Tree // root file system
	Boot      *tree.Tree // initramfs of the image
	Installer *tree.Tree // initramfs of the installer

	Kernel        []byte // with an EFI stub
	KernelRelease string // that the modules in the trees are for. Optional: must be the kernel's own
	Stub          []byte // systemd-stub
	OSRelease     []byte // os-release(5), measured with both UKIs; VARIANT_ID is debug if the profile is

	DB        *pkcs7.Signer    // signs UKIs; its certificate is the Enrolment's DB
	Enrolment efivar.Enrolment // what the installer enrols
	PCR       *rsa.PrivateKey  // signs the PCR 11 policy of the image, never of the installer
	Signer    *sign.Signer     // signs the manifest, the SBOMs and the provenance

	// Packages are the Debian packages that files of the trees are from.
	// Optional; what is not from one of them counts as made by the builder.
	Packages []sbom.Package
	// Base is what Root started from. Optional.
	Base *sbom.Base
	// Provenance is what the caller knows of the build. Optional.
	Provenance provenance.Parameters

	// PolicyDBX is the file that the profile's policy names in
	// secureBoot.dbx.superset. Optional unless it does.
	PolicyDBX []byte

	// Output is the directory that the image appears in, complete or not at
	// all. An image that is there is replaced, other files are not.
	Output string
	// Outputs are the forms of the image that appear there. Optional;
	// DefaultOutputs if empty.
	Outputs []Output
	// Workers is how many goroutines hash and compress. Optional; the number
	// of processors if zero.
	Workers int
	// Progress is told how far a step has come, in bytes; total is 0 if it is
	// not known. It is called by one goroutine at a time. Optional.
	Progress func(step string, done, total int64)

	published func() // for tests: called when the image is in its place
}

// Steps of Progress.
const (
	StepRoot      = "root file system"
	StepVerity    = "verity tree"
	StepUKI       = "unified kernel image"
	StepDisk      = "disk image"
	StepCompress  = "compress"
	StepInstaller = "installer"
	StepQCOW2     = "qcow2 image"
	StepISO       = "installation medium"
	StepInventory = "inventory"
)

func (in *BuildInput) check() error {
	switch {
	case in.Profile == nil:
		return errors.New("no profile")
	case in.LockDigest.IsZero():
		return errors.New("no lock digest")
	case in.Root == nil || in.Boot == nil || in.Installer == nil:
		return errors.New("a file tree is missing: root, boot and installer are required")
	case in.DB == nil || in.PCR == nil || in.Signer == nil:
		return errors.New("a key is missing: db, PCR and image keys are required")
	case in.Enrolment.DB == nil || !in.DB.Certificate.Equal(in.Enrolment.DB):
		return errors.New("the db key is not that of the enrolment")
	case in.Output == "":
		return errors.New("no output directory")
	}
	if _, err := in.policyText(); err != nil {
		return err
	}
	if in.KernelRelease != "" {
		release, err := uki.KernelRelease(in.Kernel)
		if err != nil {
			return err
		}
		if release != in.KernelRelease {
			return fmt.Errorf("the kernel is %s, its modules are for %s", release, in.KernelRelease)
		}
	}
	if marked := profiles.MarkedDebug(in.OSRelease); marked != in.Profile.Debug {
		return fmt.Errorf("debug of profile %s is %t, but VARIANT_ID in os-release says %t", in.Profile.Name, in.Profile.Debug, marked)
	}
	if y := in.Epoch.UTC().Year(); y < 1980 || y > 2037 {
		return fmt.Errorf("epoch %s is outside of the years 1980 to 2037 that all formats in an image can hold", in.Epoch.UTC().Format(time.RFC3339))
	}
	d := in.Profile.Disk
	if min := disk.MinESP / mib; d.ESP < min || d.Slot < 1 || d.Verity < 1 || d.UKI < 1 {
		return fmt.Errorf("disk of profile %s: esp %d, slot %d, verity %d, uki %d MiB; want at least %d, 1, 1, 1", in.Profile.Name, d.ESP, d.Slot, d.Verity, d.UKI, min)
	}
	if n := verity.Size(int64(d.Slot) * mib); n > int64(d.Verity)*mib {
		return fmt.Errorf("disk of profile %s: verity %d MiB is too small for the hash tree of a slot of %d MiB, want at least %d", in.Profile.Name, d.Verity, d.Slot, (n+mib-1)/mib)
	}
	return nil
}

// Build makes the image and returns its manifest.
func Build(ctx context.Context, in BuildInput) (*manifest.Manifest, error) {
	m, err := build(ctx, &in)
	if err != nil {
		name := "image"
		if in.Profile != nil {
			name = fmt.Sprintf("image %s %s", in.Profile.Name, in.Profile.Version)
		}
		return nil, fmt.Errorf("build %s: %w", name, err)
	}
	return m, nil
}

func build(ctx context.Context, in *BuildInput) (_ *manifest.Manifest, err error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	secureBoot, err := in.Enrolment.SecureBoot()
	if err != nil {
		return nil, err
	}
	out, err := stage(in.Output)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(out.explain(err), out.discard()) }()

	b := &builder{BuildInput: in, out: out}
	if len(b.Outputs) == 0 {
		b.Outputs = DefaultOutputs()
	}
	if b.Workers == 0 {
		b.Workers = runtime.GOMAXPROCS(0)
	}
	b.m = &manifest.Manifest{
		Schema: manifest.Schema, Name: in.Profile.Name, Version: in.Profile.Version, Arch: in.Profile.Arch,
		Epoch: in.Epoch.Unix(), Debug: in.Profile.Debug, LockDigest: in.LockDigest,
		Kubernetes: manifest.Kubernetes{Distro: in.Profile.Kubernetes.Distro, Version: in.Profile.Kubernetes.Version},
		SecureBoot: secureBoot,
	}
	for _, step := range []func(context.Context) error{b.disk, b.compress, b.installer, b.references, b.qcow2, b.iso, b.trim, b.inventory, b.sign} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if err := out.publish(); err != nil {
		return nil, err
	}
	if in.published != nil {
		in.published()
	}
	return b.m, nil
}

// builder carries one build from step to step.
type builder struct {
	*BuildInput
	out *staging
	m   *manifest.Manifest

	compressed   manifest.Artifact // of the disk; unset if no output needs it
	installerUKI []byte            // unset if no output holds it
	diskDigest   manifest.SHA256   // of the raw disk image
}

func (b *builder) progress(step string, done, total int64) {
	if b.Progress != nil {
		b.Progress(step, done, total)
	}
}

// disk writes the disk image.
func (b *builder) disk(ctx context.Context) (err error) {
	f, err := b.out.create(FileDisk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	budget := b.Profile.Disk
	sizes := disk.Sizes{ESP: int64(budget.ESP) * mib, Slot: int64(budget.Slot) * mib, Verity: int64(budget.Verity) * mib}

	hash, err := b.root(ctx, f, sizes)
	if err != nil {
		return err
	}
	image, err := b.uki(b.Boot, b.cmdline(hash), b.PCR)
	if err != nil {
		return err
	}
	if b.m.UKI, err = b.addUKI(manifest.KindUKI, FileUKI, image); err != nil {
		return err
	}
	b.progress(StepUKI, int64(len(image)), int64(len(image)))

	id, partitions, err := disk.AB(b.Profile.Arch, sizes, hash)
	if err != nil {
		return err
	}
	layout, err := disk.Plan(id, partitions)
	if err != nil {
		return err
	}
	esp, err := sizes.Window(f, manifest.RoleESP)
	if err != nil {
		return err
	}
	path, err := disk.BootPath(b.Profile.Arch)
	if err != nil {
		return err
	}
	boot := disk.ESPFile{Path: path, Data: image}
	digest := sha256.Sum256(image)
	if err := disk.WriteESP(esp, []disk.ESPFile{boot}, [4]byte(digest[:4]), b.Epoch); err != nil {
		return err
	}
	if err := layout.WriteTable(f); err != nil {
		return err
	}
	if err := f.Truncate(layout.Size); err != nil {
		return fmt.Errorf("write disk image: %w", err)
	}
	b.m.Disk = manifest.Disk{Size: layout.Size, ChunkSize: disk.ChunkSize, Partitions: layout.Partitions}
	b.progress(StepDisk, layout.Size, layout.Size)
	return nil
}

// root writes the root file system and its hash tree, and returns the root hash.
func (b *builder) root(ctx context.Context, f *os.File, sizes disk.Sizes) ([32]byte, error) {
	fail := func(err error) ([32]byte, error) { return [32]byte{}, err }
	w, err := sizes.Window(f, manifest.RoleRootA)
	if err != nil {
		return fail(err)
	}
	b.progress(StepRoot, 0, b.Root.Stats().Bytes)
	options := tree.EROFSOptions{Epoch: b.Epoch.Unix(), TempDir: b.out.dir}
	if err := b.Root.WriteEROFS(&cancelled{ctx, w}, options); err != nil {
		if need := b.Root.Stats().Bytes; need > w.Size() {
			return fail(fmt.Errorf("root file system: its files have %d MiB, the budget disk.slot of profile %s is %d MiB: %w", need/mib, b.Profile.Name, b.Profile.Disk.Slot, err))
		}
		return fail(fmt.Errorf("root file system, with a budget disk.slot of %d MiB: %w", b.Profile.Disk.Slot, err))
	}
	size := w.Written()
	if size%verity.BlockSize != 0 {
		return fail(fmt.Errorf("root file system has %d bytes, not a whole number of blocks of %d", size, verity.BlockSize))
	}
	b.progress(StepRoot, size, size)

	hashes, err := sizes.Window(f, manifest.RoleRootVerityA)
	if err != nil {
		return fail(err)
	}
	t, err := verity.Write(ctx, hashes, w, size, verity.SaltFor(b.LockDigest, b.Profile.Name, b.Profile.Version), b.Workers, func(done int64) { b.progress(StepVerity, done, size) })
	if err != nil {
		return fail(err)
	}
	b.m.Root = manifest.Root{
		FSType: "erofs", Size: size, RootHash: t.RootHash, Salt: t.Salt, VerityUUID: t.UUID.String(),
	}
	return t.RootHash, nil
}

// uki makes a signed UKI with an initramfs.
func (b *builder) uki(initramfs *tree.Tree, cmdline string, pcr *rsa.PrivateKey) ([]byte, error) {
	for _, p := range b.Profile.Kernel.Cmdline {
		if name, _, _ := strings.Cut(p, "="); name == profiles.ParamRootHash {
			return nil, fmt.Errorf("kernel parameter %q of profile %s: only the builder sets %s", p, b.Profile.Name, name)
		}
	}
	var initrd bytes.Buffer
	if err := initramfs.WriteInitrd(&initrd, b.Epoch.Unix()); err != nil {
		return nil, err
	}
	unsigned, err := uki.Assemble(uki.Input{
		Stub: b.Stub, Kernel: b.Kernel, Initrd: initrd.Bytes(),
		Cmdline: cmdline, OSRelease: b.OSRelease, PCRKey: pcr, Epoch: b.Epoch,
	})
	if err != nil {
		return nil, err
	}
	// The signing time is the build's epoch, like every other time.
	signer := *b.DB
	signer.Time = b.Epoch
	signed, err := pe.Sign(unsigned, &signer)
	if err != nil {
		return nil, err
	}
	if budget := int64(b.Profile.Disk.UKI) * mib; int64(len(signed)) > budget {
		return nil, fmt.Errorf("unified kernel image has %.1f MiB (kernel %.1f, initramfs %.1f), the budget disk.uki of profile %s is %d MiB",
			float64(len(signed))/mib, float64(len(b.Kernel))/mib, float64(initrd.Len())/mib, b.Profile.Name, b.Profile.Disk.UKI)
	}
	return signed, nil
}

// cmdline returns the kernel parameters of the image or, without a root hash,
// of the installer. The last console is the one that /dev/console is.
func (b *builder) cmdline(rootHash [32]byte) string {
	parts := []string{"console=tty0", "console=ttyS0,115200", "panic=10"}
	if b.Profile.Arch == "arm64" {
		parts[1] = "console=ttyAMA0"
	}
	if !b.Profile.Debug {
		parts = append(parts, "loglevel=4")
	}
	parts = append(parts, b.Profile.Kernel.Cmdline...)
	if rootHash != [32]byte{} {
		parts = append(parts, fmt.Sprintf("%s=%x", profiles.ParamRootHash, rootHash))
	}
	return strings.Join(parts, " ")
}

// addUKI writes a UKI to the output and returns its reference values, which
// are taken from the finished bytes.
func (b *builder) addUKI(kind, name string, image []byte) (manifest.UKI, error) {
	if err := b.out.write(name, image); err != nil {
		return manifest.UKI{}, err
	}
	b.addArtifact(kind, name, int64(len(image)), sha256.Sum256(image))
	return reference(image)
}

func reference(image []byte) (manifest.UKI, error) {
	u, err := uki.Predict(image)
	if err != nil {
		return manifest.UKI{}, err
	}
	return *u, nil
}

func (b *builder) addArtifact(kind, name string, size int64, digest manifest.SHA256) {
	b.m.Artifacts = append(b.m.Artifacts, manifest.Artifact{Kind: kind, Name: name, Size: size, SHA256: digest})
}

// hasInstaller reports whether an output holds the installer. Of one that is in
// none, neither manifest nor SBOMs speak: nobody could check what they say.
func (b *builder) hasInstaller() bool { return b.wants(OutputNetboot) || b.wants(OutputISO) }

// installer writes the installer UKI. It gets no PCR policy: one for its
// PCR 11 would let it open disks that only the image may open.
func (b *builder) installer(context.Context) error {
	if !b.hasInstaller() {
		return nil
	}
	image, err := b.uki(b.Installer, b.cmdline([32]byte{}), nil)
	if err != nil {
		return fmt.Errorf("installer: %w", err)
	}
	if b.wants(OutputNetboot) {
		b.m.Installer, err = b.addUKI(manifest.KindInstaller, FileInstaller, image)
	} else {
		b.m.Installer, err = reference(image)
	}
	if err != nil {
		return fmt.Errorf("installer: %w", err)
	}
	b.installerUKI = image
	b.progress(StepInstaller, int64(len(image)), int64(len(image)))
	return nil
}

// BundleOf is the name of the bundle with the signature over an output file.
func BundleOf(name string) string { return name + sign.BundleSuffix }

// sign writes the manifest and its bundle, and the provenance.
func (b *builder) sign(ctx context.Context) error {
	text, bundle, err := b.signed(ctx, b.m)
	if err != nil {
		return err
	}
	return errors.Join(b.out.write(FileManifest, text), b.out.write(FileBundle, bundle), b.policy(ctx), b.provenance(ctx, text))
}

// signed returns a manifest's bytes and bundle, after reading back what a
// verifier will read.
func (b *builder) signed(ctx context.Context, m *manifest.Manifest) (text, bundle []byte, err error) {
	if text, err = m.Encode(); err != nil {
		return nil, nil, err
	}
	if _, err := manifest.Decode(text); err != nil {
		return nil, nil, err
	}
	bundle, err = b.Signer.Sign(ctx, text)
	return text, bundle, err
}

// cancelled is a writer that fails once its context has ended.
type cancelled struct {
	ctx context.Context
	*disk.Window
}

func (c *cancelled) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Window.Write(p)
}
