package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// run executes one command line and returns the exit code.
func run(ctx context.Context, e env, args []string) int {
	root := newRootCommand(&e)
	root.SetArgs(args)
	root.SetIn(e.in)
	root.SetOut(e.out)
	root.SetErr(e.err)
	if err := root.ExecuteContext(ctx); err != nil {
		return e.fail(ctx, err)
	}
	return exitOK
}

func newRootCommand(e *env) *cobra.Command {
	root := newGroup("sealift", "From a profile to a machine that has proven what it booted", `
Sealift builds signed, immutable Kubernetes edge OS images, boots bare metal
into them, and releases disk keys and cluster join tokens only to machines
whose TPM proves that they booted exactly that image on approved firmware.`, `
  sealift keys init keys
  sealift image build profiles/demo.yaml --keys keys --out build/image
  sealift serve --config serve.yaml
  sealift machine list`,
		// In the order in which a fleet needs them.
		newKeysCommand(e), newProfileCommand(e), newImageCommand(e), newServeCommand(e), newStoreCommand(e), newBackupCommand(e), newRestoreCommand(e), newMachineCommand(e),
		newPolicyCommand(e), newFirmwareCommand(e), newAttestCommand(e), newAuditCommand(e), newReportCommand(e), newSimulateCommand(e), newDemoCommand(e), newVersionCommand(e))
	root.SilenceUsage, root.SilenceErrors = true, true
	root.PersistentFlags().BoolVar(&e.json, "json", false, "write results and events as JSON, one object a line")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withHint(usage{err}, "%s --help", cmd.CommandPath())
	})
	root.SetHelpCommand(newHelpCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	markUsageErrors(root)
	return root
}

// newGroup returns a command that only holds others: it shows its help.
func newGroup(name, short, long, example string, members ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Long:  strings.TrimPrefix(long, "\n") + "\n\nExample:\n" + strings.TrimPrefix(example, "\n") + exitStatus,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			text := fmt.Sprintf("%s: there is no command %q", cmd.CommandPath(), args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += "; did you mean " + near[0] + "?"
			}
			return fmt.Errorf("%s", text)
		},
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(members...)
	return cmd
}

func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		Long: `Shows what "COMMAND --help" shows.

Example:
  sealift help image build` + exitStatus,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return withHint(usage{fmt.Errorf("there is no command %q", strings.Join(args, " "))}, "sealift help")
			}
			return about.Help()
		},
	}
}

// markUsageErrors makes a wrong number of arguments, and a required flag that
// is missing or empty, exit with 2, everywhere.
func markUsageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && !cmd.HasSubCommands() {
				want := strings.TrimPrefix(strings.TrimPrefix(cmd.Use, cmd.Name()), " ")
				if want == "" {
					want = "no argument"
				}
				err = fmt.Errorf("%s takes %s, got %d arguments", cmd.CommandPath(), want, len(args))
			}
			if err == nil {
				err = checkRequired(cmd)
			}
			if err != nil {
				return withHint(usage{err}, "%s --help", cmd.CommandPath())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		markUsageErrors(c)
	}
}

// required marks flags that must be given.
func required(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic("sealift: BUG: " + err.Error())
		}
	}
}

// checkRequired names the required flags that are missing or empty.
func checkRequired(cmd *cobra.Command) error {
	var missing []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if len(f.Annotations[cobra.BashCompOneRequiredFlag]) > 0 && (!f.Changed || f.Value.String() == "") {
			missing = append(missing, "--"+f.Name)
		}
	})
	if len(missing) > 0 {
		return fmt.Errorf("%s needs %s", cmd.CommandPath(), strings.Join(missing, ", "))
	}
	return nil
}
