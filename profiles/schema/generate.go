package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"

	"github.com/sealift/sealift/profiles"
)

// draft is the dialect that the schema is written in.
const draft = "https://json-schema.org/draft/2020-12/schema"

// node is one schema. Fields are in the order in which a reader wants them.
type node struct {
	Schema      string     `json:"$schema,omitempty"`
	Title       string     `json:"title,omitempty"`
	Description string     `json:"description,omitempty"`
	Type        string     `json:"type,omitempty"`
	Const       any        `json:"const,omitempty"`
	Enum        []string   `json:"enum,omitempty"`
	Default     any        `json:"default,omitempty"`
	Pattern     string     `json:"pattern,omitempty"`
	MaxLength   int        `json:"maxLength,omitempty"`
	Minimum     *int       `json:"minimum,omitempty"`
	Maximum     *int       `json:"maximum,omitempty"`
	Items       *node      `json:"items,omitempty"`
	Unique      bool       `json:"uniqueItems,omitempty"`
	Properties  properties `json:"properties,omitempty"`
	Required    []string   `json:"required,omitempty"`
	Additional  *bool      `json:"additionalProperties,omitempty"`
	MinProps    int        `json:"minProperties,omitempty"`
	Not         *node      `json:"not,omitempty"`
	AnyOf       []*node    `json:"anyOf,omitempty"`
	OneOf       []*node    `json:"oneOf,omitempty"`
	AllOf       []*node    `json:"allOf,omitempty"`
	If          *node      `json:"if,omitempty"`
	Then        *node      `json:"then,omitempty"`
	Else        *node      `json:"else,omitempty"`
}

// properties are the fields of an object in the order of the Go type.
type properties []property

type property struct {
	name  string
	value *node
}

