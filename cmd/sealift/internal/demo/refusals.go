package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/sealift/sealift/cmd/sealift/internal/vm"
	"github.com/sealift/sealift/image/manifest"
)

// refusal is a boot that must be given nothing.
type refusal struct {
	name string
	// codes are the findings that must name the cause, all of them. Without
	// any, the firmware itself must refuse to start the image.
	codes []string
	// power prepares the attack and returns the box to switch on, and how.
	power func(context.Context) (vm.Power, *vm.Box, error)
	undo  func(context.Context) error // optional
	// then goes on with the refused box. Optional.
	then func(context.Context, *vm.Run) (string, error)
}

func (d *Demo) refusals() []refusal {
	own := func(p vm.Power) func(context.Context) (vm.Power, *vm.Box, error) {
		return func(context.Context) (vm.Power, *vm.Box, error) { return p, d.box, nil }
	}
	id := func() string { return d.machine.ID.String() }
	return []refusal{
		{name: "a changed byte in the kernel command line, as it is",
			power: func(ctx context.Context) (vm.Power, *vm.Box, error) {
				return vm.Power{Label: "cmdline-unsigned"}, d.box, d.replaceUKI(ctx, false)
			}, undo: d.restoreUKI},
		{name: "the same, signed again with a stolen db key", codes: []string{"image.unknown", "uki.cmdline"},
			power: func(ctx context.Context) (vm.Power, *vm.Box, error) {
				return vm.Power{Label: "cmdline-signed"}, d.box, d.replaceUKI(ctx, true)
			}, undo: d.restoreUKI},
		{name: "Secure Boot off", codes: []string{"secureboot.off"},
			power: func(context.Context) (vm.Power, *vm.Box, error) {
				vars := d.path("fleet", "setup-mode.fd")
				return vm.Power{Label: "secureboot-off", Vars: vars}, d.box, copyFile(vars, ovmfVars)
			}},
		{name: "another build of the firmware, until two people help", codes: []string{"firmware.unknown"},
			power: own(vm.Power{Label: "firmware-rogue", Code: d.bios(biosRogue)}), then: d.recoverBox},
		{name: "a copy of the disk in another box", codes: []string{"machine.unknown", "disk.foreign"}, power: d.secondBox},
		{name: "the machine revoked", codes: []string{"machine.revoked"},
			power: func(ctx context.Context) (vm.Power, *vm.Box, error) {
				_, err := d.operator(ctx, "machine", "revoke", id(), "--reason", "reported stolen")
				return vm.Power{Label: "revoked"}, d.box, err
			}, undo: func(ctx context.Context) error {
				_, err := d.operator(ctx, "machine", "reinstate", id(), "--reason", "found in the back office")
				return err
			}},
		{name: "SMBIOS claims a newer BIOS, and the code is of another boot", codes: []string{"firmware.claim-mismatch"},
			power: own(vm.Power{Label: "smbios-lie", SMBIOS: []string{"type=0,vendor=EDK II,version=" + biosV2 + ",date=" + biosV2Date}}), then: d.spentCode},
	}
}

// refuse runs one refusal and checks that the cause was named and that no
// secret left the service.
func (d *Demo) refuse(ctx context.Context, r refusal) (detail string, err error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	last := before[len(before)-1].Seq
	p, box, err := r.power(ctx)
	if r.undo != nil {
		defer func() { err = errors.Join(err, r.undo(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return "", fmt.Errorf("prepare: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("no answer came"))
	defer cancel()
	run, err := d.powerOn(ctx, box, d.store, "till1", p)
	if err != nil {
		return "", err
	}
	defer run.Kill()
	if len(r.codes) == 0 {
		line, _, err := run.WaitFor(ctx, sawDenied)
		if err != nil {
			return "", err
		}
		return line, d.nothingReleased(ctx, run, last)
	}
	if _, _, err := run.WaitFor(ctx, sawVerdict); err != nil {
		return "", fmt.Errorf("%w\nserve:\n%s", err, tail(d.serve.log, 15))
	}
	// The service's own record decides, not what the box shows.
	fresh, err := d.entries(ctx, last)
	if err != nil {
		return "", err
	}
	findings, err := verdictFindings(fresh)
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, run.Tail(15))
	}
	for _, want := range r.codes {
		i := slices.IndexFunc(findings, func(f finding) bool { return f.Code == want })
		if i < 0 {
			return "", fmt.Errorf("the findings do not name %s:\n%s", want, list(findings))
		}
		detail = findings[i].Code + ": " + findings[i].Message
	}
	if err := d.nothingReleased(ctx, run, last); err != nil || r.then == nil {
		return detail, err
	}
	then, err := r.then(ctx, run)
	return detail + "; " + then, err
}

type finding struct{ Code, Message string }

func list(all []finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "    %s: %s\n", f.Code, f.Message)
	}
	return b.String()
}

// verdictFindings returns the findings of the refusals among audit entries.
func verdictFindings(entries []entry) ([]finding, error) {
	var all []finding
	refusedOnce := false
	for _, e := range entries {
		if !strings.HasPrefix(e.Kind, "evidence") {
			continue
		}
		var v struct {
			Result struct {
				Allowed  bool
				Findings []finding
			}
		}
		if err := json.Unmarshal(e.Data, &v); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", e.Seq, err)
		}
		if v.Result.Allowed {
			return nil, fmt.Errorf("audit entry %d: the box was accepted", e.Seq)
		}
		refusedOnce = true
		all = append(all, v.Result.Findings...)
	}
	if !refusedOnce {
		return nil, errors.New("the audit log has no verdict of this boot")
	}
	return all, nil
}

