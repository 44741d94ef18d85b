package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sealift/sealift/attest"
)

// decoded is what the line of an entry says by JSON's rules alone, if AppendLine writes
// the same.
func decoded(line []byte) (e Entry, ok bool) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if d.Decode(&e) != nil {
		return Entry{}, false
	}
	again, err := AppendLine(nil, e)
	return e, err == nil && bytes.Equal(again, append(bytes.Clone(line), '\n'))
}

func parseLines(t testing.TB) (lines []string) {
	t.Helper()
	var head Head
	for _, data := range []any{
		map[string]any{}, map[string]any{"a": 1},
		// What looks like the rest of an entry.
		map[string]any{"a": `,"data":`, "b": `,"prev":"`}, map[string]any{"data": map[string]any{"prev": "", "data": 1}, "prev": "x", "z": 1},
		map[string]any{"html": "<&>\u2028", "utf8": "\xff\x00ä"}, Verdict{ChallengeID: "c"},
	} {
		for _, machine := range []attest.MachineID{{}, {1}} {
			for _, kind := range []Kind{KindConfirm, `x,"data":`, "ä<\n"} {
				e, err := Next(head, Event{Time: time.Unix(1, 5), Kind: kind, Machine: machine, Data: data})
				if err != nil {
					t.Fatal(err)
				}
				line, err := AppendLine(nil, e)
				if err != nil {
					t.Fatal(err)
				}
				head, lines = e.Head(), append(lines, strings.TrimSuffix(string(line), "\n"))
			}
		}
	}
	return lines
}

// What a line says is what JSON says it does, however it is read, and of a line that is
// spelled otherwise nothing is taken.
func TestALineIsReadAsItsJSON(t *testing.T) {
	t.Parallel()
	lines := parseLines(t)
	for _, line := range lines {
		want, ok := decoded([]byte(line))
		got, err := ParseLine([]byte(line))
		if !ok || err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", line, got, err, want)
		}
	}
	line := lines[len(lines)-1]
	_, data, _ := strings.Cut(line, `,"data":`)
	data, _, _ = strings.Cut(data, `,"prev":`)
	for name, other := range map[string]string{
		"data twice":                strings.Replace(line, `,"data":`+data, `,"data":`+data+`,"data":`+data, 1),
		"prev twice":                strings.Replace(line, `,"prev":`, `,"prev":"",`+`"prev":`, 1),
		"prev and hash twice":       strings.Replace(line, `,"prev":`, `,"prev":"","hash":"","prev":`, 1),
		"data after the rest":       strings.Replace(line, `,"data":`+data, "", 1),
		"space in the data":         strings.Replace(line, data, data[:1]+" "+data[1:], 1),
		"space before the data":     strings.Replace(line, `"data":`, `"data": `, 1),
		"space after the data":      strings.Replace(line, data, data+" ", 1),
		"not escaped in the data":   strings.Replace(line, `"c"`, `"<"`, 1),
		"an escape too many":        strings.Replace(line, "ä", `\u00e4`, 1),
		"data that is cut":          strings.Replace(line, data, data[:len(data)-1], 1),
		"data that goes on":         strings.Replace(line, data, data+"}", 1),
		"data that is two":          strings.Replace(line, data, data+data, 1),
		"no data":                   strings.Replace(line, data, "", 1),
		"a field in the data's end": strings.Replace(line, data, data+`,"seq":1`, 1),
		"something before":          " " + line,
		"something after":           line + " ",
		"two lines":                 line + "\n" + line,
		"another name":              strings.Replace(line, `"data"`, `"Data"`, 1),
	} {
		if got, err := ParseLine([]byte(other)); other == line || err == nil {
			t.Errorf("%s: %s: %+v", name, other, got)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	for _, line := range parseLines(f) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		want, ok := decoded(line)
		got, err := ParseLine(line)
		if ok != (err == nil) || ok && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v, %t", line, got, err, want, ok)
		}
	})
}

func BenchmarkParseLine(b *testing.B) {
	e, err := Next(Head{}, Event{Time: time.Unix(1, 0), Kind: KindVerdict, Machine: attest.MachineID{1}, Data: Verdict{ChallengeID: strings.Repeat("c", 1800)}})
	if err != nil {
		b.Fatal(err)
	}
	line, err := AppendLine(nil, e)
	if err != nil {
		b.Fatal(err)
	}
	line = line[:len(line)-1]
	b.SetBytes(int64(len(line)))
	for name, parse := range map[string]func([]byte) (Entry, bool){"written": parseWritten, "other": decoded} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, ok := parse(line); !ok {
					b.Fatal("not an entry")
				}
			}
		})
	}
	b.Run("digest", func(b *testing.B) {
		for b.Loop() {
			e.digest()
		}
	})
}
