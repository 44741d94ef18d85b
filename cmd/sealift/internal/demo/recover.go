package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/recovery"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

// What the agent says on the console about a recovery.
var (
	sawRequest   = regexp.MustCompile(`^sealift: \[.*\]\s+request [1-4]:\s+(.*)$`)
	sawShown     = regexp.MustCompile(`^sealift: \[.*\] Enter alone shows this again$`)
	sawCodeRight = regexp.MustCompile(`^sealift: \[.*\] recovery: the code is right$`)
	sawOtherBoot = regexp.MustCompile(`^sealift: \[.*\] recovery: the code is not for this request\b`)
	sawRecovered = regexp.MustCompile(`^sealift: \[.*\] recovered with a code: not attested$`)
)

// request returns the recovery request that the box shows.
func (d *Demo) request(ctx context.Context, run *vm.Run) ([]string, error) {
	if _, _, err := run.WaitFor(ctx, sawShown); err != nil {
		return nil, err
	}
	var request []string
	for _, l := range run.Lines(sawRequest) {
		request = append(request, sawRequest.FindStringSubmatch(l)[1])
	}
	if len(request) != recovery.RequestLines {
		return nil, fmt.Errorf("the box shows a request of %d lines, want %d: %q", len(request), recovery.RequestLines, request)
	}
	return request, nil
}

// recoveryAnswer is what recovery-key prints: a recovery, or the lines of its code.
type recoveryAnswer struct {
	api.Recovery
	Lines []string
}

// secondOperator returns the identity of another person, who approves.
func (d *Demo) secondOperator(ctx context.Context) (string, error) {
	dir := d.path("fleet", "second-operator")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	_, err := d.sealift(ctx, nil, "keys", "issue", "operator", "second", "--role", "approver", "--keys", d.path("keys"), "--out", dir)
	return dir, err
}

// recoveryKey asks for the code of a request.
func (d *Demo) recoveryKey(ctx context.Context, request []string) (*recoveryAnswer, error) {
	out, err := d.operator(ctx, "machine", "recovery-key", d.machine.ID.String(), "--reason", "the line is down", "--request", strings.Join(request, " / "), "--json")
	if err != nil {
		return nil, err
	}
	a := new(recoveryAnswer)
	if err := json.Unmarshal([]byte(out), a); err != nil {
		return nil, fmt.Errorf("read the answer of recovery-key: %w", err)
	}
	return a, nil
}

// noCode asks for the code of a request where there must be none, and returns the
// id of the recovery.
func (d *Demo) noCode(ctx context.Context, request []string, approvals int) (string, error) {
	a, err := d.recoveryKey(ctx, request)
	if err != nil {
		return "", err
	}
	if len(a.Lines) > 0 || len(a.Approvals) != approvals {
		return "", fmt.Errorf("recovery-key gives a code of %d lines and shows %d approvals, want %d and no code", len(a.Lines), len(a.Approvals), approvals)
	}
	return a.ID, nil
}

// code has a recovery approved by two people and returns the lines of its code,
// after it tried to get them with less, and the id of the recovery.
func (d *Demo) code(ctx context.Context, request []string) (lines []string, opened string, err error) {
	id := d.machine.ID.String()
	if opened, err = d.noCode(ctx, request, 0); err != nil {
		return nil, "", err
	}
	if _, err := d.operator(ctx, "machine", "recovery-approve", id, opened, "--reason", "called the store back"); err != nil {
		return nil, "", err
	}
	var exit *exec.ExitError
	if _, err := d.operator(ctx, "machine", "recovery-approve", id, opened, "--reason", "once more"); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return nil, "", fmt.Errorf("a second approval of the same person: got %w, want exit status 1", err)
	}
	if _, err := d.noCode(ctx, request, 1); err != nil {
		return nil, "", err
	}
	second, err := d.secondOperator(ctx)
	if err != nil {
		return nil, "", err
	}
	if _, err := d.sealift(ctx, d.hq, "machine", "recovery-approve", id, opened, "--reason", "saw the photo", "--server", "https://"+operators, "--identity", second); err != nil {
		return nil, "", err
	}
	given, err := d.recoveryKey(ctx, request)
	if err != nil {
		return nil, "", err
	}
	if len(given.Lines) == 0 {
		return nil, "", fmt.Errorf("with two approvals recovery-key gives no code: %+v", given.Recovery)
	}
	return given.Lines, opened, nil
}

