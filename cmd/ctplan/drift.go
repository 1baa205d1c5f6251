package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
)

func newDrift(e *env) *cobra.Command {
	var (
		vars    varFlags
		format  formatFlags
		quiet   bool
		ignore  []string
		metrics string
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
			if metrics != "" {
				if p != nil {
					dropIgnored(&p.plan, ignore)
				}
				if werr := writeMetrics(metrics, p, time.Now()); werr != nil && err == nil {
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
	flags.StringVar(&metrics, "metrics-file", "", "write Prometheus metrics to `FILE`, for node_exporter's textfile collector")
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
	p.Changes = slices.DeleteFunc(p.Changes, func(c change.Change) bool { return ignored(c.Meta().Address) })
	p.Blocks = slices.DeleteFunc(p.Blocks, func(b change.Block) bool { return ignored(b.Address) })
}

// writeMetrics writes what drift found, or with a nil p that it could not look.
func writeMetrics(path string, p *planned, now time.Time) error {
	var b strings.Builder
	gauge := func(name, help string, value int64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n%s %d\n", name, help, name, name, value)
	}
	success := int64(0)
	if p != nil {
		success = 1
	}
	gauge("ctplan_drift_success", "Whether the last ctplan drift could read the host and the configuration.", success)
	gauge("ctplan_drift_last_run_timestamp_seconds", "When ctplan drift last ran, in seconds since 1970.", now.Unix())
	if p != nil {
		gauge("ctplan_drift_objects", "Objects that differ from what the configuration declares.", int64(len(p.plan.Changes)))
		gauge("ctplan_drift_blocks", "Safety checks that would keep ctplan apply from mending the drift.", int64(len(p.plan.Blocks)))
		gauge("ctplan_conntrack_entries", "Tracked connections.", p.snapshot.Conntrack.Count)
		gauge("ctplan_conntrack_max", "Most connections that the kernel will track.", p.snapshot.Conntrack.Max)
		if len(p.plan.Changes) > 0 {
			b.WriteString("# HELP ctplan_drift_object An object that differs.\n# TYPE ctplan_drift_object gauge\n")
		}
		for _, c := range p.plan.Changes {
			fmt.Fprintf(&b, "ctplan_drift_object{address=\"%s\",action=\"%s\"} 1\n", label(c.Meta().Address), c.Meta().Action.String())
		}
	}
	// Not 0600: node_exporter does not run as root, and addresses are no secret.
	return snapshot.WriteAtomic(path, []byte(b.String()), 0o644)
}

// label escapes a value of a Prometheus label.
func label(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(view.Clean(s))
}
