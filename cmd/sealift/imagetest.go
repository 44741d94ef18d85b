package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/cmd/sealift/internal/imagetest"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/cmd/sealift/internal/lab"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/profiles"
)

type testOptions struct {
	dir, keys, accel, firmware, vars, scratch string
	timeout                                   time.Duration
	key                                       keyOptions
}

func newImageTestCommand(e *env) *cobra.Command {
	var o testOptions
	cmd := &cobra.Command{
		Use:   "test DIR",
		Short: "Boot an image and compare what it measures with what its manifest predicts",
		Long: `Boots the image, as an installer would have left it, in QEMU with UEFI firmware
(OVMF or AAVMF), Secure Boot with the keys of --keys, and a software TPM with SHA-256 and
SHA-384 banks. The image's agent attests to a real attestation service that runs
in this process, in a network that holds nothing else. Every event and value of
PCR 4, 5, 7, 9, 11, 12 and 13 is compared with the manifest, a line for each.

The result, passed or failed, is an in-toto statement beside the manifest,
signed with the image key: test.intoto.json and test.intoto.json.sigstore.json.
Needs the Debian packages that 'make demo' installs; needs neither root nor KVM.

Example:
  sealift image test build/image --keys keys
  cosign verify-blob-attestation --key keys/image.pub --insecure-ignore-tlog \
    --type https://sealift.dev/attestation/image-test/v1 \
    --bundle build/image/test.intoto.json.sigstore.json build/image/manifest.json

EXIT STATUS
  0  all that was measured is as predicted
  1  it failed: nothing is known about the image
  2  the command line was wrong
  3  the image measured something else, did not boot, or its signature is wrong`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.dir = args[0]
			return testImage(cmd.Context(), e, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.keys, "keys", "keys", "key `directory` that the image was built with")
	o.key.addFlags(f, "key", "image key, if not that of the key directory")
	f.StringVar(&o.accel, "accel", "", "how QEMU runs the image, `kvm or tcg` (default: kvm where it works)")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "`time` that the boot may take")
	f.StringVar(&o.firmware, "firmware", "", "UEFI firmware `file` with Secure Boot (default: Debian's for the image's architecture)")
	f.StringVar(&o.vars, "firmware-vars", "", "blank NVRAM `file` of that firmware")
	f.StringVar(&o.scratch, "scratch", "", "`directory` to leave the machine's disk and logs in (default: a temporary one)")
	return cmd
}

func testImage(ctx context.Context, e *env, o testOptions) (err error) {
	if o.accel != "" && o.accel != "kvm" && o.accel != "tcg" {
		return usage{fmt.Errorf("--accel is %q, want kvm or tcg", o.accel)}
	}
	if o.timeout <= 0 {
		return usage{fmt.Errorf("--timeout is %s, want more than 0", o.timeout)}
	}
	ring, err := openKeys(o.keys)
	if err != nil {
		return err
	}
	pub, err := ring.PublicPEM(keyring.FileImage)
	if err != nil {
		return err
	}
	m, b, err := readManifest(o.dir, pub)
	if err != nil {
		return err
	}
	if len(m.Boots) == 0 {
		return withHint(fmt.Errorf("image %s: its manifest predicts no boots", o.dir), "build it with this version: sealift image build PROFILE --out %s", o.dir)
	}
	digest := manifest.SHA256(sha256.Sum256(b))
	if lab.Inside() {
		text, err := bootImage(ctx, e, o, ring, m, digest)
		if text != nil {
			_, failed := os.NewFile(3, "statement").Write(text)
			err = errors.Join(err, failed)
		}
		return err
	}
	// Keys may be behind the network, which a lab does not have: so the
	// signature is made out here, and a key that cannot be had costs no boot.
	signer, err := o.key.imageSigner(ctx, e, ring)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, signer.Close()) }()
	statement, signed := filepath.Join(o.dir, image.FileTest), filepath.Join(o.dir, image.FileTestBundle)
	for _, old := range []string{signed, statement} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the statement of an earlier test: %w", err)
		}
	}
	text, failed := bootInLab(ctx, e, o, ring, m, digest)
	if failed != nil && !errors.As(failed, new(refused)) {
		return failed
	}
	if err := imagetest.CheckStatement(text, digest, failed == nil); err != nil {
		return errors.Join(failed, err)
	}
	envelope, err := signer.SignStatement(ctx, text)
	if err != nil {
		return errors.Join(failed, err)
	}
	return errors.Join(failed, replaceFile(statement, text, 0o644), replaceFile(signed, envelope, 0o644))
}

