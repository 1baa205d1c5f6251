package main

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
)

func newDrift(e *env) *cobra.Command {
	var (
		vars        varFlags
		format      formatFlags
		quiet       bool
		ignore      []string
		metricsFile string
	)
	cmd := &cobra.Command{
		Use:   "drift [PATH]",
		Short: "Tell whether the host still is as declared; for cron",
		Long: `Compares the host with what the configuration declares, and shows how they
differ. It has no way to change the host.

--ignore leaves out the changes whose address matches; * stands for anything:
--ignore 'file./etc/*'.

Exit status: 0 without drift, 1 on errors, 2 with drift.`,
		Args: atMost(1, "one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := format.check(cmd.Flags()); err != nil {
				return err
			}
			p, err := findDrift(cmd, e, args, vars)
			if metricsFile != "" {
				if p != nil {
					dropIgnored(&p.plan, ignore)
				}
				if werr := writeMetrics(metricsFile, e.driftMetrics(p, time.Now())); werr != nil && err == nil {
					err = werr
				}
			}
			if err != nil {
				return err
			}
			dropIgnored(&p.plan, ignore)
			if !quiet {
				if err := e.showPlans([]*planned{p}, view.Drift, format); err != nil {
					return err
				}
			}
			if !p.plan.Empty() {
				return status(exitChanges)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	vars.register(flags)
	format.register(flags)
	flags.BoolVarP(&quiet, "quiet", "q", false, "print nothing; the exit status tells")
	flags.StringArrayVar(&ignore, "ignore", nil, "leave out changes with this `ADDRESS`, a glob (repeatable)")
	flags.StringVar(&metricsFile, "metrics-file", "", metricsUsage)
	return cmd
}

func findDrift(cmd *cobra.Command, e *env, args []string, vars varFlags) (*planned, error) {
	if err := e.needRoot("looking for drift on this host"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	reader, err := snapshot.Start(ctx, e.root, nil)
	if err != nil {
		return nil, err
	}
	c, err := openConfig(e, args, vars)
	if err != nil {
		return nil, err
	}
	e.warnPending()
	return c.planHost(reader)
}

// dropIgnored takes away what the operator asked not to hear about.
func dropIgnored(p *planner.Plan, globs []string) {
	var patterns []*regexp.Regexp
	for _, g := range globs {
		// Unlike path.Match: addresses hold slashes, and brackets mean themselves.
		expr := strings.ReplaceAll(strings.ReplaceAll(regexp.QuoteMeta(g), `\*`, `.*`), `\?`, `.`)
		patterns = append(patterns, regexp.MustCompile(`(?s)^`+expr+`$`))
	}
	ignored := func(address string) bool {
		return slices.ContainsFunc(patterns, func(re *regexp.Regexp) bool { return re.MatchString(address) })
	}
	p.Changes = slices.DeleteFunc(p.Changes, func(c planner.Change) bool { return ignored(c.Meta().Address) })
	p.Blocks = slices.DeleteFunc(p.Blocks, func(b planner.Block) bool { return ignored(b.Address) })
}
