package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var docLink = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

// links returns the files of this repository that a page links to.
func links(t *testing.T, page string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	to := map[string]bool{}
	for _, m := range docLink.FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(m[1], "://") {
			to[filepath.Join(filepath.Dir(page), m[1])] = true
		}
	}
	return to
}

func TestTheDocumentationIsLinked(t *testing.T) {
	t.Parallel()
	const root = "../.."
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*"))
	if err != nil || len(docs) == 0 {
		t.Fatalf("%d pages, %v", len(docs), err)
	}
	index := links(t, filepath.Join(root, "README.md"))
	for _, page := range docs {
		if !index[page] {
			t.Errorf("README.md has no link to %s", page)
		}
	}
	pages := append([]string{filepath.Join(root, "README.md"), filepath.Join(root, "ARCHITECTURE.md"), filepath.Join(root, "attest", "README.md"), filepath.Join(root, "provisioner", "README.md")}, docs...)
	for _, page := range pages {
		for to := range links(t, page) {
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s has a dead link: %v", page, err)
			}
		}
	}
}

var (
	saidCode  = regexp.MustCompile(`\b[cC]ode: "([a-z-]+)"`)
	namedCode = regexp.MustCompile(`\bCode[A-Z]\w*\s*= "([a-z-]+)"`)
)

// Whoever is answered with an error can look its code up.
func TestEachCodeOfAnErrorIsDescribed(t *testing.T) {
	t.Parallel()
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "docs", "serve.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "\n| code | status | meaning |\n")
	if !found {
		t.Fatal("docs/serve.md has no table of codes")
	}
	n := 0
	for pattern, code := range map[string]*regexp.Regexp{"attest/server/*.go": saidCode, "cmd/sealift/campaigns.go": saidCode, "attest/api/*.go": namedCode} {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range code.FindAllStringSubmatch(string(text), -1) {
				n++
				if !strings.Contains(table, "`"+m[1]+"`") {
					t.Errorf("docs/serve.md lacks the code %s of %s", m[1], file)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d codes were found", n)
	}
}
