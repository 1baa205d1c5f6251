package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/view"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/boot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

func newStatus(e *env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how full the table is, and what ctplan's rules see",
		Long: `Shows connection tracking as it is on this host: whether the kernel has it, how
full its table is, and how many packets each of ctplan's chains has treated
since its rules were loaded. Needs no configuration and changes nothing.`,
		Args: atMost(0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.needRoot("reading the rules of this host"); err != nil {
				return err
			}
			r, err := e.readStatus(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return view.EncodeJSON(e.stdout, r)
			}
			_, err = fmt.Fprint(e.stdout, r.text())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// statusReport is what status prints: see docs/json.md.
type statusReport struct {
	FormatVersion int           `json:"format_version"`
	Host          string        `json:"host"`
	Kernel        string        `json:"kernel"`
	Conntrack     string        `json:"conntrack"` // absent, module or builtin
	Loaded        bool          `json:"loaded"`
	Entries       int64         `json:"entries"`
	Max           int64         `json:"max"`
	Buckets       int64         `json:"buckets"`
	Chains        []chainStatus `json:"chains"`
	Forecast      boot.Forecast `json:"forecast"`
}

type chainStatus struct {
	Family  string `json:"family"`
	Table   string `json:"table"`
	Chain   string `json:"chain"`
	Rules   int    `json:"rules"`
	Packets uint64 `json:"packets"` // since the rules were loaded
	Bytes   uint64 `json:"bytes"`
}

func (e *env) readStatus(ctx context.Context) (*statusReport, error) {
	s, err := snapshot.Read(ctx, snapshot.Options{Root: e.root})
	if err != nil {
		return nil, err
	}
	live, err := s.Live()
	if err != nil {
		return nil, err
	}
	r := &statusReport{
		FormatVersion: planner.FormatVersion,
		Host:          live.Host.Name, Kernel: live.Host.Kernel,
		Conntrack: string(live.Conntrack.Kind), Loaded: live.Conntrack.Loaded,
		Entries: live.Conntrack.Count, Max: live.Conntrack.Max, Buckets: live.Conntrack.Hashsize,
		Chains: []chainStatus{}, Forecast: boot.Foresee(live),
	}
	for _, rs := range live.Rulesets {
		if !rs.Primary {
			continue // counters are read through plain iptables
		}
		for _, t := range rs.Tables {
			for _, c := range t.Chains {
				if !strings.HasPrefix(c.Name, declared.OwnPrefix) {
					continue
				}
				counters, err := (iptables.Tools{}).Counters(rs.Family, t.Name, c.Name)
				if err != nil {
					return nil, err
				}
				cs := chainStatus{Family: string(rs.Family), Table: t.Name, Chain: c.Name, Rules: len(counters)}
				for _, n := range counters {
					cs.Packets += n.Packets
					cs.Bytes += n.Bytes
				}
				r.Chains = append(r.Chains, cs)
			}
		}
	}
	return r, nil
}

func (r *statusReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, kernel %s\n", view.Clean(r.Host), view.Clean(r.Kernel))
	switch {
	case r.Conntrack == string(host.ConntrackAbsent):
		b.WriteString("connection tracking: this kernel has none\n")
	case !r.Loaded:
		b.WriteString("connection tracking: a module, not loaded\n")
	default:
		kind := "a loaded module"
		if r.Conntrack == string(host.ConntrackBuiltin) {
			kind = "built in"
		}
		fmt.Fprintf(&b, "connection tracking: %s, %s\n", kind, fill(r.Entries, r.Max))
		fmt.Fprintf(&b, "hash table: %d buckets\n", r.Buckets)
	}
	fmt.Fprintf(&b, "the next boot: %s\n", view.Boot(r.Forecast))
	if len(r.Chains) == 0 {
		b.WriteString("ctplan has no rules here\n")
		return b.String()
	}
	fmt.Fprintf(&b, "%-6s %-7s %-20s %6s %14s\n", "family", "table", "chain", "rules", "packets")
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "%-6s %-7s %-20s %6d %14d\n", view.Clean(c.Family), view.Clean(c.Table), view.Clean(c.Chain), c.Rules, c.Packets)
	}
	return b.String()
}

// fill says how full the table is. A max of 0 is none.
func fill(entries, max int64) string {
	if max <= 0 {
		return fmt.Sprintf("%d entries, without a limit", entries)
	}
	return fmt.Sprintf("%d of %d entries (%.0f %%)", entries, max, 100*float64(entries)/float64(max))
}
