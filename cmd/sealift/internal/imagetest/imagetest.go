// Package imagetest boots an image on emulated hardware and compares what it
// measures with what its manifest predicts. Test.Run is the way in; its Report
// becomes an in-toto statement.
//
// The image is booted as an installer would have left it, on real UEFI firmware
// (OVMF) with the image's own Secure Boot keys and with a software TPM, in a
// network that has nothing but its attestation service. That service is the
// real one, in this process: quotes and event log are those that the image's
// agent sends of its own accord.
package imagetest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
	"github.com/sealift/sealift/image"
	"github.com/sealift/sealift/image/disk"
	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/inspect"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/predict"
	"github.com/sealift/sealift/image/uki"
	"github.com/sealift/sealift/profiles"
)

// Firmware returns the firmware with Secure Boot for an architecture and its
// blank NVRAM, as Debian's packages ovmf and qemu-efi-aarch64 install them.
func Firmware(arch string) (code, vars string) {
	if arch == profiles.ARM64 {
		return "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"
	}
	return "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
}

// Sizes of the emulated machine.
const (
	memory   = 1024    // MiB
	diskRoom = 1 << 30 // bytes beyond the image, as every disk is larger than what is installed on it
	maxUKI   = 256 << 20
)

// Test is one test of one image. All fields are required unless marked
// Optional.
type Test struct {
	Dir            string             // of the image
	Manifest       *manifest.Manifest // whose signature was verified
	ManifestDigest manifest.SHA256    // of the manifest's bytes

	Enrolment efivar.Enrolment // the Secure Boot keys that are put into the firmware
	// Certificate makes a server certificate for the service that the image
	// trusts, and ServiceCA is its authority, PEM.
	Certificate func(hosts []string) (tls.Certificate, error)
	ServiceCA   []byte

	Accel   string        // kvm or tcg. Optional; what works.
	Timeout time.Duration // for the boot, until the evidence is there
	Code    string        // firmware image. Optional; that of Firmware.
	Vars    string        // blank NVRAM of the firmware. Optional; that of Firmware.
	Scratch string        // directory for the machine's disk and logs; it is left as it is in the end
	Version string        // of this program. Optional.
	Log     *slog.Logger  // of the attestation service
	Clock   func() time.Time
	// Step is told what is being done. Optional.
	Step func(what string)
}

// ErrTool says that a program which a test needs is not installed.
var ErrTool = errors.New("not installed")

// tools are the programs that a test runs.
func (t *Test) tools() []string {
	return []string{t.emulator(), "swtpm", "swtpm_setup", "dnsmasq", "ip", "nsenter"}
}

func (t *Test) emulator() string { return (&vm.Box{Arch: t.Manifest.Arch}).Emulator() }

// Run boots the image. A report with failed checks is no error: an error means
// that there is nothing to report. It must be called where network namespaces
// can be made; see package lab.
func (t *Test) Run(ctx context.Context) (*Report, error) {
	r, err := t.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("test image %s %s: %w", t.Manifest.Name, t.Manifest.Version, err)
	}
	return r, nil
}

// boot is what a test has found out before it switches the box on.
type boot struct {
	reference manifest.Boot
	endpoint  endpoint
	disk      string // file of the disk image
	esp       manifest.Partition
	id        guid.GUID // of the installed disk
	size      int64     // of the installed disk, bytes
}

