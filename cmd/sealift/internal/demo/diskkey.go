package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

var (
	sawRekeyed    = regexp.MustCompile(`^sealift: \[.*\] disk key changed$`)
	sawNotRekeyed = regexp.MustCompile(`the disk key was to be changed and was not`)
)

// known returns what the service knows of a machine.
func (d *Demo) known(ctx context.Context, id attest.MachineID) (api.Machine, error) {
	all, err := d.machines(ctx)
	if err != nil {
		return api.Machine{}, err
	}
	for _, m := range all {
		if m.ID == id {
			return m, nil
		}
	}
	return api.Machine{}, fmt.Errorf("the service does not know machine %s", id)
}

// askDiskKey has the machine's next boot change the key of its disk.
func (d *Demo) askDiskKey(ctx context.Context) (string, error) {
	if _, err := d.operator(ctx, "machine", "rotate-key", d.machine.ID.String(), "--reason", "somebody left"); err != nil {
		return "", err
	}
	m, err := d.known(ctx, d.machine.ID)
	if err != nil {
		return "", err
	}
	if m.Rotation == nil {
		return "", errors.New("the service does not show that the disk key is to be changed")
	}
	return "rotation " + m.Rotation.ID, nil
}

// changeDiskKey boots the machine, which changes the key of its disk and says so
// to the service, which then forgets the old one.
func (d *Demo) changeDiskKey(ctx context.Context) (string, error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	run, took, err := d.bootAccepted(ctx, vm.Power{Label: "disk-key-changes", WriteLog: d.WriteLog})
	if err != nil {
		return "", err
	}
	defer run.Kill()
	if len(run.Lines(sawRekeyed)) == 0 {
		return "", fmt.Errorf("the agent did not change the disk key:\n%s", run.Tail(15))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the confirmation took too long"))
	defer cancel()
	if err := d.poll(ctx, run, "the service to forget the old key", func() (bool, string) {
		m, err := d.known(ctx, d.machine.ID)
		if err != nil {
			return false, err.Error()
		}
		return m.Rotation == nil, fmt.Sprintf("%+v", m.Rotation)
	}); err != nil {
		return "", err
	}
	steps, err := d.diskKeySteps(ctx, before[len(before)-1].Seq)
	if err != nil {
		return "", err
	}
	if len(steps) != 1 || steps[0].Event != audit.DiskKeyChanged {
		return "", fmt.Errorf("the audit log has %+v of this boot, want that the key was changed", steps)
	}
	return fmt.Sprintf("attested %.1f s, changed, proven and confirmed in that boot", took.Seconds()), nil
}

// openWithNewKey boots the machine again, with what it has now.
func (d *Demo) openWithNewKey(ctx context.Context) (string, error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	run, took, err := d.bootAccepted(ctx, vm.Power{Label: "disk-key-changed"})
	if err != nil {
		return "", err
	}
	run.Kill()
	for _, re := range []*regexp.Regexp{sawRekeyed, sawNotRekeyed} {
		if l := run.Lines(re); len(l) > 0 {
			return "", fmt.Errorf("the agent says %q in the boot after the change", l[0])
		}
	}
	steps, err := d.diskKeySteps(ctx, before[len(before)-1].Seq)
	if err != nil {
		return "", err
	}
	if len(steps) != 0 {
		return "", fmt.Errorf("the audit log has %+v of the boot after the change, want nothing", steps)
	}
	return fmt.Sprintf("attested %.1f s, state opened", took.Seconds()), nil
}

// diskKeySteps returns what the audit log after seq says of disk keys.
func (d *Demo) diskKeySteps(ctx context.Context, after int64) ([]audit.DiskKey, error) {
	fresh, err := d.entries(ctx, after)
	if err != nil {
		return nil, err
	}
	var steps []audit.DiskKey
	for _, e := range fresh {
		if e.Kind != string(audit.KindDiskKey) {
			continue
		}
		var s audit.DiskKey
		if err := json.Unmarshal(e.Data, &s); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", e.Seq, err)
		}
		steps = append(steps, s)
	}
	return steps, nil
}
