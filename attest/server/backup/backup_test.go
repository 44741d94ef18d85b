package backup

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/audit"
	"github.com/sealift/sealift/attest/server"
	"github.com/sealift/sealift/attest/server/storetest"
	"github.com/sealift/sealift/attest/tpm/tpmtest"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sample is a backup of a store that holds something of each kind.
func sample(t testing.TB, key crypto.Signer) ([]byte, *Manifest) {
	t.Helper()
	store := new(storetest.Memory)
	m := &server.Machine{
		Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n", State: attest.StateEnrolled}, AKName: []byte{1},
		DiskKey: &server.SealedKey{KEK: "kek-1", Box: []byte("sealed")}, NextKey: &server.SealedKey{KEK: "kek-2", Box: []byte("sealed")},
	}
	err := store.Commit(t.Context(), &server.Change{
		Machine: m, Evidence: []byte("evidence"),
		Release:   &server.Release{ID: "r", Machine: m.ID, Transport: &server.SealedKey{KEK: "kek-1", Box: []byte("transport")}},
		Documents: []*server.Document{{Kind: "k", Name: "n", Body: json.RawMessage(`{ "as": "it is" }`)}},
		Events: []audit.Event{
			{Time: time.Unix(1, 0), Kind: audit.KindStart, Data: audit.Start{}},
			{Time: time.Unix(2, 0), Kind: audit.KindState, Machine: m.ID, Data: audit.StateChange{To: attest.StateEnrolled}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	gone, err := json.Marshal(&api.StoredEvidence{Version: api.Version, Received: time.Unix(1, 0), Machine: m.ID})
	if err == nil {
		err = store.Commit(t.Context(), &server.Change{Evidence: gone})
	}
	if err == nil {
		_, err = server.Prune(t.Context(), store, server.PruneOrder{Before: time.Unix(2, 0), By: "ops", Now: func() time.Time { return time.Unix(2, 0) }})
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	manifest, err := Write(&b, key, Manifest{Taken: time.Unix(3, 0).UTC(), Program: "test"}, func(each func(server.Record) error) error {
		return store.Dump(t.Context(), each)
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), manifest
}

func readAll(t testing.TB, file []byte, key *ecdsa.PrivateKey) (*Manifest, []server.Record, error) {
	t.Helper()
	r, err := NewReader(bytes.NewReader(file), audit.ReleaseKeys{Present: &key.PublicKey})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	var all []server.Record
	for rec, err := range r.Records() {
		if err != nil {
			return r.Manifest(), all, err
		}
		all = append(all, rec)
	}
	return r.Manifest(), all, nil
}

func plainText(t testing.TB, file []byte) []byte {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packed(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestABackupIsReadAsItWasWritten(t *testing.T) {
	key := newKey(t)
	file, m := sample(t, key)
	got, all, err := readAll(t, file, key)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Count{1, 1, 1, 1, 1, 3}); got.Count != want || m.Count != want {
		t.Errorf("counted %+v, want %+v", got.Count, want)
	}
	if got.Head.Seq != 3 || strings.Join(got.KEKs, " ") != "kek-1 kek-2" || got.Program != "test" || !got.Taken.Equal(time.Unix(3, 0)) {
		t.Errorf("got %+v", got)
	}
	for _, rec := range all {
		switch {
		case rec.Machine != nil && rec.Machine.Revision != 1:
			t.Errorf("revision %d, want 1", rec.Machine.Revision)
		case rec.Document != nil && string(rec.Document.Body) != `{ "as": "it is" }`:
			t.Errorf("document is %s", rec.Document.Body)
		case rec.Release != nil && rec.Release.Transport != nil:
			t.Error("the release's transport secret is in the backup")
		}
	}
}

// TestOtherToolsReadABackup holds the file against zstd's own program.
func TestOtherToolsReadABackup(t *testing.T) {
	program := tpmtest.Tool(t, "zstd")
	file, _ := sample(t, newKey(t))
	cmd := exec.Command(program, "-d", "-c")
	cmd.Stdin = bytes.NewReader(file)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range bytes.Split(bytes.TrimSpace(out), []byte("\n")) {
		if !json.Valid(line) {
			t.Errorf("line %d is no JSON: %s", i+1, line)
		}
	}
}

func TestABackupThatWasAlteredIsRefused(t *testing.T) {
	key := newKey(t)
	file, _ := sample(t, key)
	text := plainText(t, file)
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines = lines[:len(lines)-1] // after the last newline there is nothing
	last := len(lines) - 1
	join := func(l ...[]byte) []byte { return packed(t, bytes.Join(l, nil)) }
	without := func(i int) []byte { return join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...)...) }
	replaced := func(old, new string) []byte {
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("there is no %s", old)
		}
		return packed(t, bytes.ReplaceAll(text, []byte(old), []byte(new)))
	}
	other, _ := sample(t, newKey(t))
	otherLines := bytes.SplitAfter(plainText(t, other), []byte("\n"))
	tests := map[string]struct {
		file []byte
		want string
	}{
		"a state changed":                {replaced(`"state":"enrolled","nodeName"`, `"state":"pending","nodeName"`), "altered"},
		"a revision changed":             {replaced(`"revision":1}`, `"revision":2}`), "altered"},
		"an audit entry changed":         {replaced(`"to":"enrolled"`, `"to":"revoked!"`), "altered"},
		"a later version":                {replaced(`"sealift":"backup","version":1`, `"sealift":"backup","version":2`), "it is of version 2"},
		"a field of a later program":     {replaced(`{"release":{`, `{"release":{"more":1,`), "unknown field"},
		"another key's signature":        {join(append(lines[:last:last], otherLines[last])...), "of another fleet"},
		"no manifest":                    {without(last), "cut short"},
		"a manifest twice":               {join(append(lines[:last+1:last+1], lines[last])...), "something follows"},
		"a record after the manifest":    {join(append(lines[:last+1:last+1], lines[1])...), "something follows"},
		"a record twice":                 {join(append([][]byte{lines[0], lines[1]}, lines[1:]...)...), "altered"},
		"a record of nothing":            {join(append([][]byte{lines[0], []byte("{}\n")}, lines[1:]...)...), "not one record"},
		"two records in a line":          {replaced(`{"evidence":`, `{"document":{"kind":"k","name":"x","revision":1,"body":""},"evidence":`), "not one record"},
		"a header in the middle":         {join(append([][]byte{lines[0], lines[0]}, lines[1:]...)...), "not one record"},
		"no header":                      {without(0), "is no backup"},
		"nothing":                        {nil, "is no backup"},
		"an empty stream":                {packed(t, nil), "is no backup"},
		"a file cut short":               {file[:len(file)-9], ""},
		"a byte changed":                 {append(append([]byte{}, file[:len(file)/2]...), append([]byte{file[len(file)/2] ^ 1}, file[len(file)/2+1:]...)...), ""},
		"the signature changed":          {replaced(`"sig":"ME`, `"sig":"MF`), "does not verify"},
		"another stream after the first": {append(append([]byte{}, file...), packed(t, lines[1])...), "something follows"},
	}
	for i := 1; i < last; i++ {
		tests["without line "+string(rune('0'+i))] = struct {
			file []byte
			want string
		}{without(i), ""}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, _, err := readAll(t, tt.file, key)
			if !errors.As(err, new(*RefusedError)) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a refusal with %q", err, tt.want)
			}
			if m != nil {
				t.Error("there is a manifest all the same")
			}
		})
	}
}

func TestADumpThatFailsMakesNoBackup(t *testing.T) {
	broken := errors.New("broken")
	var b bytes.Buffer
	if _, err := Write(&b, newKey(t), Manifest{}, func(each func(server.Record) error) error {
		return errors.Join(each(server.Record{Evidence: []byte("e")}), broken)
	}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	entry, err := audit.Next(audit.Head{Seq: 7}, audit.Event{Kind: audit.KindStart, Data: audit.Start{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(&b, newKey(t), Manifest{}, func(each func(server.Record) error) error {
		return each(server.Record{Entry: &entry})
	}); !errors.As(err, new(*audit.BrokenError)) {
		t.Errorf("a log with a gap: got %v", err)
	}
}

func FuzzReader(f *testing.F) {
	key := newKey(f)
	file, _ := sample(f, key)
	f.Add(plainText(f, file))
	f.Add([]byte(`{"sealift":"backup","version":1}` + "\n{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		// Nothing but the file itself is accepted, and nothing panics.
		m, _, err := readAll(t, packed(t, text), key)
		if (err == nil) != (m != nil) {
			t.Errorf("manifest %v, error %v", m, err)
		}
		if err == nil && !bytes.Equal(text, plainText(t, file)) {
			t.Errorf("accepted %q", text)
		}
	})
}

// A backup that nobody can restore is found when it is made: whoever can write to
// the database, or a disk that fails, could see to it otherwise.
func TestWhatCannotBeRestoredIsNotBackedUp(t *testing.T) {
	m := func(revision int64) server.Record {
		return server.Record{Machine: &server.Machine{Machine: api.Machine{ID: attest.MachineID{1}, NodeName: "n"}, Revision: revision}}
	}
	d := func(revision int64) server.Record {
		return server.Record{Document: &server.Document{Kind: "k", Name: "n", Revision: revision, Body: []byte("{}")}}
	}
	for name, records := range map[string][]server.Record{
		"evidence of nothing":               {{Evidence: []byte{}}},
		"a record of nothing":               {{}},
		"a machine without revision":        {m(0)},
		"a negative revision":               {m(-1)},
		"a document without revision":       {d(0)},
		"an entry of a policy that is none": {policyEntry(t, `{"name":7}`)},
		"a statement that counts back":      {policyEntry(t, `{"name":"fleet","version":1,"statement":"`+strings.Repeat("ab", 32)+`","counter":-1}`)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Write(io.Discard, newKey(t), Manifest{}, func(each func(server.Record) error) error {
				for _, rec := range records {
					if err := each(rec); err != nil {
						return err
					}
				}
				return nil
			})
			if err == nil {
				t.Error("no error")
			}
		})
	}
}

func policyEntry(t *testing.T, data string) server.Record {
	t.Helper()
	e, err := audit.Next(audit.Head{}, audit.Event{Time: time.Unix(1, 0), Kind: audit.KindPolicy, Data: json.RawMessage(data)})
	if err != nil {
		t.Fatal(err)
	}
	return server.Record{Entry: &e}
}
