package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRoot builds the whole command line anew, so that no run knows of another.
func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "ctplan COMMAND [PATH]",
		Short: "Declare, review, apply and watch how Linux hosts track connections",
		Long: `ctplan makes connection tracking a reviewed, reversible change. HCL files say
which mode each host is in: disabled, notrack or tuned. plan shows what would
change, apply changes it as one transaction, drift watches from cron.

PATH is an HCL file or a folder of *.hcl files, by default the current folder.

Exit status: 0 done or nothing to change, 1 error, 2 changes or drift present
(plan only with --detailed-exitcode) or a check of verify fails, 3 blocked by a
safety check.`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			err := fmt.Errorf("there is no command %q", args[0])
			if s := nearest(args[0], commandNames(cmd)); s != "" {
				return hint(err, "did you mean ctplan %s?", s)
			}
			return hint(err, "ctplan --help lists the commands")
		},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return oneOf("color", e.color, "auto", "always", "never")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Hidden: true, Use: "no-help"})
	root.PersistentFlags().StringVar(&e.color, "color", "auto", "colour output: auto, always or never")
	root.SetFlagErrorFunc(flagError)
	root.DisableFlagsInUseLine = true
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .HasAvailableSubCommands}}\n  {{.CommandPath}} [command]{{end}}", "", 1)) // a second usage line
	root.AddCommand(
		newValidate(e), newFmt(e), newPlan(e), newShow(e), newApply(e),
		newConfirm(e), newRollback(e), newHistory(e), newRecover(e), newWatchdog(e), newDrift(e), newVerify(e), newStatus(e), newSnapshot(e), newSuggest(e), newImport(e), newVersion(e), newCompletion(e), newMan(),
	)
	return root
}

// flagError says which flag was meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return hint(err, "%s --help lists the flags", cmd.CommandPath())
	}
	name := unknown.GetSpecifiedName()
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	if len(name) > 1 {
		err = fmt.Errorf("there is no flag --%s", name)
		if s := nearest(name, flags); s != "" {
			return hint(err, "did you mean --%s?", s)
		}
	}
	return hint(err, "%s --help lists the flags", cmd.CommandPath())
}

// atMost is cobra.MaximumNArgs in our own words.
func atMost(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return hint(fmt.Errorf("%s takes at most %s, got %d", cmd.CommandPath(), what, len(args)),
				"usage: %s", cmd.UseLine())
		}
		return nil
	}
}

func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	return names
}

// nearest is the option that was probably meant, or "".
func nearest(given string, options []string) string {
	if len(given) > 40 {
		return ""
	}
	best, distance := "", max(2, len(given)/3)+1
	for _, o := range options {
		d := levenshtein.Distance(strings.ToLower(given), o, nil)
		if len(given) >= 3 && strings.HasPrefix(o, given) {
			d = 0
		}
		if d < distance {
			best, distance = o, d
		}
	}
	return best
}