func (t *Test) run(ctx context.Context) (*Report, error) {
	if !slices.Contains(profiles.Arches(), t.Manifest.Arch) {
		return nil, fmt.Errorf("it is for architecture %.40q, want one of %v", t.Manifest.Arch, profiles.Arches())
	}
	for _, name := range t.tools() {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, ErrTool)
		}
	}
	code, vars := Firmware(t.Manifest.Arch)
	t.Code, t.Vars = cmp.Or(t.Code, code), cmp.Or(t.Vars, vars)
	if t.Accel == "" {
		t.Accel = "tcg"
		if t.Manifest.Arch == runtime.GOARCH {
			t.Accel = vm.Accelerator(ctx)
		}
	}
	r := &Report{
		Image: t.Manifest.Name + " " + t.Manifest.Version, Way: manifest.BootDisk, manifest: t.ManifestDigest, Started: t.Clock().UTC(),
		Tester: Tester{Name: "sealift", Version: t.Version},
	}
	t.step("reading the image")
	b, err := t.prepare(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := t.describe(ctx, r, b); err != nil {
		return nil, err
	}
	if err := t.boot(ctx, r, b); err != nil {
		return nil, err
	}
	r.Finished = t.Clock().UTC()
	r.Result = Passed
	if r.Failures() > 0 {
		r.Result = Failed
	}
	return r, nil
}

func (t *Test) step(what string) {
	if t.Step != nil {
		t.Step(what)
	}
}

// prepare reads what the test needs of the image, and predicts for one disk.
func (t *Test) prepare(ctx context.Context, r *Report) (*boot, error) {
	b := &boot{}
	config, err := t.agentConfig()
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(config.AttestCA) != strings.TrimSpace(string(t.ServiceCA)) {
		return nil, errors.New("the image trusts another service CA than that of the key directory: it was built with other keys")
	}
	if b.endpoint, err = parseEndpoint(config.AttestURL); err != nil {
		return nil, err
	}
	digests, err := t.Enrolment.SecureBoot()
	if err != nil {
		return nil, err
	}
	r.Enrolment = digests.Bundle().String()
	at := slices.IndexFunc(t.Manifest.Boots, func(x manifest.Boot) bool {
		return x.Artifact == manifest.KindUKI && x.Way == manifest.BootDisk && x.Enrolment == digests.Bundle()
	})
	if at < 0 {
		return nil, fmt.Errorf("the manifest predicts no boot from the disk with these Secure Boot keys (enrolment %s)", r.Enrolment)
	}
	i := slices.IndexFunc(t.Manifest.Disk.Partitions, func(p manifest.Partition) bool { return p.Role == manifest.RoleESP })
	if i < 0 {
		return nil, errors.New("the manifest has no ESP")
	}
	b.esp = t.Manifest.Disk.Partitions[i]
	if b.disk, err = t.checkDisk(ctx, r); err != nil {
		return nil, err
	}
	if b.id, err = newGUID(rand.Reader); err != nil {
		return nil, err
	}
	b.size = t.Manifest.Disk.Size + diskRoom
	table, err := predict.GPTEvent(t.Manifest.Disk, predict.Installed{Disk: b.id, Size: b.size})
	if err != nil {
		return nil, err
	}
	b.reference, err = predict.WithGPT(t.Manifest.Boots[at], table)
	return b, err
}

// agentConfig returns the configuration inside the image's UKI.
func (t *Test) agentConfig() (*profiles.AgentConfig, error) {
	b, err := readLimited(filepath.Join(t.Dir, image.FileUKI), maxUKI)
	if err != nil {
		return nil, err
	}
	m, err := uki.Measure(b)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(m.Sections, func(s uki.Section) bool { return s.Name == ".initrd" })
	if i < 0 {
		return nil, errors.New("the UKI has no initramfs")
	}
	_, files, err := inspect.ReadInitrd(m.Sections[i].Content, func(path string) bool { return path == profiles.AgentConfigPath })
	if err != nil {
		return nil, err
	}
	text, ok := files[profiles.AgentConfigPath]
	if !ok {
		return nil, fmt.Errorf("the initramfs has no %s", profiles.AgentConfigPath)
	}
	var c profiles.AgentConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s in the initramfs: %w", profiles.AgentConfigPath, err)
	}
	return &c, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}

