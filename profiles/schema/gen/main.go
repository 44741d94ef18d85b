// Command gen writes profile.schema.json: see go:generate in package schema.
package main

import (
	"fmt"
	"os"

	"github.com/sealift/sealift/profiles/schema"
)

func main() {
	source, err := os.ReadFile("../profile.go")
	if err == nil {
		var out []byte
		if out, err = schema.Generate(source); err == nil {
			err = os.WriteFile("profile.schema.json", out, 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}
