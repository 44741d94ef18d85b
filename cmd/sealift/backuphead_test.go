package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/manifest"
)

// A log that was altered and chained anew is a chain. A restore would sign it.
func TestABackupIsOfTheLogWhoseEndWasSigned(t *testing.T) {
	dir, config, _ := backedUp(t, "")
	name := filepath.Join(dir, "s.db")
	ring, err := keyring.Open(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ring.Release()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	witness := filepath.Join(dir, "witness.json")
	if err := os.WriteFile(config, append(text, "witness: witness.json\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var heads []audit.Head
	for e, err := range store.Audit(t.Context(), 1) {
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, e.Head())
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if len(heads) < 2 {
		t.Fatalf("%d entries", len(heads))
	}
	first, last := heads[0], heads[len(heads)-1]
	other, ahead := audit.Head{Seq: first.Seq, Hash: manifest.SHA256{1}}, audit.Head{Seq: last.Seq + 1, Hash: manifest.SHA256{1}}
	at := time.Now().UTC().Truncate(time.Second)
	line := func(s audit.HeadStatement) []byte {
		t.Helper()
		e, err := audit.Sign(key, audit.SeenType, s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := audit.AppendSigned(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	of := func(h audit.Head) []byte { return line(audit.HeadStatement{Head: h, Time: at}) }
	mustCLI(t, "backup", "--config", config, "--out", filepath.Join(dir, "before")) // nothing was signed
	for claim, c := range map[string]struct {
		file, stored []byte
		refused      string
	}{
		"the first entry was":                     {file: of(first), stored: of(first)},
		"the last was":                            {file: of(last), stored: of(last)},
		"the file has another entry":              {file: of(other), stored: of(first), refused: "entry 1 is "},
		"the store has another entry":             {file: of(first), stored: of(other), refused: "the store has it signed"},
		"the file has a later one":                {file: of(ahead), refused: "it ends with entry"},
		"the store has a later one":               {stored: of(ahead), refused: "it ends with entry"},
		"the file is not signed":                  {file: []byte("{}\n"), refused: "witness.json"},
		"the store has what is not signed":        {stored: []byte(`{}`), refused: "the store"},
		"the file is from before a restore":       {file: line(audit.HeadStatement{Head: other, Time: at.Add(-time.Hour)}), stored: line(audit.HeadStatement{Head: first, Time: at, Restored: at})},
		"the file is from after the last restore": {file: line(audit.HeadStatement{Head: other, Time: at.Add(time.Hour)}), stored: line(audit.HeadStatement{Head: first, Time: at, Restored: at}), refused: "entry 1 is "},
	} {
		t.Run(claim, func(t *testing.T) {
			if c.file == nil {
				if err := os.Remove(witness); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(witness, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			if c.stored == nil {
				c.stored = of(first)
			}
			setSignedHead(t, name, c.stored)
			out := filepath.Join(t.TempDir(), "backup")
			args := []string{"backup", "--config", config, "--out", out}
			code, _, talk := cli(t, "", args...)
			_, err := os.Stat(out)
			if c.refused == "" {
				if code != exitOK || err != nil {
					t.Errorf("exit %d, %v: %s", code, err, talk)
				}
				return
			}
			if code != exitRefused || !strings.Contains(talk, "whose end the service signed") || !strings.Contains(talk, c.refused) || !strings.Contains(talk, "--any-log") || !os.IsNotExist(err) {
				t.Errorf("exit %d, %v: %s", code, err, talk)
			}
			code, _, talk = cli(t, "", append(args, "--any-log")...)
			if _, err := os.Stat(out); code != exitOK || err != nil || strings.Count(talk, "backed up all the same") != 1 || !strings.Contains(talk, c.refused) {
				t.Errorf("all the same: exit %d, %v: %s", code, err, talk)
			}
		})
	}
}

// setSignedHead puts a signed head into the store.
func setSignedHead(t *testing.T, name string, line []byte) {
	t.Helper()
	store, err := openStore(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	d, err := store.Document(t.Context(), server.KindSignedHead, server.NameSignedHead)
	if err != nil {
		d = &server.Document{Kind: server.KindSignedHead, Name: server.NameSignedHead}
	}
	d.Body = bytes.TrimSuffix(line, []byte("\n"))
	if err := store.Commit(t.Context(), &server.Change{Documents: []*server.Document{d}}); err != nil {
		t.Fatal(err)
	}
}
