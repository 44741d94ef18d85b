package strict_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/sealift/sealift/attest/strict"
)

type inner struct {
	Bank string         `json:"bank"`
	PCRs map[int][]byte `json:"pcrs"`
}

type document struct {
	Version int      `json:"version"`
	Log     []byte   `json:"log"`
	Quotes  []inner  `json:"quotes"`
	Chain   [][]byte `json:"chain"`
	On      bool     `json:"on"`
}

func TestDecode(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		want       string // in the error; "" is none
	}{
		{"a document", `{"version":1,"log":"AAE=","quotes":[{"bank":"sha256","pcrs":{"0":"AA=="}}],"chain":["AA=="],"on":true}`, ""},
		{"space around it", " {\"version\":1}\n", ""},
		{"null", `{"log":null}`, ""},
		{"nothing", ``, "EOF"},
		{"cut short", `{"version":1`, "EOF"},
		{"a second document", `{} {}`, "after top-level value"},
		{"an unknown field", `{"verdict":true}`, "unknown"},
		{"an unknown field inside", `{"quotes":[{"x":1}]}`, "unknown"},
		{"a name twice", `{"version":1,"version":2}`, "duplicate"},
		{"a name twice, once escaped", `{"version":1,"\u0076ersion":2}`, "duplicate"},
		{"a map's key twice", `{"quotes":[{"pcrs":{"0":"AA==","0":"AQ=="}}]}`, "duplicate"},
		{"a map's key in two spellings", `{"quotes":[{"pcrs":{"0":"AA==","00":"AQ=="}}]}`, "0"},
		{"a name in another case", `{"Version":1}`, "unknown"},
		{"text that is no UTF-8", "{\"quotes\":[{\"bank\":\"\xff\"}]}", "UTF-8"},
		{"half a surrogate", `{"quotes":[{"bank":"\ud800"}]}`, "surrogate"},
		{"base64 with line ends", `{"log":"AA\n=="}`, "log"},
		{"base64 without padding", `{"log":"AA"}`, "log"},
		{"a number that is too large", `{"version":99999999999999999999}`, "version"},
		{"a byte order mark", "\xef\xbb\xbf{}", "invalid character"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// One byte at a time: no decision may depend on how the body arrives.
			for _, r := range []io.Reader{strings.NewReader(tt.body), iotest.OneByteReader(strings.NewReader(tt.body))} {
				err := strict.Decode(r, new(document))
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("got error %v, want one with %q", err, tt.want)
				}
			}
		})
	}
}

// A body is bounded in bytes by its reader. It must not be able to take many
// times its size in memory.
func TestADocumentOfManyValuesIsNotDecoded(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"objects": `{"quotes":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`,
		"texts":   `{"chain":[` + strings.Repeat(`"",`, 1<<20) + `""]}`,
		"members": `{"quotes":[{"pcrs":{` + strings.Repeat(`"0":"",`, 1<<20) + `}}]}`,
		"depth":   strings.Repeat(`{"quotes":[`, 1<<20),
	} {
		r := strings.NewReader(body)
		d := new(document)
		if err := strict.Decode(r, d); err == nil {
			t.Errorf("%s: decoded", name)
		}
		if n := len(d.Quotes) + len(d.Chain); n > 4096 {
			t.Errorf("%s: got %d values", name, n)
		}
	}
}

func TestAnErrorOfTheReaderIsPassedOn(t *testing.T) {
	t.Parallel()
	lost := errors.New("the line is dead")
	for _, sent := range []string{"", `{`, `{"log":"AAAA`, `{"version":1}`, `{"version":`} {
		err := strict.Decode(io.MultiReader(strings.NewReader(sent), iotest.ErrReader(lost)), new(document))
		if !errors.Is(err, lost) {
			t.Errorf("after %q: got %v", sent, err)
		}
	}
}

// FuzzDecode holds what is taken against the standard library: both read the
// same from it.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"log":"AAE=","quotes":[{"bank":"sha256","pcrs":{"0":"AA=="}}],"chain":["AA=="],"on":true}`))
	f.Add([]byte(`{"version":-1e0,"quotes":[{"bank":"\u0000\ud83d\ude00"},{}]}`))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, want document
		if strict.Decode(bytes.NewReader(b), &got) != nil {
			return
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatalf("took what encoding/json does not: %v", err)
		}
		// An empty text of bytes is nil to one and empty to the other.
		x, err1 := json.Marshal(got)
		y, err2 := json.Marshal(want)
		if err1 != nil || err2 != nil || !reflect.DeepEqual(x, y) {
			t.Errorf("read %s, encoding/json reads %s", x, y)
		}
	})
}
