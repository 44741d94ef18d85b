// Package schema is the JSON Schema (draft 2020-12) of profiles, for editors
// and for whoever makes profiles by program. Profile returns it; Generate makes
// it from the Go types, their comments and profiles.Rules, so that it says what
// the parser will say. What a schema cannot express, such as that two UKIs fit
// the ESP, only the parser checks.
package schema

import _ "embed"

//go:generate go run ./gen

//go:embed profile.schema.json
var profile string

// Profile returns the schema.
func Profile() []byte { return []byte(profile) }
