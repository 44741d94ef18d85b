package profiles

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// checkText reports a file that is not text as YAML 1.2 (5.1) has it: UTF-8
// without control characters.
func (d *document) checkText(b []byte) bool {
	p := place{1, 1}
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		b = b[n:]
		switch {
		case r == utf8.RuneError && n == 1:
			d.add(p, "", "not UTF-8 text", "")
			return false
		case r == '\n':
			p = place{p.line + 1, 1}
			continue
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85, r == 0xfeff:
			d.add(p, "", fmt.Sprintf("control character U+%04X", r), "")
			return false
		}
		p.column++
	}
	return true
}

// maxExplained is the longest file that is given to explain, in bytes.
const maxExplained = 8 << 10

// syntax adds what is wrong with a file that is not YAML. The parser's error
// has a line, but no column. A second parser has both, but its cost grows with
// the square of the size of what it does not understand: it sees small files
// only, and never one that has not been refused already.
func (d *document) syntax(b []byte, err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if len(b) <= maxExplained {
		if p, msg := explain(b); msg != "" {
			d.add(p, "", "not YAML: "+msg, "")
			return
		}
	}
	p := place{line: 1, column: 1}
	if m := regexp.MustCompile(`^line ([0-9]{1,9}): `).FindStringSubmatch(text); m != nil {
		text = strings.TrimPrefix(text, m[0])
		lines := strings.Split(string(b), "\n")
		// The number fits, and can be one beyond the last line.
		n, _ := strconv.Atoi(m[1])
		p.line = min(max(n, 1), len(lines))
		line := lines[p.line-1]
		p.column += len(line) - len(strings.TrimLeft(line, " "))
	}
	text, _, _ = strings.Cut(text, "\n")
	d.add(p, "", "not YAML: "+text, "")
}

// explain returns where the second parser stops, and why, or nothing.
func explain(b []byte) (p place, msg string) {
	defer func() {
		if r := recover(); r != nil {
			p, msg = place{}, ""
		}
	}()
	_, err := parser.ParseBytes(b, 0)
	t, ok := err.(interface{ GetToken() *token.Token })
	m, ok2 := err.(interface{ GetMessage() string })
	if !ok || !ok2 || t.GetToken() == nil || t.GetToken().Position == nil {
		return place{}, ""
	}
	at := t.GetToken().Position
	msg, _, _ = strings.Cut(m.GetMessage(), "\n")
	return place{at.Line, at.Column}, msg
}
