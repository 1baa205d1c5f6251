package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ctplan/ctplan/internal/planfile"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
)

// formatFlags say how a plan is rendered.
type formatFlags struct {
	format string
	json   bool
	full   bool
	more   []string // formats of this command alone
}

func (f *formatFlags) register(flags *pflag.FlagSet, more ...string) {
	f.more = more
	flags.StringVar(&f.format, "format", "text", either(f.formats()))
	flags.BoolVar(&f.json, "json", false, "the same as --format json")
	flags.BoolVar(&f.full, "full", false, "show long changes in full")
}

func (f *formatFlags) check(flags *pflag.FlagSet) error {
	if f.json && flags.Changed("format") && f.format != "json" {
		return errors.New("--json and --format say different things: give one of them")
	}
	if f.json {
		f.format = "json"
	}
	return oneOf("format", f.format, f.formats()...)
}

func (f *formatFlags) formats() []string {
	return append([]string{"text", "json", "markdown"}, f.more...)
}

// either is "a, b or c".
func either(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func newPlan(e *env) *cobra.Command {
	var (
		vars      varFlags
		format    formatFlags
		out       string
		snapshots []string
		detailed  bool
	)
	cmd := &cobra.Command{
		Use:   "plan [PATH]",
		Short: "Show what apply would change",
		Long: `Compares the host with what the configuration declares, and shows what apply
would change, in order, or why it would refuse. Changes nothing.

With --snapshot it plans for the host that a snapshot was taken of, by ctplan
snapshot, without root, iptables or the host at hand: for code review.

Exit status: 0, 1 on errors, 3 when blocked; with --detailed-exitcode 2 when
there is something to change.`,
		Example: `  ctplan plan
  ctplan plan --out change.ctplan && ctplan apply change.ctplan
  ctplan plan --format markdown --snapshot web-1.json --snapshot web-2.json`,
		Args: atMost(1, "one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format.check(cmd.Flags()); err != nil {
				return err
			}
			if out != "" && len(snapshots) > 1 {
				return errors.New("--out saves one plan, and there are several snapshots: plan them one by one")
			}
			var reader *snapshot.Reader
			if len(snapshots) == 0 {
				if err := e.needRoot("planning for this host"); err != nil {
					return err
				}
				ctx, cancel := context.WithCancel(cmd.Context())
				defer cancel() // an error in the HCL stops what is still being read
				var err error
				if reader, err = snapshot.Start(ctx, e.root, nil); err != nil {
					return err
				}
			}
			c, err := openConfig(e, args, vars)
			if err != nil {
				return err
			}
			all, err := e.planAll(c, reader, snapshots)
			if err != nil {
				return err
			}
			if out != "" {
				if err := savePlan(out, all[0]); err != nil {
					return err
				}
			}
			if err := e.showPlans(all, view.Plan, format); err != nil {
				return err
			}
			if out != "" && !all[0].plan.Blocked() {
				e.progressf("saved the plan; to apply it: ctplan apply %s", out)
			}
			return planStatus(all, detailed)
		},
	}
	flags := cmd.Flags()
	vars.register(flags)
	format.register(flags)
	flags.StringVarP(&out, "out", "o", "", "save the plan to `FILE`, for show and apply")
	flags.StringArrayVar(&snapshots, "snapshot", nil, "plan for the host of this snapshot `FILE`; - is standard input (repeatable)")
	flags.BoolVar(&detailed, "detailed-exitcode", false, "exit 2 when there is something to change")
	return cmd
}

// planAll plans for this host, or for those of snapshots where reader is nil.
func (e *env) planAll(c *config, reader *snapshot.Reader, snapshots []string) ([]*planned, error) {
	if reader != nil {
		e.warnPending()
		p, err := c.planHost(reader)
		if err != nil {
			return nil, err
		}
		return []*planned{p}, e.judge(p)
	}
	var all []*planned
	for _, name := range snapshots {
		s, err := snapshot.ReadFile(name, e.stdin)
		if err != nil {
			return nil, err
		}
		p, err := c.planSnapshot(s)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func savePlan(path string, p *planned) error {
	return planfile.Write(path, &planfile.Plan{
		FormatVersion: planner.FormatVersion,
		CtplanVersion: readBuild().String(),
		Created:       time.Now().UTC().Truncate(time.Second),
		ConfigDigest:  p.digest,
		Desired:       p.desired,
		Snapshot:      p.snapshot.Limited(snapshot.DefaultConnections),
	})
}

// showPlans renders plans on stdout.
func (e *env) showPlans(all []*planned, verb view.Verb, f formatFlags) error {
	plans := make([]planner.Plan, len(all))
	for i, p := range all {
		plans[i] = p.plan
	}
	o := view.Options{Verb: verb, Color: e.colorFor(e.stdoutTerminal), Width: e.width, Full: f.full}
	if len(all) == 1 {
		o.Causes = all[0].causes
	}
	var err error
	switch {
	case f.format == "junit":
		err = view.JUnit(e.stdout, plans[0], o)
	case f.format == "nagios":
		err = view.Nagios(e.stdout, plans[0], all[0].snapshot.Conntrack, o)
	case f.format == "json" && len(plans) == 1:
		err = view.JSON(e.stdout, plans[0], o)
	case f.format == "json":
		err = view.FleetJSON(e.stdout, plans, o)
	case f.format == "markdown" && len(plans) == 1:
		err = view.Markdown(e.stdout, plans[0], o)
	case f.format == "markdown":
		err = view.FleetMarkdown(e.stdout, plans, o)
	case len(plans) == 1:
		err = view.Text(e.stdout, plans[0], o)
	default:
		err = view.FleetText(e.stdout, plans, o)
	}
	if err != nil {
		return fmt.Errorf("printing the plan: %w", err)
	}
	return nil
}

// planStatus is the exit status after plans have been shown.
func planStatus(all []*planned, detailed bool) error {
	changes := false
	for _, p := range all {
		if p.plan.Blocked() {
			return status(exitBlocked)
		}
		changes = changes || !p.plan.Empty()
	}
	if changes && detailed {
		return status(exitChanges)
	}
	return nil
}
