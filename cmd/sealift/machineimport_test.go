package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/profiles"
)

func TestRecordsOfAMediumEnrolMachines(t *testing.T) {
	s := startService(t)
	defer s.stop()
	file := filepath.Join(s.dir, "records.jsonl")
	var text strings.Builder
	var ids []string
	for i := range 2 {
		rec, id := newInstall(t, s.tpmCA)
		rec.DiskGUID = fmt.Sprintf("00112233-4455-6677-8899-aabbccddee%02x", i)
		line, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(line)
		text.WriteByte('\n')
		ids = append(ids, id.String())
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A medium has empty lines behind its records.
	write(text.String() + strings.Repeat("\n", profiles.MediumRecordsSize-text.Len()))
	for range 2 { // again is no harm
		out := mustCLI(t, "machine", "import", file, "--server", s.operators, "--identity", s.identity, "--json")
		for _, id := range ids {
			if !strings.Contains(out, id) {
				t.Errorf("machine %s was not enrolled: %s", id, out)
			}
		}
		if n := strings.Count(out, `"state":"enrolled"`); n != 2 {
			t.Errorf("%d machines are enrolled, want 2: %s", n, out)
		}
	}
	if out := mustCLI(t, "machine", "list", "--server", s.operators, "--identity", s.identity, "--json"); strings.Count(out, "\n") != 2 {
		t.Errorf("the service knows %s", out)
	}

	for name, c := range map[string]struct {
		text string
		exit int
		want string
	}{
		"no record":                 {"\n\n\n", exitUsage, "holds no install record"},
		"what is no JSON":           {"\nx\n", exitUsage, "records.jsonl:2: not an install record"},
		"another object":            {"{}\n", exitUsage, "records.jsonl:1: not an install record: it has no endorsement key"},
		"a record that is cut off":  {text.String()[:100], exitUsage, "records.jsonl:1: not an install record"},
		"a key that is none":        {`{"ekPublic":"AAAA","diskGUID":"00112233-4455-6677-8899-aabbccddeeff"}`, exitUsage, "records.jsonl:1: disk 00112233-4455-6677-8899-aabbccddeeff: "},
		"a file that is far larger": {strings.Repeat("\n", 2<<20), exitFailed, "records.jsonl"},
	} {
		write(c.text)
		code, _, talk := cli(t, "", "machine", "import", file, "--server", s.operators, "--identity", s.identity)
		if code != c.exit || !strings.Contains(talk, c.want) {
			t.Errorf("%s: exit %d, %s", name, code, talk)
		}
	}
}
