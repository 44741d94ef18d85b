package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/attest/server"
)

// A machine is found by what people have of it: a node's name in kubectl, the first
// digits in a log. What may mean two machines means none.
func TestAMachineIsFoundByWhatPeopleHaveOfIt(t *testing.T) {
	t.Parallel()
	s := newPolicyScene(t)
	file := filepath.Join(t.TempDir(), "s.db")
	store := open(t, file)
	r := s.start(store, store, s.images[:], nil, nil)
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var ids []attest.MachineID
	for i, digits := range []string{strings.Repeat("0", 64), "0123456789", "aabbccdd1122334455", "aabbccdd1122ff", "aabbccddee", strings.Repeat("f", 64)} {
		id, err := attest.ParseMachineID(digits + strings.Repeat("0", 64-len(digits)))
		if err != nil {
			t.Fatal(err)
		}
		name := api.NodeName(id, 10)
		if digits == "aabbccdd1122ff" {
			name = api.NodeName(id, 11)
		}
		(&database{t, db}).put(&server.Machine{Machine: api.Machine{ID: id, State: attest.StatePending, NodeName: name, DiskGUID: "6a0d1e0c-3b1f-4a56-9d0e-" + fmt.Sprintf("%012d", i)}})
		ids = append(ids, id)
	}
	o := operatorOptions{server: r.operators, identity: r.ana}
	for s, want := range map[string]string{
		"00000000": ids[0].String(), "box-0000000000": ids[0].String(),
		"01234567": ids[1].String(), "0123456789": ids[1].String(), "box-0123456789": ids[1].String(), ids[1].String(): ids[1].String(), ids[1].String()[:63]: ids[1].String(),
		"aabbccdd": "may mean machine ", "aabbccdd1122": "may mean machine ", "aabbccdd11223": ids[2].String(),
		"box-aabbccdd11": ids[2].String(), "box-aabbccdd112": ids[3].String(), "box-aabbccdd1122": "there is no machine",
		"ffffffff": ids[5].String(), "box-ffffffffff": ids[5].String(), "fffffffe": "there is no machine", "01234566": "there is no machine",
		"0123456": "want 64 hex digits", "box-0123456": "want 64 hex digits", "AABBCCDD1122334455": "want 64 hex digits", "box-": "want 64 hex digits", "": "want 64 hex digits",
		"node-0123456789": "want 64 hex digits", ids[1].String() + "0": "want 64 hex digits",
	} {
		var got string
		err := o.do(func(c *operator.Client) error {
			id, err := findMachine(t.Context(), c, s)
			got = id.String()
			return err
		})
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
	as := func(args ...string) []string { return append(args, "--server", r.operators, "--identity", r.ana) }
	var shown api.Machine
	if err := json.Unmarshal([]byte(mustCLI(t, as("machine", "show", "box-0123456789")...)), &shown); err != nil || shown.ID != ids[1] {
		t.Errorf("shown: %s, %v", shown.ID, err)
	}
	mustCLI(t, as("machine", "revoke", "aabbccdd11223", "--reason", "gone")...)
	// Who gives trust says to whom.
	for _, verb := range []string{"approve", "reinstate"} {
		if code, _, talk := cli(t, "", as("machine", verb, "box-aabbccdd11", "--reason", "x")...); code != exitUsage || !strings.Contains(talk, "by its whole id") || !strings.Contains(talk, "sealift machine show box-aabbccdd11") {
			t.Errorf("%s: exit %d, %s", verb, code, talk)
		}
	}
}