// checkDisk compares the disk image with the manifest. One that differs is a
// failed check, and is booted all the same: what it measures is worth knowing.
func (t *Test) checkDisk(ctx context.Context, r *Report) (string, error) {
	a, ok := t.Manifest.Artifact(manifest.KindDisk)
	if !ok {
		if a, ok = t.Manifest.Artifact(manifest.KindDiskZstd); !ok {
			return "", fmt.Errorf("the image has neither %s nor %s to boot from", image.FileDisk, image.FileDiskZstd)
		}
	}
	path := filepath.Join(t.Dir, filepath.Base(a.Name))
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if _, err := io.CopyN(h, f, 16<<20); err == io.EOF {
			break
		} else if err != nil {
			return "", fmt.Errorf("read %s: %w", path, err)
		}
	}
	got := manifest.SHA256(h.Sum(nil))
	r.disk = Subject{Name: a.Name, Digest: map[string]manifest.SHA256{"sha256": got}}
	r.Checks = append(r.Checks, Check{
		Name: "artifact " + a.Name, What: "content", Bank: "sha256", Want: a.SHA256.String(), Got: got.String(), OK: got == a.SHA256,
	})
	return path, nil
}

// newGUID returns a random GUID (RFC 9562, version 4).
func newGUID(random io.Reader) (guid.GUID, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return guid.GUID{}, fmt.Errorf("draw a GUID: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return guid.FromBytes(b), nil
}

// describe says on what the image is booted.
func (t *Test) describe(ctx context.Context, r *Report, b *boot) error {
	code, err := readLimited(t.Code, maxStore)
	if err != nil {
		return fmt.Errorf("firmware: %w", err)
	}
	r.Machine = Machine{
		Accel: t.Accel, Firmware: sha256.Sum256(code), Banks: predict.Banks(), DiskGUID: b.id.String(), DiskSize: b.size,
	}
	for to, name := range map[*string]string{&r.Machine.Emulator: t.emulator(), &r.Machine.TPM: "swtpm"} {
		out, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil {
			return fmt.Errorf("%s --version: %w", name, err)
		}
		line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
		*to = string(line)
	}
	return nil
}

// newBox makes the machine as an installer would have left it.
func (t *Test) newBox(ctx context.Context, b *boot, ca vm.TPMCA) (*vm.Box, error) {
	box := &vm.Box{
		Arch: t.Manifest.Arch, Name: "image-test", Dir: filepath.Join(t.Scratch, "box"), Code: t.Code, Memory: memory, CPUs: 2,
		MAC: "52:54:00:77:7e:57", UUID: "5ea11f70-0000-4000-8000-000000007e57", Serial: "image-test", Banks: predict.Banks(),
	}
	blank, err := readLimited(t.Vars, maxStore)
	if err != nil {
		return nil, fmt.Errorf("firmware's NVRAM: %w", err)
	}
	file, err := disk.BootPath(t.Manifest.Arch)
	if err != nil {
		return nil, err
	}
	variables, err := enrolled(t.Enrolment, b.esp, strings.ReplaceAll(file, "/", `\`))
	if err != nil {
		return nil, err
	}
	nvram, err := addVariables(blank, variables)
	if err != nil {
		return nil, err
	}
	vars := filepath.Join(t.Scratch, "enrolled.fd")
	if err := os.WriteFile(vars, nvram, 0o600); err != nil {
		return nil, err
	}
	if err := vm.Create(ctx, box, vars, b.size, ca); err != nil {
		return nil, err
	}
	return box, writeDisk(ctx, box.DiskFile(), b.disk, b.size, b.id)
}

// boot switches the box on, waits for its evidence, and compares.
func (t *Test) boot(ctx context.Context, r *Report, b *boot) (err error) {
	t.step("making the machine")
	ca := vm.TPMCA{Dir: filepath.Join(t.Scratch, "tpm-ca")}
	box, err := t.newBox(ctx, b, ca)
	if err != nil {
		return err
	}
	cert, err := t.Certificate([]string{b.endpoint.host})
	if err != nil {
		return err
	}
	service, err := newService(ctx, t.Scratch, t.Manifest, ca, t.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.store.Close()) }()
	lan, err := newNetwork(ctx, t.Scratch, b.endpoint)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lan.close()) }()
	serving, stop := context.WithCancel(ctx)
	ctx, fail := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := service.serve(serving, lan.ln, cert); err != nil && serving.Err() == nil {
			fail(err) // else it is only that the box went away
		}
	}()
	go func() {
		select {
		case <-lan.down:
			fail(lan.fault())
		case <-serving.Done():
		}
	}()
	defer func() {
		stop()
		<-done
		fail(nil)
	}()

	t.step("booting")
	// What ends the wait must not end QEMU before its console was read.
	run, err := box.Start(context.WithoutCancel(ctx), t.Accel, vm.Power{Label: "test", Tap: tap, Command: lan.space.Command})
	if err != nil {
		return err
	}
	defer run.Kill()
	seen, why, err := t.await(ctx, run, service.witness)
	if err != nil {
		return err
	}
	if seen == nil {
		r.Checks = append(r.Checks, Check{Name: "boot", Detail: why})
		r.Console = run.Tail(20)
		return nil
	}
	r.EventLog = sha256.Sum256(seen.evidence.EventLog)
	r.Checks = append(r.Checks, appraise(b, seen)...)
	return nil
}

// refusedByFirmware is what OVMF says on its console of an image that it does
// not start.
var refusedByFirmware = regexp.MustCompile(`Access Denied|Security Violation`)

// await returns the evidence of the box, or why there is none.
func (t *Test) await(ctx context.Context, run *vm.Run, w *witness) (*observed, string, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, t.Timeout, fmt.Errorf("no evidence within %s", t.Timeout))
	defer cancel()
	type end struct {
		line string
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		line, _, err := run.WaitFor(waiting, refusedByFirmware)
		ended <- end{line, err}
	}()
	var e end
	select {
	case seen := <-w.seen:
		return seen, "", nil
	case e = <-ended:
	}
	select { // the evidence may have come at the same moment
	case seen := <-w.seen:
		return seen, "", nil
	default:
	}
	switch {
	case ctx.Err() != nil:
		return nil, "", context.Cause(ctx)
	case e.err == nil:
		return nil, "the firmware does not start the image: " + e.line, nil
	case errors.Is(e.err, vm.ErrEnded):
		if err := run.Wait(ctx); err != nil {
			return nil, "", fmt.Errorf("run QEMU: %w", err)
		}
		return nil, "the machine went off before evidence came", nil
	}
	return nil, context.Cause(waiting).Error(), nil
}

// appraise compares the evidence of a boot with the reference.
func appraise(b *boot, seen *observed) []Check {
	all := []Check{verdict(seen.result), {
		Name: "disk", What: "GUID", Want: b.id.String(), Got: seen.evidence.Disk.GUID, OK: seen.evidence.Disk.GUID == b.id.String(),
	}}
	log, err := attest.ParseEventLog(seen.evidence.EventLog)
	if err != nil {
		return append(all, Check{Name: "event log", Detail: err.Error()})
	}
	quoted := quotedPCRs{}
	for _, q := range seen.evidence.Quotes {
		quoted[q.Bank] = q.PCRs
	}
	return append(all, compare(b.reference, log, quoted)...)
}

// verdict checks that the service's own verifier found nothing but what a test
// cannot have: a machine that its owner enrolled, and firmware that the owner
// allowed. All the rest of the verifier's rules hold, signatures of the quotes
// among them.
func verdict(r *attest.Result) Check {
	c := Check{Name: "verifier", OK: r != nil}
	if r == nil {
		c.Detail = "it gave no verdict"
		return c
	}
	expected := []attest.Code{attest.CodeMachineUnknown, attest.CodeFirmwareUnknown}
	var bad []string
	for _, f := range r.Findings {
		if !slices.Contains(expected, f.Code) {
			bad = append(bad, fmt.Sprintf("%s: %s", f.Code, f.Message))
		}
	}
	if bad != nil {
		c.OK, c.Detail = false, strings.Join(bad, "; ")
		return c
	}
	c.Detail = "image " + r.Image + ", nothing to find but a machine and a firmware that nobody has approved"
	return c
}
