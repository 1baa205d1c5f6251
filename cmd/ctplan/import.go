package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner/importer"
	"github.com/ctplan/ctplan/schema"
)

func newImport(e *env) *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Write down a host as it is",
		Long: `Prints HCL that declares this host as it is: plan has nothing to change for it.
It reads the mode, the blocks behind ctplan's rules, sizes, timeouts and file
paths back from the host. Where no declaration leaves nothing to change, as on
many a host that was set up by hand, it prints the nearest one, and at its top
what plan would change and why. Changes nothing.

Exit status: 0 when plan has nothing to change, 1 on errors, 2 when it has, 3
when a safety check holds it back.`,
		Example: `  ctplan import > host.hcl
  ctplan import --snapshot web-1.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s *snapshot.Snapshot
			var err error
			if from != "" {
				s, err = snapshot.ReadFile(from, e.stdin)
			} else if err = e.needRootOr("reading this host", offHost); err == nil {
				s, _, err = takeSnapshot(cmd.Context(), e, nil, varFlags{})
			}
			if err != nil {
				return err
			}
			live, err := s.Live()
			if err != nil {
				return err
			}
			got := importer.Import(live, render)
			for _, n := range live.Notes {
				e.warnf("%s", n)
			}
			if _, err := e.stdout.Write(schema.Write(got.Declaration)); err != nil {
				return fmt.Errorf("printing the declaration: %w", err)
			}
			switch {
			case got.Plan.Blocked():
				e.warnf("this is as near as a declaration comes: its plan is blocked, for the reasons at its top")
				return status(exitBlocked)
			case !got.Plan.Empty():
				e.warnf("this is as near as a declaration comes: at its top stands what its plan would change")
				return status(exitChanges)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "snapshot", "", "import the host of this snapshot `FILE`; - is standard input")
	return cmd
}
