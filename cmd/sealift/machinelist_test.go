package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/client/operator"
)

func someEK(n int) string { return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, n))) }

func TestListsAreReadStrictly(t *testing.T) {
	ek := someEK(1)
	colons := ""
	for i := 0; i < 64; i += 2 {
		colons += ":" + strings.ToUpper(ek[i:i+2])
	}
	for name, text := range map[string]string{
		"comma":             "serial,ek\nS1," + ek + "\n",
		"semicolon":         "serial;ek;note\r\nS1;" + ek + ";a, b\r\n",
		"other order":       "note,EK,Model, Serial \n,sha256:" + ek + ",X1,S1\n",
		"colons":            "serial,ek\nS1," + colons[1:] + "\n",
		"a TPM Name":        "serial,ek\nS1,000b" + ek + "\n",
		"a byte order mark": "\xef\xbb\xbfserial,ek\nS1,0x" + ek + "\n",
		"quotes":            "serial,ek,note\nS1," + ek + ",\"a \"\"b\"\", c\"\n\n\n",
	} {
		got, err := parseList("l.csv", []byte(text))
		if err != nil || len(got) != 1 || got[0].Serial != "S1" || got[0].EK.String() != ek || got[0].line != 2 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	many := strings.Builder{}
	many.WriteString("serial,ek\n")
	for i := range maxListLines + 1 {
		fmt.Fprintf(&many, "S%d,%064x\n", i, i+1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"nothing":               {"", "it has no header"},
		"no machine":            {"serial,ek\n", "holds no machine"},
		"a column too many":     {"serial,ek,owner\n", `l.csv:1: column "owner"`},
		"a column twice":        {"serial,ek,Serial\n", `l.csv:1: column "serial"`},
		"no column":             {"serial,model\n", "l.csv:1: column ek is missing"},
		"a field too few":       {"serial,ek\nS1\n", "l.csv:2: wrong number of fields"},
		"a broken quote":        {"serial,ek\n\"S1," + ek + "\n", "l.csv:"},
		"a short digest":        {"serial,ek\nS1,abcd\n", "l.csv:2: ek has 4 characters"},
		"a SHA-1":               {"serial,ek\nS1," + ek[:40] + "\n", "which is a SHA-1"},
		"a SHA-384":             {"serial,ek\nS1," + ek + ek[:32] + "\n", "which is a SHA-384"},
		"no hex":                {"serial,ek\nS1," + strings.Repeat("z", 64) + "\n", "l.csv:2: ek: "},
		"an all-zero digest":    {"serial,ek\nS1," + strings.Repeat("0", 64) + "\n", "l.csv:2: "},
		"a placeholder":         {"serial,ek\nDefault string," + ek + "\n", "l.csv:2: serial number \"Default string\" is a placeholder"},
		"no serial":             {"serial,ek\n," + ek + "\n", "l.csv:2: serial number has 0"},
		"a serial twice":        {"serial,ek\nS1," + ek + "\ns1," + someEK(2) + "\n", "l.csv:3: serial number \"s1\" is in line 2, too"},
		"a key twice":           {"serial,ek\nS1," + ek + "\nS2," + ek + "\n", "l.csv:3: the endorsement key is that of line 2, too"},
		"two lines":             {"serial,ek\nS1,x\nS2," + ek + "\nS3,y\n", "l.csv:4: ek has"},
		"a long note":           {"serial,ek,note\nS1," + ek + "," + strings.Repeat("n", 300) + "\n", "l.csv:2: note has 300 bytes"},
		"lines without an end":  {"serial,ek\n" + strings.Repeat("S1,x\n", 1000), "and 980 more lines"},
		"too many machines":     {many.String(), "more than 100000 machines"},
		"a control character":   {"serial,ek,model\nS1," + ek + ",\x1b[31m\n", "l.csv:2: model has a control character"},
		"what is no text":       {"\x00\x01\x02", "l.csv:1: column"},
		"a serial with control": {"serial,ek\nS\x011," + ek + "\n", "l.csv:2: serial number"},
		"an endless column":     {strings.Repeat("x", 1<<20), "l.csv:1: column"},
		"an endless serial":     {"serial,ek\n" + strings.Repeat("x", 1<<20) + "," + ek + "\n", "l.csv:2: serial number"},
		"an endless ek":         {"serial,ek\nS1," + strings.Repeat("x", 1<<20) + "\n", "l.csv:2: ek has"},
	} {
		_, err := parseList("l.csv", []byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		} else if len(err.Error()) > 2000 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("serial,ek\nS1," + someEK(1) + "\n"))
	f.Add([]byte("serial;ek;note\nS1;" + someEK(1) + ";\"x\n\"\n"))
	f.Add([]byte("\xef\xbb\xbfek,serial\n,,\n\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := parseList("l.csv", b)
		if (err == nil) != (len(lines) > 0) {
			t.Errorf("%d lines and %v", len(lines), err)
		}
		for _, l := range lines {
			if l.EK.IsZero() || attest.SerialKey(l.Serial) == "" || l.line < 2 {
				t.Errorf("%+v", l)
			}
		}
	})
}

func TestAListIsImported(t *testing.T) {
	s := startService(t)
	defer s.stop()
	flags := []string{"--server", s.operators, "--identity", s.identity}
	do := func(args ...string) (int, string, string) { return cli(t, "", append(args, flags...)...) }
	file := filepath.Join(s.dir, "delivery.csv")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rec, id := newInstall(t, s.tpmCA)
	rec.Serial = "CZ-0"
	var text strings.Builder
	fmt.Fprintf(&text, "serial,ek,model,note\nCZ-0,%s,X1,first\n", id)
	for i := 1; i < 250; i++ {
		fmt.Fprintf(&text, "CZ-%d,%s,X1,<&>\n", i, someEK(i))
	}
	write(text.String())
	if code, out, talk := do("machine", "import", file); code != exitOK || !strings.Contains(out, "250 machines would be added") || !strings.Contains(talk, "--apply") {
		t.Fatalf("exit %d: %s%s", code, out, talk)
	}
	if _, out, _ := do("machine", "expected", "--json"); out != "" {
		t.Errorf("a check has added %s", out)
	}
	if code, out, talk := do("machine", "import", file, "--apply"); code != exitOK || !strings.Contains(out, "250 machines are added") {
		t.Fatalf("exit %d: %s%s", code, out, talk)
	}
	if code, out, talk := do("machine", "import", file, "--apply"); code != exitOK || !strings.Contains(out, "0 machines are added, 0 are changed, 250 are expected already") {
		t.Errorf("again: exit %d: %s%s", code, out, talk)
	}
	if _, out, _ := do("machine", "expected", "--json"); strings.Count(out, "\n") != 250 || !strings.Contains(out, `"by":"ana"`) {
		t.Errorf("expected are %d", strings.Count(out, "\n"))
	}
	// A conflict is told by its line, and nothing of the file is taken.
	write("serial,ek\nNEW-1," + someEK(1001) + "\nCZ-5," + someEK(1002) + "\n")
	if code, _, talk := do("machine", "import", file, "--apply"); code != exitRefused || !strings.Contains(talk, "delivery.csv:3: serial number \"CZ-5\"") || !strings.Contains(talk, "--replace") {
		t.Errorf("exit %d: %s", code, talk)
	}
	if _, out, _ := do("machine", "expected"); strings.Contains(out, "NEW-1") {
		t.Error("a part of a list was taken")
	}
	if code, out, talk := do("machine", "import", file, "--apply", "--replace", "--json"); code != exitOK || out != `{"added":1,"applied":true,"changed":1,"present":0}`+"\n" {
		t.Errorf("exit %d: %s%s", code, out, talk)
	}
	if code, _, talk := do("machine", "import", filepath.Join(s.dir, "records.jsonl"), "--apply"); code != exitUsage {
		t.Errorf("exit %d: %s", code, talk)
	}
	// One is lost on the way, one shows up, one gets another board.
	if code, out, talk := do("machine", "withdraw", "CZ-7", someEK(7)); code != exitOK || !strings.Contains(out, "withdrawn") {
		t.Errorf("exit %d: %s%s", code, out, talk)
	}
	if code, _, talk := do("machine", "withdraw", "CZ-7", someEK(7)); code != exitRefused {
		t.Errorf("exit %d: %s", code, talk)
	}
	o := operatorOptions{server: s.operators, identity: s.identity}
	if err := o.do(func(c *operator.Client) error { _, err := c.Install(t.Context(), rec); return err }); err != nil {
		t.Fatal(err)
	}
	if code, out, talk := do("machine", "show", id.String(), "--json"); code != exitOK || !strings.Contains(out, `"listed":true`) {
		t.Errorf("exit %d: %s%s", code, out, talk)
	}
	_, board := newInstall(t, s.tpmCA)
	if code, out, talk := do("machine", "re-enrol", "--old", id.String(), "--new", board.String(), "--reason", "board exchanged"); code != exitOK || !strings.Contains(out, board.String()) || !strings.Contains(out, "enrolled") {
		t.Errorf("exit %d: %s%s", code, out, talk)
	}
	if code, out, talk := do("machine", "quarantine", board.String(), "--reason", "odd noises"); code != exitOK || !strings.Contains(out, "quarantined") || !strings.Contains(out, "odd noises") {
		t.Errorf("exit %d: %s%s", code, out, talk)
	}
	if _, out, _ := do("machine", "list", "--stale"); strings.Contains(out, board.String()) {
		t.Errorf("a machine that never reported is stale: %s", out)
	}
}
