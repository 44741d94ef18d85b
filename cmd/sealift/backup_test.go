package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/papertpm"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/pgtest"
)

// writeConfig writes a configuration with the keys in dir and that store.
func writeConfig(t *testing.T, dir, name, store string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	text := fmt.Sprintf(`keys: keys
store: %q
images: [img]
node: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"]}
tpm: {allowed: [software], roots: [{class: software, file: root.pem}]}
firmware: {catalogue: c.yaml}
kek: {file: keys/disk-kek.key}
`, store)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// backedUp is a key directory, the configuration of a service that has four
// machines, and what it is called to be restored as.
func backedUp(t *testing.T, store string) (dir, config string, fleet []*killBox) {
	t.Helper()
	dir = t.TempDir()
	mustCLI(t, "keys", "init", filepath.Join(dir, "keys"))
	ca, err := papertpm.NewCA(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.der"), ca.Root.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if store == "" {
		store = filepath.Join(dir, "s.db")
	}
	return dir, writeConfig(t, dir, "serve.yaml", store), enrolFleet(t, dir, store, ca, 4)
}

func readStore(t *testing.T, name string) (states string, head string) {
	t.Helper()
	s, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ms, err := s.Machines(t.Context(), server.Query{})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		states += fmt.Sprintf("%s %s %s\n", m.ID, m.State, m.DiskGUID)
	}
	for e, err := range s.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		head = string(e.Kind)
	}
	return states, head
}

// TestAStoreMovesBetweenDatabases backs up a SQLite store, restores it into
// PostgreSQL, and that one into SQLite again, as an operator would.
func TestAStoreMovesBetweenDatabases(t *testing.T) {
	pg := pgtest.Start(t)
	dir, config, _ := backedUp(t, "")
	want, _ := readStore(t, filepath.Join(dir, "s.db"))
	names := []string{pg.Database(t), filepath.Join(dir, "again.db")}
	for i, name := range names {
		file := filepath.Join(dir, fmt.Sprint("backup-", i))
		out := mustCLI(t, "backup", "--config", config, "--out", file)
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("got %v, %v; want mode 0600", st, err)
		}
		_, head, ok := strings.Cut(strings.TrimSpace(out), "\nhead ")
		if !ok {
			t.Fatalf("no head in %q", out)
		}
		config = writeConfig(t, dir, fmt.Sprint("serve-", i, ".yaml"), name)
		if out := mustCLI(t, "restore", file, "--config", config, "--head", head, "--reason", "move", "--check"); !strings.Contains(out, "would restore 4 machines") {
			t.Errorf("got %s", out)
		}
		if out := mustCLI(t, "restore", file, "--config", config, "--head", head, "--reason", "move"); !strings.Contains(out, "nothing was lost") {
			t.Errorf("got %s", out)
		}
		if got, kind := readStore(t, name); got != want || kind != "store.restore" {
			t.Errorf("restored\n%swant\n%sthe log ends with %s", got, want, kind)
		}
		code, _, talk := cli(t, "", "restore", file, "--config", config, "--head", head, "--reason", "again")
		if code != exitFailed || !strings.Contains(talk, "not empty") {
			t.Errorf("into a store in use: exit %d, %s", code, talk)
		}
	}
}

