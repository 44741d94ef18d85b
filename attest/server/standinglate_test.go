package server_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/image/manifest"
)

// lockedOut is a log that says that every machine is enrolled, and from some moment on
// that it is revoked.
type lockedOut struct{ revoked atomic.Bool }

func (l *lockedOut) Machine(context.Context, attest.MachineID, bool) (attest.EnrolmentState, time.Time, error) {
	if l.revoked.Load() {
		return attest.StateRevoked, time.Unix(1, 0), nil
	}
	return attest.StateEnrolled, time.Unix(1, 0), nil
}

func (l *lockedOut) Expected(context.Context, manifest.SHA256, string, bool) (bool, time.Time, error) {
	return false, time.Time{}, nil
}

func (l *lockedOut) Restored(context.Context) (time.Time, error) { return time.Time{}, nil }

// A machine that is revoked while its release is made, with a record that is put back as
// it was, gets none: what the log says is asked again last of all.
func TestAMachineThatIsRevokedWhileItIsReleasedGetsNothing(t *testing.T) {
	t.Parallel()
	log := new(lockedOut)
	s := newScene(t, func(c *server.Config) {
		c.Standing = log
		c.PolicyHolds = func(*attest.Policy) error { log.revoked.Store(true); return nil } // between the verdict and the commit
	})
	b := newBox(t, s.tpmCA)
	s.enrol(b)
	status, resp := s.attest(b)
	if status != 403 || codes(resp.Result) != string(attest.CodeMachineUnproven) {
		t.Errorf("HTTP %d, %s", status, codes(resp.Result))
	}
	if n := s.tokens.open(); n != 0 {
		t.Errorf("%d tokens are open", n)
	}
	if kinds := s.kinds(); strings.Contains(kinds+" ", string(audit.KindRelease)+" ") || strings.Count(kinds, string(audit.KindVerdict)) != 1 {
		t.Errorf("the log has %s", kinds)
	}
}
