package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
)

// An entry whose data this program cannot read, because a later one wrote it, must
// not keep the alarms behind it.
func TestAnEntryThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	r, store := newReceiver(t), new(storetest.Memory)
	replica(t, store, r.hook(server.EventEvidenceRefused, string(audit.KindAlarm)))
	known(t, store, 1)
	if err := store.Commit(t.Context(), &server.Change{Events: []audit.Event{
		{Time: time.Unix(1, 0), Kind: audit.KindVerdict, Machine: attest.MachineID{1}, Data: map[string]any{"address": 7, "result": map[string]any{"allowed": false}}},
		{Time: time.Unix(2, 0), Kind: audit.KindAlarm, Data: audit.Alarm{Name: "x", What: "somebody should look"}},
	}}); err != nil {
		t.Fatal(err)
	}
	if d := <-r.got; !strings.Contains(string(d.body), `"truncated":true`) || strings.Contains(string(d.body), "details") {
		t.Errorf("got %s", d.body)
	}
	if d := <-r.got; !strings.Contains(string(d.body), "somebody should look") {
		t.Errorf("got %s", d.body)
	}
}
