package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/planfile"
	"github.com/ctplan/ctplan/internal/shell"
	"github.com/ctplan/ctplan/internal/view"
)

func newShow(e *env) *cobra.Command {
	var format formatFlags
	cmd := &cobra.Command{
		Use:   "show PLANFILE",
		Short: "Render a saved plan",
		Long: `Renders a plan that plan --out saved, on any host. It does not look whether the host still is what the plan was made from; apply does.

With --format sh it is one shell script that makes the change on a host without
ctplan: sh FILE check, apply, confirm and undo. What a script cannot do as
safely is refused.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return hint(errors.New("show takes one saved plan"), "usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format.check(cmd.Flags()); err != nil {
				return err
			}
			_, p, err := loadPlan(args[0])
			if err != nil {
				return err
			}
			if format.format == "sh" {
				return shell.Write(e.stdout, p.plan, p.live, readBuild().String(), view.Summary(p.plan, view.Plan))
			}
			return e.showPlans([]*planned{p}, view.Plan, format)
		},
	}
	format.register(cmd.Flags(), "sh")
	return cmd
}

// loadPlan reads a saved plan and derives the plan from it again.
func loadPlan(path string) (*planfile.Plan, *planned, error) {
	saved, err := planfile.Read(path)
	if err != nil {
		return nil, nil, err
	}
	p, err := diff(saved.Desired, saved.ConfigDigest, saved.Snapshot)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the plan %q: %w", path, err)
	}
	return saved, p, nil
}

// age says how long ago a plan was made, for people.
func age(created, now time.Time) string {
	d := now.Sub(created)
	switch {
	case d < 2*time.Minute:
		return "just now"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}
