package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

// sha384Only takes a second box, whose TPM has no PCR bank but SHA-384, from the
// factory to a node. The service appraises by SHA-384 meanwhile.
func (d *Demo) sha384Only(ctx context.Context) (string, error) {
	d.stopServe()
	if err := d.startServe(ctx, "sha384"); err != nil {
		return "", err
	}
	d.box384 = d.newBox(3)
	d.box384.Banks = []string{"sha384"}
	if err := vm.Create(ctx, d.box384, ovmfVars, diskSize, d.ca); err != nil {
		return "", err
	}
	m, took, err := d.installBox(ctx, d.box384)
	if err != nil {
		return "", err
	}
	d.machine384 = m
	seen, err := d.boot384(ctx, "created")
	return fmt.Sprintf("installed after %.1f s, %s", took.Seconds(), seen), err
}

// sha384Both activates SHA-256 beside SHA-384 in that box, as its firmware's setup
// would, and boots it.
func (d *Demo) sha384Both(ctx context.Context) (string, error) {
	d.box384.Banks = []string{"sha256", "sha384"}
	if err := vm.ActivateBanks(ctx, d.box384); err != nil {
		return "", err
	}
	seen, err := d.boot384(ctx, "opened")
	if err != nil {
		return "", err
	}
	// The rest of the fleet has SHA-256 alone. This box has left it.
	if _, err := d.operator(ctx, "machine", "revoke", d.machine384.ID.String(), "--reason", "back at the factory"); err != nil {
		return "", err
	}
	d.stopServe()
	return seen, d.startServe(ctx, "sha256")
}

// boot384 boots the SHA-384 box in the store until its node is Ready in this boot
// and has reported from it.
func (d *Demo) boot384(ctx context.Context, want string) (string, error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the boot took too long"))
	defer cancel()
	run, err := d.powerOn(ctx, d.box384, d.store, "till1", vm.Power{Label: "sha384-" + want})
	if err != nil {
		return "", err
	}
	defer run.Kill()
	attested, state, err := d.released(ctx, run)
	if err != nil {
		return "", err
	}
	if !strings.Contains(state, want) {
		return "", fmt.Errorf("the agent says %q, want that the state was %s", state, want)
	}
	fresh, err := d.entries(ctx, before[len(before)-1].Seq)
	if err != nil {
		return "", err
	}
	if err := d.appraisedBy384(fresh); err != nil {
		return "", err
	}
	n, err := d.nodeReady(ctx, run, d.machine384.NodeName, d.bootID384)
	if err != nil {
		return "", err
	}
	d.bootID384 = n.Status.NodeInfo.BootID
	seen := fmt.Sprintf("attested %.1f s, state %s, Ready %.1f s", attested.Seconds(), want, time.Since(run.Started).Seconds())
	if d.NoReports {
		return seen, nil
	}
	err = d.poll(ctx, run, "a report", func() (bool, string) {
		m, err := d.known(ctx, d.machine384.ID)
		if err != nil {
			return false, err.Error()
		}
		return m.LastReport.After(run.Started) && m.State == attest.StateEnrolled, fmt.Sprintf("%s, last report %s: %s", m.State, m.LastReport, m.Reason)
	})
	return fmt.Sprintf("%s, report %.1f s", seen, time.Since(run.Started).Seconds()), err
}

// appraisedBy384 checks that the box was accepted once, by SHA-384.
func (d *Demo) appraisedBy384(entries []entry) error {
	var verdicts []attest.Result
	for _, e := range entries {
		if e.Kind != string(audit.KindVerdict) || e.Machine != d.machine384.ID {
			continue
		}
		var v struct{ Result attest.Result }
		if err := json.Unmarshal(e.Data, &v); err != nil {
			return fmt.Errorf("audit entry %d: %w", e.Seq, err)
		}
		verdicts = append(verdicts, v.Result)
	}
	if len(verdicts) != 1 || !verdicts[0].Allowed {
		return fmt.Errorf("the audit log has the verdicts %+v of this boot, want one that allows it", verdicts)
	}
	if !slices.ContainsFunc(verdicts[0].Facts, func(f attest.Fact) bool { return f.Name == "pcr.bank" && f.Value == "sha384" }) {
		return fmt.Errorf("the verdict does not say that it is by SHA-384: %+v", verdicts[0].Facts)
	}
	return nil
}