// typeCode types a code at the box, and goes on when the box has read all of it.
// The last line is answered by what done matches.
func typeCode(ctx context.Context, run *vm.Run, code []string, done *regexp.Regexp) error {
	for i, l := range code {
		if err := run.Type(l + "\n"); err != nil {
			return err
		}
		want := done
		if i < len(code)-1 {
			want = regexp.MustCompile(fmt.Sprintf(`^sealift: \[.*\] recovery: line %d is right; missing: `, i+1))
		}
		if _, _, err := run.WaitFor(ctx, want); err != nil {
			return err
		}
	}
	return nil
}

// recoverBox opens the disk of the box, which was refused, with a code.
func (d *Demo) recoverBox(ctx context.Context, run *vm.Run) (string, error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	request, err := d.request(ctx, run)
	if err != nil {
		return "", err
	}
	var opened string
	if d.spent, opened, err = d.code(ctx, request); err != nil {
		return "", err
	}
	// The code was given. The same command opens another recovery.
	if another, err := d.noCode(ctx, request, 0); err != nil || another == opened {
		return "", fmt.Errorf("after the code of recovery %s was given, recovery-key shows %q, want another (%w)", opened, another, err)
	}
	if err := typeCode(ctx, run, d.spent, sawCodeRight); err != nil {
		return "", err
	}
	if _, _, err := run.WaitFor(ctx, sawRecovered); err != nil {
		return "", err
	}
	state, _, err := run.WaitFor(ctx, sawState)
	if err == nil && !strings.Contains(state, "opened") {
		err = fmt.Errorf("the agent says %q, want that the state was opened", state)
	}
	if err != nil {
		return "", err
	}
	if _, _, err := run.WaitFor(ctx, sawCapped); err != nil {
		return "", err
	}
	node, err := d.nodeReady(ctx, run, d.machine.NodeName, d.bootID)
	if err != nil {
		return "", err
	}
	d.bootID = node.Status.NodeInfo.BootID
	d.starts++
	if err := d.podRunning(ctx, run, fmt.Sprintf("start %d\n", d.starts)); err != nil {
		return "", err
	}
	fresh, err := d.entries(ctx, before[len(before)-1].Seq)
	if err != nil {
		return "", err
	}
	return "opened with a code that two people approved, Ready with its state", d.recoveryLogged(fresh)
}

// recoveryLogged checks that the audit log has each step of a recovery, and
// neither its code nor a release.
func (d *Demo) recoveryLogged(entries []entry) error {
	var steps []string
	alarms := map[audit.AlarmName]int{}
	for _, e := range entries {
		for _, l := range d.spent {
			if strings.Contains(string(e.Data), l) {
				return fmt.Errorf("audit entry %d holds a line of the code", e.Seq)
			}
		}
		switch e.Kind {
		case string(audit.KindRecovery):
			var r audit.Recovery
			if err := json.Unmarshal(e.Data, &r); err != nil {
				return fmt.Errorf("audit entry %d: %w", e.Seq, err)
			}
			steps = append(steps, string(r.Event)+" by "+r.By)
		case string(audit.KindAlarm):
			var a audit.Alarm
			if err := json.Unmarshal(e.Data, &a); err != nil {
				return fmt.Errorf("audit entry %d: %w", e.Seq, err)
			}
			alarms[a.Name]++
		}
		if strings.HasPrefix(e.Kind, "release") || strings.HasPrefix(e.Kind, "token") {
			return fmt.Errorf("a recovered boot was given something: audit entry %d, %s", e.Seq, e.Kind)
		}
	}
	want := []string{"opened by demo", "approved by demo", "refused by demo", "approved by second", "code given by demo", "opened by demo"}
	if !slices.Equal(steps, want) {
		return fmt.Errorf("the audit log has the steps %q of the recovery, want %q", steps, want)
	}
	if alarms[audit.AlarmRecoveryGiven] != 1 || alarms[audit.AlarmRecoveryRefused] != 1 {
		return fmt.Errorf("the audit log has the alarms %v, want one that the code was given and one that a person approved twice", alarms)
	}
	return nil
}

// spentCode types the code of an earlier boot at the box, which was refused.
func (d *Demo) spentCode(ctx context.Context, run *vm.Run) (string, error) {
	if len(d.spent) == 0 {
		return "", errors.New("there is no code yet")
	}
	if _, err := d.request(ctx, run); err != nil {
		return "", err
	}
	if err := typeCode(ctx, run, d.spent, sawOtherBoot); err != nil {
		return "", err
	}
	for _, re := range []*regexp.Regexp{sawCodeRight, sawRecovered, sawState} {
		if l := run.Lines(re); len(l) > 0 {
			return "", fmt.Errorf("after the code of another boot the box says %q", l[0])
		}
	}
	return "the code of another boot opens nothing", nil
}
