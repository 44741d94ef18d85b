package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxSize bounds a lock file or a distro description, and MaxProfileSize a
// profile, in bytes. A larger one is refused unread.
const (
	MaxSize        = 1 << 20
	MaxProfileSize = 256 << 10
)

// maxProblems is how many problems of one file are told.
const maxProblems = 100

// Problem is one fault of a YAML file, at a place that an editor can jump to.
type Problem struct {
	Line, Column int    // counted from 1, in characters; 0 if there is no file
	Field        string // path, e.g. preload.images[0].name; empty for the whole file
	Message      string
	Hint         string // Optional; what would mend it
}

// FileError is every Problem of one file, in the order of the file.
type FileError struct {
	File     string
	Problems []Problem
}

// Error lists the problems, one a line, each as file:line:column: field: message.
func (e *FileError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
		if p.Field != "" {
			b.WriteString(p.Field + ": ")
		}
		b.WriteString(p.Message)
		if p.Hint != "" {
			b.WriteString("; " + p.Hint)
		}
	}
	return b.String()
}

// place is where something stands in a file. Line and Column count from 1, the
// column in characters.
type place struct{ line, column int }

// document is a decoded file together with where each field stands in it.
type document struct {
	file     string
	pos      map[string]place
	problems []Problem
}

// decodeStrict reads one YAML document into the struct that v points to. It
// accepts the part of YAML that a declaration needs: mappings, sequences and
// scalars. Unknown and repeated fields, values of another type, anchors,
// aliases, tags and further documents are problems, each with its place. All
// problems are collected, so that one run shows them all. The decoder is ours
// because the libraries' own strict modes stop at the first fault, know no
// path and convert between types silently.
func decodeStrict(file string, b []byte, v any) *document {
	d := &document{file: file, pos: map[string]place{}}
	limit := MaxSize
	if _, ok := v.(*Profile); ok {
		limit = MaxProfileSize
	}
	if len(b) > limit {
		d.add(place{}, "", fmt.Sprintf("file of %d bytes, at most %d allowed", len(b), limit), "")
		return d
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff")) // a byte order mark
	if !d.checkText(b) {
		return d
	}
	body, err := d.parse(b)
	switch {
	case err != nil:
		d.syntax(b, err)
	case len(d.problems) > 0:
	case body == nil:
		d.add(place{}, "", "the file is empty", "")
	default:
		d.value(body, reflect.ValueOf(v).Elem(), "")
	}
	return d
}

// parse returns the content of the only document that is not empty, or nil. A
// panic of the parser becomes an error: a hostile file must not end the program.
func (d *document) parse(b []byte) (body *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the YAML parser gave up: %v", r)
		}
	}()
	for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return body, nil
		} else if err != nil {
			return nil, err
		}
		if len(doc.Content) != 1 || (doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].Value == "") {
			continue
		}
		if body != nil {
			d.add(at(doc.Content[0]), "", "a second document", "one file holds one document")
			return nil, nil
		}
		body = doc.Content[0]
	}
}

func at(n *yaml.Node) place { return place{n.Line, n.Column} }

func (d *document) add(p place, field, msg, hint string) {
	// What is wrong with the whole file is shown at its first character.
	d.problems = append(d.problems, Problem{Line: max(p.line, 1), Column: max(p.column, 1), Field: field, Message: msg, Hint: hint})
}

// at adds a problem of a decoded value. The place is that of the field, or of
// the nearest field above it if it is not in the file.
func (d *document) at(field, msg, hint string) {
	for f := field; ; {
		if p, ok := d.pos[f]; ok || f == "" {
			d.add(p, field, msg, hint)
			return
		}
		f = f[:max(strings.LastIndexAny(f, ".["), 0)]
	}
}

// err returns the problems in the order of the file, or nil.
func (d *document) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	if n := len(d.problems) - maxProblems; n > 0 {
		last := d.problems[maxProblems]
		d.problems = append(d.problems[:maxProblems], Problem{Line: last.Line, Column: last.Column, Message: fmt.Sprintf("and %d more", n)})
	}
	return &FileError{File: d.file, Problems: d.problems}
}

