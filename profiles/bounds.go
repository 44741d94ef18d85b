package profiles

import (
	"fmt"
	"unicode/utf8"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a YAML file, beside MaxSize and MaxProfileSize. They are checked
// before the parser sees the file: its time and memory grow with the square of
// the nesting and of the number of keys in one mapping, so that 64 KiB of
// opening brackets would cost it gigabytes. The lexer's cost is proportional to
// the size.
const (
	maxNesting = 32   // mappings and lists around a value; the types here need eight
	maxKeys    = 1000 // keys of one mapping
)

// checkText reports a file that is not text as YAML 1.2 (5.1) has it: UTF-8
// without control characters. The parser would let most of them through.
func (d *document) checkText(b []byte) bool {
	line, column := 1, 1
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		b = b[n:]
		at := &token.Position{Line: line, Column: column}
		switch {
		case r == utf8.RuneError && n == 1:
			d.add(at, "", "not UTF-8 text", "")
			return false
		case r == '\n':
			line, column = line+1, 1
			continue
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85, r == 0xfeff && column > 1:
			d.add(at, "", fmt.Sprintf("control character U+%04X", r), "")
			return false
		}
		column++
	}
	return true
}

// checkTokens reports what the parser must not see: anchors, aliases, tags and
// merge keys, which make a file mean more than it says, complex keys, and
// nesting or mappings beyond the bounds.
func (d *document) checkTokens(b []byte) bool {
	ok := true
	refuse := func(t *token.Token, msg, hint string) {
		d.add(t.Position, "", msg, hint)
		ok = false
	}
	// blocks are the block collections around the token, from outside in.
	// A collection is known by its column; a deeper one has a greater column.
	type block struct{ column, keys int }
	var blocks []block
	open := func(column int) *block {
		for len(blocks) > 0 && blocks[len(blocks)-1].column > column {
			blocks = blocks[:len(blocks)-1]
		}
		if len(blocks) == 0 || blocks[len(blocks)-1].column < column {
			blocks = append(blocks, block{column: column})
		}
		return &blocks[len(blocks)-1]
	}
	var flow []int // number of keys of each flow collection around the token
	var last *token.Token
	for _, t := range lexer.Tokenize(string(b)) {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.TagType, token.MergeKeyType:
			refuse(t, "anchors, aliases and tags are not supported", "write the value out")
		case token.MappingKeyType:
			refuse(t, "a key is not a plain string", "")
		case token.DirectiveType:
			refuse(t, "directives are not supported", "leave the line out")
		case token.SequenceStartType, token.MappingStartType:
			flow = append(flow, 0)
		case token.SequenceEndType, token.MappingEndType:
			if len(flow) > 0 {
				flow = flow[:len(flow)-1]
			}
		case token.DocumentHeaderType, token.DocumentEndType:
			blocks = nil
		case token.SequenceEntryType:
			if len(flow) == 0 {
				// An entry at the column of a mapping's keys is a value of the
				// mapping. It must not hide the keys counted so far.
				if n := len(blocks); n == 0 || blocks[n-1].column != t.Position.Column {
					open(t.Position.Column)
				}
			}
		case token.MappingValueType:
			key := t
			if last != nil {
				key = last
			}
			var keys *int
			if n := len(flow); n > 0 {
				keys = &flow[n-1]
			} else {
				keys = &open(key.Position.Column).keys
			}
			if *keys++; *keys > maxKeys {
				refuse(key, fmt.Sprintf("a mapping of more than %d keys", maxKeys), "")
			}
		}
		if n := len(blocks) + len(flow); n > maxNesting {
			refuse(t, fmt.Sprintf("nested more than %d deep", maxNesting), "")
		}
		if !ok {
			return false
		}
		last = t
	}
	return true
}
