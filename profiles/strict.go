package profiles

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxSize bounds a lock file or a distro description, and MaxProfileSize a
// profile, in bytes. A larger one is refused unread.
const (
	MaxSize        = 1 << 20
	MaxProfileSize = 256 << 10
)

// maxDepth bounds nesting in a document; the deepest type here needs five.
const maxDepth = 16

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

// document is a decoded file together with where each field stands in it.
type document struct {
	file     string
	pos      map[string]*token.Position
	problems []Problem
}

// decodeStrict reads one YAML document into the struct that v points to. It
// accepts the part of YAML that a declaration needs: mappings, sequences and
// scalars. Unknown and repeated fields, values of another type, anchors,
// aliases, tags and further documents are problems, each with its place. All
// problems are collected, so that one run shows them all. The decoder is ours
// because the library's own strict mode stops at the first fault, knows no
// path and converts between types silently.
func decodeStrict(file string, b []byte, v any) *document {
	d := &document{file: file, pos: map[string]*token.Position{}}
	limit := MaxSize
	if _, ok := v.(*Profile); ok {
		limit = MaxProfileSize
	}
	if len(b) > limit {
		d.add(nil, "", fmt.Sprintf("file of %d bytes, at most %d allowed", len(b), limit), "")
		return d
	}
	if !d.checkText(b) || !d.checkTokens(b) {
		return d
	}
	f, err := parse(b)
	if err != nil {
		d.syntax(err)
		return d
	}
	var body ast.Node
	for _, doc := range f.Docs {
		switch {
		case doc.Body == nil:
		case body != nil:
			d.add(start(doc.Body), "", "a second document", "one file holds one document")
			return d
		default:
			body = doc.Body
		}
	}
	if body == nil {
		d.add(nil, "", "the file is empty", "")
		return d
	}
	d.value(body, reflect.ValueOf(v).Elem(), "", 0)
	return d
}

// parse turns a panic of the parser into an error: the library is young, and
// a hostile file must not end the program.
func parse(b []byte) (f *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the YAML parser gave up: %v", r)
		}
	}()
	// Repeated keys are found here, with their field and all others.
	return parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey())
}

// syntax adds a parser error, whose text is a whole page with a source excerpt.
func (d *document) syntax(err error) {
	var p *token.Position
	if t, ok := err.(interface{ GetToken() *token.Token }); ok && t.GetToken() != nil {
		p = t.GetToken().Position
	}
	msg := err.Error()
	if m, ok := err.(interface{ GetMessage() string }); ok && m.GetMessage() != "" {
		msg = m.GetMessage()
	}
	msg, _, _ = strings.Cut(msg, "\n")
	d.add(p, "", "not YAML: "+msg, "")
}

func (d *document) add(p *token.Position, field, msg, hint string) {
	// What is wrong with the whole file is shown at its first character.
	pr := Problem{Line: 1, Column: 1, Field: field, Message: msg, Hint: hint}
	if p != nil {
		pr.Line, pr.Column = p.Line, p.Column
	}
	d.problems = append(d.problems, pr)
}

