// Command program is a Go program with a module, for tests to look into.
package main

import (
	"fmt"

	"golang.org/x/mod/semver"
)

func main() { fmt.Println(semver.IsValid("v1.0.0")) }
