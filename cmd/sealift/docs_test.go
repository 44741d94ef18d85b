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
