package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/suggest"
	"github.com/ctplan/ctplan/schema"
)

func newSuggest(e *env) *cobra.Command {
	var mode, from string
	var watch time.Duration
	modes := []string{string(declared.Disabled), string(declared.Notrack), string(declared.Tuned)}
	cmd := &cobra.Command{
		Use:   "suggest",
		Short: "Propose a configuration that loses no connection",
		Long: `Prints HCL for this host. For the modes disabled and notrack it has the accept
blocks without which the connections that are open now, and the services that
listen, would be cut off; for tuned the sizes, with the arithmetic. The proposal
has been planned, and refined until its plan loses nothing; what it still loses
or opens is said in comments and on standard error. Changes nothing.

Without --mode it takes the first that fits: disabled, notrack, then tuned, and
says why; a host that translates addresses (nat) needs tuned. With --watch it
reads the connections again and again for that long: what is silent at one
moment may speak at another, and tuned learns how fast the table grows.

Exit status: 0, 1 on errors, 3 when a safety check would hold the plan for the
proposal back, or the host cannot do without connection tracking.`,
		Example: `  ctplan suggest > host.hcl && ctplan plan host.hcl
  ctplan suggest --mode notrack --watch 10m > host.hcl
  ctplan suggest --snapshot web-1.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := suggest.Options{Mode: declared.Mode(mode), Render: render}
			if mode != "" {
				if err := oneOf("mode", mode, modes...); err != nil {
					return err
				}
			}
			if from != "" && watch != 0 {
				return errors.New("--watch reads this host again and again, and --snapshot reads a file: give one of them")
			}
			if watch < 0 {
				return fmt.Errorf("--watch %s: it should be a duration such as 30s or 10m", watch)
			}
			s, readings, err := e.observe(cmd.Context(), from, watch)
			if err != nil {
				return err
			}
			o.Readings = readings
			live, err := s.Live()
			if err != nil {
				return err
			}
			return e.suggest(live, o)
		},
	}
	cmd.Flags().StringVar(&mode, "mode", "", "disabled, notrack or tuned; without it whichever fits")
	cmd.Flags().StringVar(&from, "snapshot", "", "suggest for the host of this snapshot `FILE`; - is standard input")
	if err := cmd.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(modes, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag stands above
	}
	cmd.Flags().DurationVar(&watch, "watch", 0, "read the connections again and again for this `DURATION`")
	return cmd
}

// suggest prints the suggestion for a host.
func (e *env) suggest(live host.Live, o suggest.Options) error {
	s, err := suggest.Suggest(live, o)
	var nat *suggest.NATError
	switch {
	case errors.As(err, &nat):
		e.errorf("suggesting mode %s for %s: %v", o.Mode, live.Host.Name, err)
		e.hintf("give the table the right size instead: ctplan suggest --mode tuned")
		return status(exitBlocked)
	case errors.Is(err, suggest.ErrNoConnections):
		return hint(fmt.Errorf("suggesting for %s: the snapshot holds no connections", live.Host.Name), "take it without --connections 0")
	case err != nil:
		return fmt.Errorf("suggesting for %s: %w", live.Host.Name, err)
	}
	for _, n := range live.Notes {
		e.warnf("%s", n)
	}
	for _, r := range s.Remains {
		e.warnf("%s", r)
	}
	if _, err := e.stdout.Write(schema.Write(s.Declaration)); err != nil {
		return fmt.Errorf("printing the suggestion: %w", err)
	}
	if s.Blocked {
		return status(exitBlocked)
	}
	return nil
}

// watchInterval is how often --watch reads the connections; most that live
// shorter are still in the table, which keeps what is over for a while.
const watchInterval = 5 * time.Second

// observe reads the snapshot file, or this host with its connections.
func (e *env) observe(ctx context.Context, from string, watch time.Duration) (*snapshot.Snapshot, []suggest.Reading, error) {
	if from != "" {
		s, err := snapshot.ReadFile(from, e.stdin)
		return s, nil, err
	}
	if err := e.needRootOr("reading this host", offHost); err != nil {
		return nil, nil, err
	}
	s, _, err := takeSnapshot(ctx, e, nil, varFlags{})
	if err != nil {
		return nil, nil, err
	}
	ssh := e.getenv("SSH_CONNECTION")
	s.ReadConnections(e.root, ssh, 0)
	if watch == 0 {
		return s, nil, nil
	}
	start := time.Now()
	readings := []suggest.Reading{{Count: s.Conntrack.Count}}
	e.progressf("watching the connections for %s; interrupt to stop without a suggestion", watch)
	for left := watch; left > 0; left = watch - time.Since(start) {
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("watching the connections: %w", ctx.Err())
		case <-time.After(min(left, watchInterval)):
		}
		if err := s.Observe(e.root, ssh); err != nil {
			return nil, nil, err
		}
		readings = append(readings, suggest.Reading{After: time.Since(start), Count: s.Conntrack.Count})
	}
	return s, readings, nil
}
