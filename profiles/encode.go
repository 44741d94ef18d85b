package profiles

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Encode returns the profile as the text of a file, with every default written
// out. Parsing it gives the same profile.
func (p *Profile) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(yamlNode(reflect.ValueOf(*p))); err != nil {
		return nil, fmt.Errorf("encode profile: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("encode profile: %w", err)
	}
	return b.Bytes(), nil
}

// EncodeJSON is Encode as JSON, with the same names of fields in the same order.
func (p *Profile) EncodeJSON() (json.RawMessage, error) {
	var b bytes.Buffer
	if err := writeJSON(&b, yamlNode(reflect.ValueOf(*p))); err != nil {
		return nil, fmt.Errorf("encode profile: %w", err)
	}
	return b.Bytes(), nil
}

// yamlNode returns a value as YAML. The library's own encoder writes some texts,
// such as blocks that start with a space, so that they cannot be read back.
func yamlNode(v reflect.Value) *yaml.Node {
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := yamlName(f)
			if name == "" || (v.Field(i).IsZero() && strings.HasSuffix(f.Tag.Get("yaml"), ",omitempty")) {
				continue
			}
			n.Content = append(n.Content, yamlText(name), yamlNode(v.Field(i)))
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, yamlNode(v.Index(i)))
		}
		if v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case reflect.String:
		if v.Type() == reflect.TypeFor[BankProof]() && v.String() == string(BankProofRequire) {
			// Programs that know only true can read it, and a profile that said so
			// still gives the same policy.
			return yamlNode(reflect.ValueOf(true))
		}
		return yamlText(v.String())
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}
	case reflect.Int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}
	}
	panic(fmt.Sprintf("profiles: BUG: a profile has a field of kind %s", v.Kind()))
}

// Texts that are the same as plain scalars and as blocks to every reader.
const (
	plainText = `^[A-Za-z/][A-Za-z0-9/._+-]*([ :=@][A-Za-z0-9/._+-]+)*$`
	blockText = `^([!-~]([ -~]*[!-~])?\n)+$`
)

func yamlText(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
	switch {
	case matches(plainText, s):
		n.Style = 0 // words such as true are quoted by the library
	case matches(blockText, s):
		n.Style = yaml.LiteralStyle
	}
	return n
}

// writeJSON writes what yamlNode returns: it has no aliases, and the only
// numbers are decimal.
func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			b.WriteByte("{,"[min(i, 1)])
			if err := writeJSON(b, n.Content[i]); err != nil {
				return err
			}
			b.WriteByte(':')
			if err := writeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		if len(n.Content) == 0 {
			b.WriteByte('{')
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, e := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeJSON(b, e); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	default:
		if n.Tag == "!!int" || n.Tag == "!!bool" {
			b.WriteString(n.Value)
			return nil
		}
		s, err := json.Marshal(n.Value)
		if err != nil {
			return err
		}
		b.Write(s)
	}
	return nil
}