// nothingReleased checks, after a refused boot, that the service gave nothing
// away and that the agent opened nothing.
func (d *Demo) nothingReleased(ctx context.Context, run *vm.Run, after int64) error {
	fresh, err := d.entries(ctx, after)
	if err != nil {
		return err
	}
	for _, e := range fresh {
		if strings.HasPrefix(e.Kind, "release") || strings.HasPrefix(e.Kind, "token") {
			return fmt.Errorf("a refused boot was given something: audit entry %d, %s", e.Seq, e.Kind)
		}
	}
	if opened := run.Lines(sawState); len(opened) > 0 {
		return fmt.Errorf("a refused boot opened its disk: %s", opened[0])
	}
	return nil
}

// secondBox is the same model with a TPM of its own, the first box's NVRAM and
// a copy of its disk.
func (d *Demo) secondBox(ctx context.Context) (vm.Power, *vm.Box, error) {
	b := d.newBox(2)
	if err := vm.Create(ctx, b, d.box.VarsFile(), diskSize, d.ca); err != nil {
		return vm.Power{}, nil, err
	}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", d.box.DiskFile(), b.DiskFile()).CombinedOutput(); err != nil {
		return vm.Power{}, nil, fmt.Errorf("copy the disk: %w: %s", err, out)
	}
	return vm.Power{Label: "cloned"}, b, nil
}

// ukiPath is where firmware finds the UKI on the ESP, as mtools writes it.
const ukiPath = "::/EFI/BOOT/BOOTX64.EFI"

// manifest returns that of the image.
func (d *Demo) manifest() (*manifest.Manifest, error) {
	b, err := os.ReadFile(d.path("image", "manifest.json"))
	if err != nil {
		return nil, err
	}
	return manifest.Decode(b)
}

// esp returns how mtools names the ESP on the box's disk.
func (d *Demo) esp() (string, error) {
	m, err := d.manifest()
	if err != nil {
		return "", err
	}
	for _, p := range m.Disk.Partitions {
		if p.Role == manifest.RoleESP {
			return fmt.Sprintf("%s@@%d", d.box.DiskFile(), p.FirstLBA*512), nil
		}
	}
	return "", errors.New("the manifest has no ESP")
}

func (d *Demo) putUKI(ctx context.Context, file string) error {
	esp, err := d.esp()
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mcopy", "-o", "-i", esp, file, ukiPath).CombinedOutput(); err != nil {
		return fmt.Errorf("put %s on the ESP: %w: %s", file, err, out)
	}
	return nil
}

func (d *Demo) restoreUKI(ctx context.Context) error {
	return d.putUKI(ctx, d.path("image", "uki.efi"))
}

// replaceUKI changes one byte of the kernel command line inside the UKI on the
// box's disk. With resign it is signed again with the real db key, as a thief
// of that key would do, so that the firmware starts it.
func (d *Demo) replaceUKI(ctx context.Context, resign bool) error {
	uki, err := os.ReadFile(d.path("image", "uki.efi"))
	if err != nil {
		return err
	}
	const was, is = " loglevel=4", " loglevel=7"
	if n := bytes.Count(uki, []byte(was)); n != 1 {
		return fmt.Errorf("the UKI has %q %d times, want once", was, n)
	}
	uki = bytes.Replace(uki, []byte(was), []byte(is), 1)
	altered := d.path("fleet", "altered.efi")
	if err := os.WriteFile(altered, uki, 0o600); err != nil {
		return err
	}
	if resign {
		for _, args := range [][]string{
			{"sbattach", "--remove", altered},
			{"sbsign", "--key", d.path("keys", "db.key"), "--cert", d.path("keys", "db.crt"), "--output", altered, altered},
		} {
			if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", args[0], err, out)
			}
		}
	}
	return d.putUKI(ctx, altered)
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
