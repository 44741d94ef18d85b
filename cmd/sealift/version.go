package main

import (
	"fmt"
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
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.out, "sealift", version())
			return err
		},
	}
}

// commands returns all commands, in the order in which a fleet needs them.
func commands(e *env) []*cobra.Command {
	return []*cobra.Command{
		newKeysCommand(e), newProfileCommand(e), newImageCommand(e), newServeCommand(e), newMachineCommand(e),
		newFirmwareCommand(e), newAuditCommand(e), newReportCommand(e), newDemoCommand(e), newVersionCommand(e),
	}
}