func TestRestoreTellsWhatIsMissing(t *testing.T) {
	dir, config, fleet := backedUp(t, "")
	file := filepath.Join(dir, "backup")
	mustCLI(t, "backup", "--config", config, "--out", file)
	into := writeConfig(t, dir, "new.yaml", "new.db")
	other, _, _ := backedUp(t, "")
	foreign := writeConfig(t, other, "new.yaml", "new.db")

	altered := filepath.Join(dir, "altered")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(altered, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no reason":        {[]string{file, "--config", into}, exitUsage, "needs --reason"},
		"a blank reason":   {[]string{file, "--config", into, "--reason", " "}, exitUsage, "reason is empty"},
		"no head":          {[]string{file, "--config", into, "--reason", "r", "--head", "zz"}, exitUsage, "--head"},
		"another head":     {[]string{file, "--config", into, "--reason", "r", "--head", strings.Repeat("ab", 32)}, exitRefused, "not with the last entry"},
		"an altered file":  {[]string{altered, "--config", into, "--reason", "r"}, exitRefused, "backup refused"},
		"another fleet":    {[]string{file, "--config", foreign, "--reason", "r"}, exitRefused, "of another fleet"},
		"no file":          {[]string{filepath.Join(dir, "none"), "--config", into, "--reason", "r"}, exitFailed, "no such file"},
		"no audit log":     {[]string{file, "--config", into, "--reason", "r", "--audit", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"what is no log":   {[]string{file, "--config", into, "--reason", "r", "--audit", config}, exitRefused, "backup refused: audit log: line 1"},
		"a directory":      {[]string{dir, "--config", into, "--reason", "r"}, exitFailed, "regular"},
		"nothing to do it": {[]string{"--config", into, "--reason", "r"}, exitUsage, "FILE"},
	} {
		code, _, talk := cli(t, "", append([]string{"restore"}, tt.args...)...)
		if code != tt.code || !strings.Contains(talk, tt.want) {
			t.Errorf("%s: exit %d, want %d with %q: %s", name, code, tt.code, tt.want, talk)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "new.db")); err == nil {
		t.Error("a store was made by a restore that was refused")
	}
	code, _, talk := cli(t, "", "backup", "--config", into, "--out", filepath.Join(dir, "none.zst"))
	if code != exitFailed || !strings.Contains(talk, "no such file") {
		t.Errorf("a backup of a store that is not there: exit %d, %s", code, talk)
	}

	out := mustCLI(t, "--json", "restore", file, "--config", into, "--reason", "the disk died")
	var report struct {
		Complete bool
		LostKeys []attest.MachineID
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Complete {
		t.Errorf("got %s, %v", out, err)
	}
	s, err := openStore(t.Context(), filepath.Join(dir, "new.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, box := range fleet {
		if m, err := s.Machine(t.Context(), box.id); err != nil || !m.Restored {
			t.Errorf("got %+v, %v; want it to forfeit its boot", m, err)
		}
	}
	d, err := s.Document(t.Context(), "restore", "last")
	var state struct{ Status api.RestoreStatus }
	if err == nil {
		err = json.Unmarshal(d.Body, &state)
	}
	if err != nil || !state.Status.Held || state.Status.Reason != "the disk died" {
		t.Errorf("got %+v, %v", state, err)
	}
}

func TestRestoreNamesTheMachinesOfWhichSomethingIsLost(t *testing.T) {
	dir, config, fleet := backedUp(t, "")
	file, log := filepath.Join(dir, "backup"), filepath.Join(dir, "audit.jsonl")
	s, err := openStore(t.Context(), filepath.Join(dir, "s.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var events []audit.Event
	names := map[attest.MachineID]string{}
	for i, rotation := range []string{"", "r1"} {
		m, err := s.Machine(t.Context(), fleet[i].id)
		if err != nil {
			t.Fatal(err)
		}
		names[m.ID] = m.NodeName
		events = append(events, audit.Event{Time: time.Now(), Kind: audit.KindRelease, Machine: m.ID, Data: audit.Release{
			ID: fmt.Sprint("r", i), NodeName: m.NodeName, DiskGUID: m.DiskGUID, NewDiskKey: rotation == "", Rotation: rotation, Generation: 1,
		}})
	}
	// The second machine has had its key for long.
	m, err := s.Machine(t.Context(), fleet[1].id)
	if err != nil {
		t.Fatal(err)
	}
	m.DiskKey = &server.SealedKey{KEK: "k", Box: []byte("sealed")}
	if err := s.Commit(t.Context(), &server.Change{Machine: m}); err != nil {
		t.Fatal(err)
	}
	mustCLI(t, "backup", "--config", config, "--out", file)
	if err := s.Commit(t.Context(), &server.Change{Events: events}); err != nil {
		t.Fatal(err)
	}
	var lines []byte
	for e, err := range s.Audit(t.Context(), 1) {
		if err == nil {
			lines, err = audit.AppendLine(lines, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(log, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	into := writeConfig(t, dir, "new.yaml", "new.db")
	if code, _, talk := cli(t, "", "restore", file, "--config", into, "--audit", log, "--reason", "r"); code != exitRefused || !strings.Contains(talk, "has no signed head") || !strings.Contains(talk, "--audit-unsigned") {
		t.Errorf("a log that is not signed: exit %d, %s", code, talk)
	}
	out := mustCLI(t, "restore", file, "--config", into, "--audit", log, "--audit-unsigned", "--reason", "r")
	for _, want := range []string{
		"missing: machine " + fleet[0].id.String() + ", node " + names[fleet[0].id] + ": its disk key",
		"  mend: sealift machine reinstate " + fleet[0].id.String(),
		"missing: machine " + fleet[1].id.String() + ", node " + names[fleet[1].id] + ": its next disk key",
		"sealift machine rotate-key " + fleet[1].id.String(),
		"missing: machine " + fleet[1].id.String() + ", node " + names[fleet[1].id] + ": what it was at its last release",
		"  mend: restart the machine",
		"held: ", "unsettled: ", "1 of \"release\" could not be repeated",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, fleet[2].id.String()) {
		t.Errorf("a machine of which nothing is lost is named:\n%s", out)
	}
	restored, err := openStore(t.Context(), filepath.Join(dir, "new.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	d, err := restored.Document(t.Context(), "restore", "last")
	var state struct{ Status api.RestoreStatus }
	if err == nil {
		err = json.Unmarshal(d.Body, &state)
	}
	if err != nil || len(state.Status.Missing) != 2 {
		t.Fatalf("got %+v, %v", state, err)
	}
	shown := func(st api.RestoreStatus) string {
		var b bytes.Buffer
		if err := printRestore(&env{out: &b}, &st); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	st := state.Status
	st.MissingMore = 7
	for _, want := range []string{"held: restored ", "not accepted yet", "must start once more", "missing: machine " + fleet[0].id.String(), "and 7 more"} {
		if got := shown(st); !strings.Contains(got, want) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
	st.Held, st.Unsettled, st.Accepted, st.Settled, st.SettledBy = false, false, time.Unix(1, 0), time.Unix(2, 0), "alice"
	if got := shown(st); strings.Contains(got, "held") || !strings.Contains(got, ", accepted ") || !strings.Contains(got, "settled 1970") {
		t.Errorf("got %s", got)
	}
}

func TestADSNIsShownWithoutItsPassword(t *testing.T) {
	dir := t.TempDir()
	mustCLI(t, "keys", "init", filepath.Join(dir, "keys"))
	config := writeConfig(t, dir, "serve.yaml", "postgres://sealift:s3cret@db.example/sealift")
	code, out, talk := cli(t, "", "backup", "--config", config, "--out", filepath.Join(dir, "b"))
	if code != exitFailed || !strings.Contains(talk, "postgres://sealift@db.example/sealift") || !strings.Contains(talk, "sslmode=verify-full") {
		t.Errorf("exit %d: %s", code, talk)
	}
	if strings.Contains(out+talk, "s3cret") {
		t.Errorf("the password is shown: %s%s", out, talk)
	}
}
