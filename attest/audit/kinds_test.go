package audit_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/audit"
)

// constants reads the constants of a type of text from this package's source.
func constants(t *testing.T, typ string) (all []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typ {
				return true
			}
			for _, v := range spec.Values {
				lit, ok := v.(*ast.BasicLit)
				if !ok {
					t.Fatalf("%s: a constant of %s that is no literal", name, typ)
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, text)
			}
			return true
		})
	}
	slices.Sort(all)
	return all
}

// Counters, and whoever else lists kinds and alarms, rely on it.
func TestNoKindAndNoAlarmIsForgotten(t *testing.T) {
	var kinds, alarms []string
	for _, k := range audit.Kinds() {
		kinds = append(kinds, string(k))
	}
	for _, a := range audit.AlarmNames() {
		alarms = append(alarms, string(a))
	}
	slices.Sort(kinds)
	slices.Sort(alarms)
	if want := constants(t, "Kind"); len(want) < 19 || !slices.Equal(kinds, want) {
		t.Errorf("Kinds gives %q, the source has %q", kinds, want)
	}
	if want := constants(t, "AlarmName"); len(want) < 9 || !slices.Equal(alarms, want) {
		t.Errorf("AlarmNames gives %q, the source has %q", alarms, want)
	}
}
