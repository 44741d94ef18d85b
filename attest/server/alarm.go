package server

import (
	"context"
	"fmt"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
)

// alarm is the audit event of an alarm, to be committed with the decision that
// it is about.
func alarm(id attest.MachineID, now time.Time, a audit.Alarm) audit.Event {
	return audit.Event{Time: now, Kind: audit.KindAlarm, Machine: id, Data: a}
}

// sound logs the alarms among events that were committed.
func (s *Server) sound(events []audit.Event) {
	for _, e := range events {
		a, ok := e.Data.(audit.Alarm)
		if !ok {
			continue
		}
		args := []any{"name", string(a.Name), "what", a.What, "peer", a.Peer}
		if !e.Machine.IsZero() {
			args = append(args, "machine", e.Machine.Short())
		}
		s.c.Log.Error("alarm", args...)
	}
}

// contradicted raises the alarm for a release that was confirmed before, with
// another outcome. Its transport secret is forgotten, so who says this is not
// proven: such alarms are as many as refusals of the machine may be.
func (s *Server) contradicted(ctx context.Context, p peer, rel *Release, outcome string, now time.Time) *failure {
	if ok, _ := s.refusals.log(rel.Machine.String(), now); !ok {
		return nil
	}
	return s.commit(ctx, &Change{Events: []audit.Event{alarm(rel.Machine, now, audit.Alarm{
		Name: audit.AlarmConfirmContradicted, Peer: p.address,
		What: fmt.Sprintf("release %s was confirmed as %q, and is confirmed again, without proof, as %q", rel.ID, rel.Outcome, outcome),
	})}})
}

// TokenAlarm records an alarm about the join token of a node, for whoever
// minted it.
func (s *Server) TokenAlarm(ctx context.Context, nodeName string, a audit.Alarm) error {
	owners, err := s.c.Store.Machines(ctx, Query{NodeName: nodeName, Limit: 1})
	if err != nil {
		return fmt.Errorf("alarm %s: find node %s: %w", a.Name, nodeName, err)
	}
	var id attest.MachineID // none: an alarm is not lost because the machine is
	if len(owners) > 0 {
		id = owners[0].ID
	}
	return s.Record(ctx, alarm(id, s.c.Clock(), a))
}

// ExpectsNode reports whether the node of that name is a machine's that was
// given secrets. It does not ask whether the join token among them is still
// good: a node may register just after its time.
func (s *Server) ExpectsNode(ctx context.Context, nodeName string) (bool, error) {
	owners, err := s.c.Store.Machines(ctx, Query{NodeName: nodeName, Limit: 1})
	if err != nil {
		return false, fmt.Errorf("find node %s: %w", nodeName, err)
	}
	return len(owners) > 0 && (owners[0].Released || owners[0].Joined), nil
}