// bootInLab tests an image where network namespaces can be made, and returns
// the statement: by way of a file that nobody else can open, as a key is to
// sign it.
func bootInLab(ctx context.Context, e *env, o testOptions, ring *keyring.Keyring, m *manifest.Manifest, digest manifest.SHA256) (_ []byte, err error) {
	f, err := os.CreateTemp("", "sealift-statement-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	done, code, err := lab.Enter(ctx, f)
	if err != nil {
		return nil, err
	}
	if !done {
		return bootImage(ctx, e, o, ring, m, digest)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, manifest.MaxSize))
	return text, errors.Join(endedThere(code), err)
}

// endedThere returns the error of a command that was run again inside a lab,
// and has told there what went wrong.
func endedThere(code int) error {
	err := errors.New("the test ended there, see above")
	switch code {
	case exitOK:
		return nil
	case exitRefused:
		return refused{err}
	case exitUsage:
		return usage{err}
	}
	return err
}

// bootImage tests the image of a verified manifest, prints every check, and
// returns the statement.
func bootImage(ctx context.Context, e *env, o testOptions, ring *keyring.Keyring, m *manifest.Manifest, digest manifest.SHA256) (_ []byte, err error) {
	t := &imagetest.Test{
		Dir: o.dir, Manifest: m, ManifestDigest: digest,
		Accel: o.accel, Timeout: o.timeout, Code: o.firmware, Vars: o.vars, Scratch: o.scratch,
		Version: version(), Log: slog.New(slog.DiscardHandler), Clock: e.now,
	}
	if t.Enrolment, err = ring.Enrolment(); err != nil {
		return nil, err
	}
	if t.ServiceCA, err = ring.CertificatePEM(keyring.FileServiceCA); err != nil {
		return nil, err
	}
	t.Certificate = func(hosts []string) (tls.Certificate, error) {
		issuer, err := ring.Issuer(t.Clock(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, err
		}
		return issuer.IssueServer(hosts)
	}
	if t.Scratch == "" {
		if t.Scratch, err = os.MkdirTemp("", "sealift-image-test-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(t.Scratch)) }()
	} else if t.Scratch, err = filepath.Abs(t.Scratch); err != nil {
		return nil, err
	} else if err = os.MkdirAll(t.Scratch, 0o700); err != nil {
		return nil, err
	}
	steps := newSteps(e.progress())
	t.Step = func(what string) { steps.update(what, 0, 0) }
	r, err := t.Run(ctx)
	if err != nil {
		steps.fail(err)
		if errors.Is(err, imagetest.ErrTool) {
			emulator := "qemu-system-x86 ovmf"
			if m.Arch == profiles.ARM64 {
				emulator = "qemu-system-arm qemu-efi-aarch64"
			}
			err = withHint(err, "as root: apt-get install %s swtpm swtpm-tools dnsmasq-base iproute2 util-linux", emulator)
		}
		return nil, err
	}
	steps.done()
	text, err := r.Statement()
	if err != nil {
		return nil, err
	}
	return text, e.reportTest(o.dir, r)
}

// reportTest prints what a test has found.
func (e *env) reportTest(dir string, r *imagetest.Report) error {
	for _, c := range r.Checks {
		mark := "ok     "
		if !c.OK {
			mark = "differs"
		}
		if err := e.print(c, "%s  %s", mark, plain(c.String())); err != nil {
			return err
		}
	}
	for line := range strings.Lines(r.Console) {
		if _, err := fmt.Fprintln(e.err, plain(strings.TrimSuffix(line, "\n"))); err != nil {
			return err
		}
	}
	statement := filepath.Join(dir, image.FileTest)
	if n := r.Failures(); n > 0 {
		return withHint(refused{fmt.Errorf("image %s: %d of %d checks failed; statement: %s", r.Image, n, len(r.Checks), statement)},
			"build the image anew; the machine's console is kept with --scratch DIR")
	}
	return e.print(struct {
		Result    string `json:"result"`
		Checks    int    `json:"checks"`
		Statement string `json:"statement"`
	}{r.Result, len(r.Checks), statement}, "passed: %d checks, statement: %s", len(r.Checks), statement)
}
