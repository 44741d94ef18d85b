package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version returns the module's version as the Go linker recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersionCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Prints the version of this program.

Example:
  sealift version` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return e.print(struct {
				Version string `json:"version"`
			}{version()}, "sealift %s", version())
		},
	}
}
