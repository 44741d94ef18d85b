package profiles

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// nested returns n mappings in block style, one in the other.
func nested(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestHostileYAMLIsRefusedAtLittleCost(t *testing.T) {
	many := func(line string) string { return strings.Repeat(line, (MaxProfileSize-10)/len(line)) }
	type test struct{ claim, text, want string }
	tests := []test{
		{"an alias bomb", "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n", "p.yaml:1:1: a: unknown field"},
		{"an alias bomb in a known field", "packages: &a [x,x,x,x]\nname: *a\n", "p.yaml:1:11: packages: anchors, aliases and tags are not supported"},
		{"an alias", "packages: &a [x,x,x,x]\nname: *a\n", "p.yaml:2:7: name: anchors, aliases and tags are not supported"},
		{"a merge key", "<<: {d: e}\n", "p.yaml:1:1: a key is not a plain string"},
		{"a null character", "name: a\x00b\n", "p.yaml:1:8: control character U+0000"},
		{"an escape sequence", "name: ä\x1b[2J\n", "p.yaml:1:8: control character U+001B"},
		{"a C1 control character", "name: \u009b2J\n", "p.yaml:1:7: control character U+009B"},
		{"no UTF-8", "name: x\nkind: \xc3(\n", "p.yaml:2:7: not UTF-8 text"},
		{"nesting by indentation", nested(600), "a: unknown field"},
		{"nesting in a known field", "packages: " + strings.Repeat("[", 20) + strings.Repeat("]", 20), "p.yaml:1:12: packages[0]: got a list, want a string"},
		{"mapping of many", func() string {
			var b strings.Builder
			for i := range 20000 {
				fmt.Fprintf(&b, "k%d: x\n", i)
			}
			return b.String()
		}(), "p.yaml:101:1: and 19900 more"},
	}
	// Each of these costs some parser the square of its length.
	for _, part := range []string{
		"[", "{", "{a: [", "- ", "? ", "a: ", "!a ", "&a ", "]", "}", "[]", "{}\n", "- - -\n", "''", "''\n", "\"", "'", "1 \"\" ", ":\n", "- :\n",
		"-\n", "...\n", "---\n", "--- ,\n", "%\n", "@`", "a", "x\n\n ", "|\n x\n", ">\n x\n  y\n\n", "#\n", " \n", "\t", ",", "[,", `["]",`, "- a\n'b'\n", "*a ", "<<: ",
	} {
		tests = append(tests, test{fmt.Sprintf("many of %q", part), many(part), ""},
			test{fmt.Sprintf("a list of many %q", part), "packages: [" + many(part), ""},
			test{fmt.Sprintf("a small file of %q", part), strings.Repeat(part, maxExplained/len(part)), ""})
	}
	for _, tc := range tests {
		t.Run(tc.claim, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Parse("p.yaml", []byte(tc.text))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 200<<20 {
				t.Errorf("%d MB were used", n>>20)
			}
		})
	}
}

func TestNestingThatProfilesNeedIsAllowed(t *testing.T) {
	for _, text := range []string{
		valid + "preload:\n  images:\n  - name: docker.io/a/b:1\n    go: x\n",
		valid + strings.Repeat("# [[[[[[\n", 100),
		valid + "kernel: {cmdline: ['a=b'], initrd: [x, y, z]}\n",
		"\ufeff" + valid, // a byte order mark, as some editors write it
		strings.ReplaceAll(valid, "\n", "\r\n"),
	} {
		if _, err := Parse("p.yaml", []byte(text)); err != nil {
			t.Errorf("%v:\n%s", err, text)
		}
	}
}

// FuzzPlaces holds that whatever is wrong is said with its place, and that no
// file is too much for the parser.
func FuzzPlaces(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("a: [b, {c: d}]\n- e"))
	f.Add([]byte("name: |\n  x\n ? y"))
	f.Add([]byte(nested(40)))
	f.Add([]byte("disk: {esp: 63, esp: 64}\n'x': \"\\x41\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := Parse("p.yaml", b)
		var fe *FileError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("an error that is no FileError: %v", err)
		}
		if fe == nil {
			return
		}
		lines := strings.Count(string(b), "\n") + strings.Count(string(b), "\r") + 1
		for _, p := range fe.Problems {
			if p.Line < 1 || p.Column < 1 || p.Line > lines {
				t.Errorf("%+v has no place in a file of %d lines", p, lines)
			}
		}
	})
}
