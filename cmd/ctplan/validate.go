package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/schema"
)

func newValidate(e *env) *cobra.Command {
	var vars varFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "validate [PATH]",
		Short: "Check HCL files without a host",
		Long: `Checks everything that can be known without a host. What depends on host.* is
taken to be right; plan checks it.`,
		Args: atMost(1, "one path"),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := openConfig(e, args, vars)
			if err != nil {
				return err
			}
			_, diags := schema.Load(c.sources, c.vars, nil)
			if asJSON {
				return validateJSON(e, diags)
			}
			if err := e.diagnose(diags); err != nil {
				return err
			}
			files := "1 file is"
			if n := len(c.sources); n != 1 {
				files = fmt.Sprintf("%d files are", n)
			}
			_, err = fmt.Fprintf(e.stdout, "%s valid\n", files)
			return err
		},
	}
	vars.register(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func validateJSON(e *env, diags schema.Diagnostics) error {
	err := writeJSON(e.stdout, struct {
		FormatVersion int                 `json:"format_version"`
		Valid         bool                `json:"valid"`
		Diagnostics   []schema.Diagnostic `json:"diagnostics"`
	}{planner.FormatVersion, !diags.HasErrors(), diags.List()})
	if err == nil && diags.HasErrors() {
		err = status(exitError)
	}
	return err
}
