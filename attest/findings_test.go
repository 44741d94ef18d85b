package attest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// README.md has a row for each code, with its meaning and its remedy, and none for
// a code that does not exist.
func TestEachFindingIsDocumented(t *testing.T) {
	var codes []string
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Code" {
				return true
			}
			for _, x := range v.Values {
				if lit, ok := x.(*ast.BasicLit); ok {
					code, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					codes = append(codes, code)
				}
			}
			return true
		})
	}
	if len(codes) < 40 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z]+\\.[a-z-]+)` \\| (.+) \\| (.+) \\|$").FindAllStringSubmatch(string(readme), -1)
	var documented []string
	for _, r := range rows {
		documented = append(documented, r[1])
	}
	slices.Sort(codes)
	slices.Sort(documented)
	for _, c := range codes {
		if !slices.Contains(documented, c) {
			t.Errorf("README.md does not explain %s", c)
		}
	}
	for i, d := range documented {
		if !slices.Contains(codes, d) {
			t.Errorf("README.md explains %s, which does not exist", d)
		}
		if i > 0 && documented[i-1] == d {
			t.Errorf("README.md explains %s twice", d)
		}
	}
}