// MarshalJSON writes an object that keeps the order.
func (p properties) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	for i, f := range p {
		b.WriteByte("{,"[min(i, 1)])
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := encode(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // patterns are to be read
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// Generate makes the schema. source is the Go file that declares the Profile
// type: its comments become the descriptions.
func Generate(source []byte) ([]byte, error) {
	docs, err := comments(source)
	if err != nil {
		return nil, fmt.Errorf("generate schema: %w", err)
	}
	g := generator{rules: profiles.Rules(), docs: docs, used: map[string]bool{}}
	root, _ := g.object(reflect.ValueOf(*profiles.Defaults()), "")
	root.Schema, root.Title = draft, "Sealift profile"
	root.If = &node{Properties: properties{{"base", &node{Const: profiles.BaseOCI}}}, Required: []string{"base"}}
	root.Then = &node{Required: []string{"oci"}}
	root.Else = &node{Not: &node{Required: []string{"oci"}}}
	if err := g.versions(root); err != nil {
		return nil, fmt.Errorf("generate schema: %w", err)
	}
	for path := range g.rules {
		if !g.used[path] {
			return nil, fmt.Errorf("generate schema: rule of %s: a profile has no such field", path)
		}
	}
	if len(g.missing) > 0 {
		return nil, fmt.Errorf("generate schema: no comment on %s", strings.Join(g.missing, ", "))
	}
	raw, err := encode(root)
	if err != nil {
		return nil, fmt.Errorf("generate schema: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("generate schema: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

type generator struct {
	rules   map[string]profiles.Rule
	docs    map[string]string // by Type and Type.Field
	used    map[string]bool   // rules that have a field
	missing []string          // fields without a comment
}

// object makes the schema of a struct. required says whether one of its fields,
// or of the structs in it, is.
func (g *generator) object(v reflect.Value, path string) (_ *node, required bool) {
	t := v.Type()
	closed := false
	n := &node{Type: "object", Description: g.docs[t.Name()], Additional: &closed}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		at := name
		if path != "" {
			at = path + "." + name
		}
		f, need := g.field(v.Field(i), at)
		doc := g.docs[t.Name()+"."+t.Field(i).Name]
		switch {
		case doc != "":
			f.Description = doc
		case f.Description == "":
			g.missing = append(g.missing, at)
		}
		n.Properties = append(n.Properties, property{name, f})
		if need {
			n.Required = append(n.Required, name)
		}
	}
	rule := g.rule(path)
	for _, name := range rule.ExactlyOne {
		n.OneOf = append(n.OneOf, &node{Required: []string{name}})
	}
	if rule.NotEmpty {
		n.MinProps = 1
	}
	if len(rule.AtMostOne) > 0 {
		var pairs []*node
		for i, a := range rule.AtMostOne {
			for _, b := range rule.AtMostOne[i+1:] {
				pairs = append(pairs, &node{Required: []string{a, b}})
			}
		}
		n.Not = &node{AnyOf: pairs}
	}
	return n, len(n.Required) > 0
}

func (g *generator) rule(path string) profiles.Rule {
	r, ok := g.rules[path]
	g.used[path] = g.used[path] || ok
	return r
}

// field makes the schema of one field. The value is its default.
func (g *generator) field(v reflect.Value, path string) (_ *node, required bool) {
	switch v.Kind() {
	case reflect.Struct:
		return g.object(v, path)
	case reflect.Slice:
		items, _ := g.field(reflect.Zero(v.Type().Elem()), path+"[]")
		return &node{Type: "array", Items: items, Unique: g.rule(path).Unique}, false
	}
	r := g.rule(path)
	n := &node{Enum: r.Enum, Pattern: r.Pattern, MaxLength: r.MaxLength}
	if len(r.Enum) == 1 {
		n.Enum, n.Const = nil, r.Enum[0]
	}
	if r.Not != "" {
		n.Not = &node{Pattern: r.Not}
	}
	if !v.IsZero() {
		n.Default = v.Interface()
	}
	switch v.Kind() {
	case reflect.String:
		if v.Type() == reflect.TypeFor[profiles.BankProof]() {
			return &node{AnyOf: []*node{{Type: "boolean"}, {Type: "string", Enum: r.Enum}}}, false
		}
		n.Type = "string"
	case reflect.Bool:
		n.Type = "boolean"
	case reflect.Int:
		n.Type = "integer"
		if r.Max != 0 {
			n.Minimum, n.Maximum = &r.Min, &r.Max
		}
	default:
		panic(fmt.Sprintf("schema: BUG: field %s has kind %s", path, v.Kind()))
	}
	return n, r.Required
}

// versions binds the version of Kubernetes to the distro.
func (g *generator) versions(root *node) error {
	kubernetes := root.property("kubernetes")
	for _, name := range profiles.Distros() {
		d, err := profiles.LoadDistro(name)
		if err != nil {
			return err
		}
		version := &node{}
		for _, v := range d.Versions {
			version.Enum = append(version.Enum, v.Version)
		}
		if d.Release != nil {
			version = &node{AnyOf: []*node{version, {Pattern: d.Release.Versions}}}
		}
		when := &node{Properties: properties{{"distro", &node{Const: name}}}}
		if name != profiles.Defaults().Kubernetes.Distro {
			when.Required = []string{"distro"}
		}
		kubernetes.AllOf = append(kubernetes.AllOf, &node{If: when, Then: &node{Properties: properties{{"version", version}}}})
	}
	return nil
}

func (n *node) property(name string) *node {
	i := slices.IndexFunc(n.Properties, func(p property) bool { return p.name == name })
	if i < 0 {
		panic("schema: BUG: no property " + name)
	}
	return n.Properties[i].value
}

// comments returns what is said about each struct type of a Go file, and about
// each of its fields: before it, and behind it.
func comments(source []byte) (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "profile.go", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	docs := map[string]string{}
	for _, decl := range file.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		for _, spec := range g.Specs {
			t := spec.(*ast.TypeSpec)
			s, ok := t.Type.(*ast.StructType)
			if !ok {
				continue
			}
			docs[t.Name.Name] = text(g.Doc, t.Doc)
			for _, f := range s.Fields.List {
				for _, name := range f.Names {
					docs[t.Name.Name+"."+name.Name] = text(f.Doc, f.Comment)
				}
			}
		}
	}
	return docs, nil
}

// text joins comments into one line.
func text(groups ...*ast.CommentGroup) string {
	var out []string
	for _, g := range groups {
		if s := strings.Join(strings.Fields(g.Text()), " "); s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, " ")
}
