package main

import (
	"context"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/cause"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/providers/trace"
)

func newDrift(e *env) *cobra.Command {
	var d drift
	cmd := &cobra.Command{
		Use:   "drift [PATH]",
		Short: "Tell whether the host still is as declared; for cron",
		Long: `Compares the host with what the configuration declares, and shows how they
differ, with the likely cause of each difference and what it is known from:
package databases, logs, services, other programs, ctplan's own journals. It has
no way to change the host.

--quiet is for cron, which mails what a job prints: nothing while the host is as
declared, the difference when it is not. --exit-code-only is for scripts.

--format junit is for continuous integration. --format nagios is a monitoring
plugin: one line with performance data, and its exit statuses.

--ignore leaves out the changes whose address matches; * stands for anything:
--ignore 'file./etc/*'.

Exit status: 0 without drift, 1 on errors, 2 with drift. With --format nagios
0 without drift, 2 (critical) with drift, 3 (unknown) on errors.`,
		Example: `  ctplan drift /etc/ctplan
  */10 * * * *  root  ctplan drift --quiet /etc/ctplan    # in /etc/cron.d
  ctplan drift --exit-code-only /etc/ctplan || logger "drifted, or not known"`,
		Args: atMost(1, "one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.format.check(cmd.Flags()); err != nil {
				return err
			}
			if d.quiet && d.silent {
				return errors.New("--quiet and --exit-code-only say different things: give one of them")
			}
			if d.silent {
				e.stdout, e.stderr = io.Discard, io.Discard
			}
			err := d.run(cmd, e, args)
			var said status
			if d.format.format == "nagios" && err != nil && (!errors.As(err, &said) || said == exitError) {
				if errors.As(err, &said) {
					err = errors.New("drift could not be checked: the configuration has errors")
				}
				if werr := view.NagiosError(e.stdout, err); werr != nil {
					return werr
				}
				return status(view.NagiosUnknown)
			}
			return err
		},
	}
	flags := cmd.Flags()
	d.vars.register(flags)
	d.format.register(flags, "junit", "nagios")
	flags.BoolVarP(&d.quiet, "quiet", "q", false, "print nothing while nothing differs: for cron")
	flags.BoolVar(&d.silent, "exit-code-only", false, "print nothing at all, errors neither; the exit status tells")
	flags.StringArrayVar(&d.ignore, "ignore", nil, "leave out changes with this `ADDRESS`, a glob (repeatable)")
	flags.StringVar(&d.metrics, "metrics-file", "", metricsUsage)
	return cmd
}

// drift is a run of the command.
type drift struct {
	vars    varFlags
	format  formatFlags
	quiet   bool
	silent  bool
	ignore  []string
	metrics string
}

func (d *drift) run(cmd *cobra.Command, e *env, args []string) error {
	p, err := findDrift(cmd, e, args, d.vars, d.ignore)
	if p != nil && len(p.plan.Changes) > 0 && (!d.silent || d.metrics != "") {
		e.findCauses(cmd.Context(), p, time.Now())
	}
	if d.metrics != "" {
		if werr := writeMetrics(d.metrics, e.driftMetrics(p, time.Now())); werr != nil && err == nil {
			err = werr
		}
	}
	if err != nil {
		return err
	}
	if !d.quiet || !p.plan.Empty() {
		if err := e.showPlans([]*planned{p}, view.Drift, d.format); err != nil {
			return err
		}
	}
	if !p.plan.Empty() {
		return status(exitChanges)
	}
	return nil
}

// findDrift compares the host with what is declared, and leaves out what is to
// be ignored.
func findDrift(cmd *cobra.Command, e *env, args []string, vars varFlags, ignore []string) (*planned, error) {
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
	p, err := c.planHost(reader)
	if err != nil {
		return nil, err
	}
	dropIgnored(&p.plan, ignore)
	return p, nil
}

// pastTransactions is how many of ctplan's own transactions are looked at.
const pastTransactions = 20

// findCauses looks for what brought the drift about. What cannot be read is
// said and is no error: that something differs is news without its cause.
func (e *env) findCauses(ctx context.Context, p *planned, now time.Time) {
	f := cause.Facts{Changes: p.plan.Changes, Live: p.live}
	store, err := journal.View(e.stateDir())
	if err == nil {
		f.Journal = store.Path
		f.Past, err = store.Newest(pastTransactions)
	}
	if err != nil {
		e.warnf("looking for the cause in ctplan's own journals: %v", err)
	}
	if since := cause.Since(f.Past); !since.IsZero() {
		f.Trace = trace.Read(ctx, trace.Query{Root: e.root, Since: since, Now: now, Files: cause.Files(f.Changes)})
	}
	for _, n := range f.Trace.Notes {
		e.warnf("looking for the cause: %s", n)
	}
	p.causes = cause.Find(f)
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