func (d *document) value(n *yaml.Node, v reflect.Value, path string) {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "" || n.Style&yaml.TaggedStyle != 0:
		d.add(at(n), path, "anchors, aliases and tags are not supported", "write the value out")
		return
	case n.Tag == "!!null":
		d.add(at(n), path, "no value", "leave the field out to get its default")
		return
	}
	if _, ok := d.pos[path]; !ok {
		d.pos[path] = at(n)
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Map:
		d.stringMap(n, v, path)
	case reflect.Pointer: // of a struct that may be left out
		e := reflect.New(v.Type().Elem())
		d.value(n, e.Elem(), path)
		v.Set(e)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.add(at(n), path, fmt.Sprintf("got %s, want a list", describe(n)), "")
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, e := range n.Content {
			d.value(e, s.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		v.Set(s)
	default:
		d.scalar(n, v, path)
	}
}

func (d *document) scalar(n *yaml.Node, v reflect.Value, path string) {
	want := func(what, hint string) { d.add(at(n), path, fmt.Sprintf("got %s, want %s", describe(n), what), hint) }
	switch v.Kind() {
	case reflect.String:
		switch {
		case n.Kind != yaml.ScalarNode:
			want("a string", "")
		case v.Type() == reflect.TypeFor[BankProof]() && n.Tag == "!!bool": // before it was a choice
			if strings.EqualFold(n.Value, "true") {
				v.SetString(string(BankProofRequire))
			}
		case v.Type() == reflect.TypeFor[BankProof]() && n.Value == "":
			want("ask, require, true or false", "")
		case n.Tag != "!!str":
			want("a string", fmt.Sprintf("write %q", n.Value))
		default:
			v.SetString(n.Value)
		}
	case reflect.Int, reflect.Int64:
		if n.Tag != "!!int" {
			want("a whole number", "")
			return
		}
		x, err := strconv.ParseInt(n.Value, 10, 64)
		// 010 is eight to some readers of YAML and ten to others.
		if err != nil || strconv.FormatInt(x, 10) != n.Value || (v.Kind() == reflect.Int && (x > math.MaxInt32 || x < math.MinInt32)) {
			d.add(at(n), path, fmt.Sprintf("%q is not a decimal number in range", n.Value), "")
			return
		}
		v.SetInt(x)
	case reflect.Bool:
		if n.Tag != "!!bool" {
			want("true or false", "")
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	default:
		panic(fmt.Sprintf("profiles: BUG: field %s has kind %s", path, v.Kind()))
	}
}

// field is one key of a mapping with its value.
type field struct {
	name     string
	key, val *yaml.Node
}

// fields returns the fields of a mapping, without those that are repeated or
// whose key is no plain string.
func (d *document) fields(n *yaml.Node, path string) []field {
	if n.Kind != yaml.MappingNode {
		d.add(at(n), path, fmt.Sprintf("got %s, want a mapping", describe(n)), "")
		return nil
	}
	var out []field
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch {
		case k.Kind != yaml.ScalarNode || k.Tag != "!!str" || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0:
			d.add(at(k), path, "a key is not a plain string", "")
		case seen[k.Value]:
			d.add(at(k), join(path, k.Value), "repeated field", "")
		default:
			out = append(out, field{k.Value, k, n.Content[i+1]})
		}
		seen[k.Value] = true
	}
	return out
}

func (d *document) mapping(n *yaml.Node, v reflect.Value, path string) {
	known := map[string]int{}
	var names []string
	for i := range v.NumField() {
		if name := yamlName(v.Type().Field(i)); name != "" {
			known[name] = i
			names = append(names, name)
		}
	}
	for _, f := range d.fields(n, path) {
		i, ok := known[f.name]
		if !ok {
			d.add(at(f.key), join(path, f.name), "unknown field", didYouMean(f.name, names))
			continue
		}
		d.value(f.val, v.Field(i), join(path, f.name))
	}
}

// yamlName returns the name of a struct's field in a file, or nothing if files
// do not have it.
func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func (d *document) stringMap(n *yaml.Node, v reflect.Value, path string) {
	m := reflect.MakeMap(v.Type())
	for _, f := range d.fields(n, path) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(f.val, e, join(path, f.name))
		m.SetMapIndex(reflect.ValueOf(f.name), e)
	}
	v.Set(m)
}

func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!bool":
		return "the boolean " + n.Value
	case n.Tag == "!!int" || n.Tag == "!!float":
		return fmt.Sprintf("the number %.40s", n.Value)
	case n.Tag == "!!timestamp":
		return "the date " + n.Value
	case n.Tag == "!!str":
		return fmt.Sprintf("the string %.40q", n.Value)
	}
	return "something else"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// didYouMean returns a hint with the nearest of the names, if one is near
// enough to be a slip: at most a third of its letters differ.
func didYouMean(got string, names []string) string {
	best, dist := "", len(got)
	for _, n := range names {
		if d := distance(strings.ToLower(got), strings.ToLower(n)); d < dist && d <= (len(n)+2)/3 {
			best, dist = n, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return "known are: " + strings.Join(names, ", ")
}

// distance is the Levenshtein distance of two strings, in bytes.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