// at adds a problem of a decoded value. The place is that of the field, or of
// the nearest field above it if it is not in the file.
func (d *document) at(field, msg, hint string) {
	for f := field; ; {
		if p := d.pos[f]; p != nil || f == "" {
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
	return &FileError{File: d.file, Problems: d.problems}
}

func (d *document) value(n ast.Node, v reflect.Value, path string, depth int) {
	p := start(n)
	if depth > maxDepth {
		d.add(p, path, fmt.Sprintf("nested more than %d deep", maxDepth), "")
		return
	}
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.add(p, path, "anchors, aliases and tags are not supported", "write the value out")
		return
	case *ast.NullNode:
		d.add(p, path, "no value", "leave the field out to get its default")
		return
	}
	if _, ok := d.pos[path]; !ok {
		d.pos[path] = p
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path, depth)
	case reflect.Map:
		d.stringMap(n, v, path, depth)
	case reflect.Pointer: // of a struct that may be left out
		e := reflect.New(v.Type().Elem())
		d.value(n, e.Elem(), path, depth)
		v.Set(e)
	case reflect.Slice:
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			d.add(start(n), path, fmt.Sprintf("got %s, want a list", describe(n)), "")
			return
		}
		s := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
		for i, e := range seq.Values {
			d.value(e, s.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
		v.Set(s)
	default:
		d.scalar(n, v, path)
	}
}

func (d *document) scalar(n ast.Node, v reflect.Value, path string) {
	p := n.GetToken().Position
	switch v.Kind() {
	case reflect.String:
		switch s := n.(type) {
		case *ast.StringNode:
			v.SetString(s.Value)
		case *ast.LiteralNode:
			v.SetString(s.Value.Value)
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			d.add(p, path, fmt.Sprintf("got %s, want a string", describe(n)), fmt.Sprintf("write %q", n.GetToken().Value))
		default:
			d.add(p, path, fmt.Sprintf("got %s, want a string", describe(n)), "")
		}
	case reflect.Int, reflect.Int64:
		i, ok := n.(*ast.IntegerNode)
		if !ok {
			d.add(p, path, fmt.Sprintf("got %s, want a whole number", describe(n)), "")
			return
		}
		x, err := strconv.ParseInt(i.GetToken().Value, 10, 64)
		if err != nil || v.OverflowInt(x) || (v.Kind() == reflect.Int && x > math.MaxInt32) {
			d.add(p, path, fmt.Sprintf("%q is not a decimal number in range", i.GetToken().Value), "")
			return
		}
		v.SetInt(x)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.add(p, path, fmt.Sprintf("got %s, want true or false", describe(n)), "")
			return
		}
		v.SetBool(b.Value)
	default:
		panic(fmt.Sprintf("profiles: BUG: field %s has kind %s", path, v.Kind()))
	}
}

func (d *document) mapping(n ast.Node, v reflect.Value, path string, depth int) {
	values, ok := mappingValues(n)
	if !ok {
		d.add(start(n), path, fmt.Sprintf("got %s, want a mapping", describe(n)), "")
		return
	}
	fields := map[string]int{}
	var names []string
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = i
			names = append(names, name)
		}
	}
	seen := map[string]bool{}
	for _, mv := range values {
		key, kp, ok := d.key(mv, path)
		if !ok {
			continue
		}
		field := join(path, key)
		i, known := fields[key]
		switch {
		case !known:
			d.add(kp, field, "unknown field", didYouMean(key, names))
			continue
		case seen[key]:
			d.add(kp, field, "repeated field", "")
			continue
		}
		seen[key] = true
		d.pos[field] = start(mv.Value)
		d.value(mv.Value, v.Field(i), field, depth+1)
	}
}

func (d *document) stringMap(n ast.Node, v reflect.Value, path string, depth int) {
	values, ok := mappingValues(n)
	if !ok {
		d.add(start(n), path, fmt.Sprintf("got %s, want a mapping", describe(n)), "")
		return
	}
	m := reflect.MakeMap(v.Type())
	for _, mv := range values {
		key, kp, ok := d.key(mv, path)
		if !ok {
			continue
		}
		if m.MapIndex(reflect.ValueOf(key)).IsValid() {
			d.add(kp, join(path, key), "repeated field", "")
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(mv.Value, e, join(path, key), depth+1)
		m.SetMapIndex(reflect.ValueOf(key), e)
	}
	v.Set(m)
}

func (d *document) key(mv *ast.MappingValueNode, path string) (string, *token.Position, bool) {
	p := mv.Key.GetToken().Position
	k, ok := mv.Key.(*ast.StringNode)
	if !ok {
		d.add(p, path, "a key is not a plain string", "")
		return "", nil, false
	}
	return k.Value, p, true
}

// start is where a node begins. The token of a mapping is its first colon.
func start(n ast.Node) *token.Position {
	if values, ok := mappingValues(n); ok && len(values) > 0 {
		return values[0].Key.GetToken().Position
	}
	return n.GetToken().Position
}

func mappingValues(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	return nil, false
}

func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.BoolNode:
		return "the boolean " + n.GetToken().Value
	case *ast.IntegerNode, *ast.FloatNode:
		return "the number " + n.GetToken().Value
	case *ast.StringNode:
		return fmt.Sprintf("the string %.40q", n.GetToken().Value)
	case *ast.LiteralNode:
		return "a block of text"
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
