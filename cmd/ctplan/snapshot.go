package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/schema"
)

func newSnapshot(e *env) *cobra.Command {
	var vars varFlags
	var out string
	var connections int
	var anonymise, script bool
	var from string
	cmd := &cobra.Command{
		Use:   "snapshot [PATH]",
		Short: "Save what a host is, to plan for it elsewhere",
		Long: `Writes the host's rules, files, sysctls, modules and open connections as one JSON object, from
which plan --snapshot makes the plan that plan makes here. A configuration at
PATH matters only where it names files other than the usual ones.

With --script, prints a POSIX shell script instead that takes one on hosts
without ctplan: it reads, writes to its output alone, and decides nothing. With
--from, writes what that has printed as the JSON object that it stands for;
plan --snapshot takes either.

With --anonymise, the addresses that the host talks to are replaced where
neither its rules nor the configuration at PATH name them.

The rules of a firewall are confidential: the file has mode 0600.`,
		Example: `  ctplan snapshot -o web-1.json
  ctplan snapshot --script > snapshot.sh
  ssh root@web-1 sh -s < snapshot.sh > web-1.snapshot && ctplan plan --snapshot web-1.snapshot`,
		Args: atMost(1, "one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if script {
				if len(args) > 0 || from != "" || anonymise {
					return hint(errors.New("--script prints one script for every host, and takes nothing else"), "ctplan snapshot --script > snapshot.sh")
				}
				_, err := io.WriteString(e.stdout, snapshot.Script)
				return err
			}
			s, desired, err := e.snapshotFrom(cmd.Context(), from, args, vars)
			if err != nil {
				return err
			}
			if connections > 0 && from == "" {
				s.ReadConnections(e.root, e.getenv("SSH_CONNECTION"), connections)
			}
			if anonymise {
				var keep []netip.Prefix
				for _, t := range slices.Concat(desired.Notrack, desired.Accept) {
					keep = slices.Concat(keep, t.Local, t.Remote)
				}
				s.Anonymise(keep)
			}
			for _, n := range s.Notes {
				e.warnf("%s", n)
			}
			if out != "" && out != "-" {
				return s.WriteFile(out)
			}
			return s.Encode(e.stdout)
		},
	}
	vars.register(cmd.Flags())
	cmd.Flags().StringVarP(&out, "out", "o", "", "write to `FILE` with mode 0600; standard output without")
	cmd.Flags().IntVar(&connections, "connections", snapshot.DefaultConnections, "keep at most `N` tracked connections; 0: read none")
	cmd.Flags().BoolVar(&script, "script", false, "print the script that takes a snapshot without ctplan")
	cmd.Flags().StringVar(&from, "from", "", "read no host but what the script printed into `FILE`; - is standard input")
	cmd.Flags().BoolVar(&anonymise, "anonymise", false, "put stand-ins for the addresses of connections, that rules treat alike")
	return cmd
}

// snapshotFrom takes a snapshot of this host, or reads the file of another.
func (e *env) snapshotFrom(ctx context.Context, from string, args []string, vars varFlags) (*snapshot.Snapshot, declared.Desired, error) {
	if from == "" {
		if err := e.needRoot("taking a snapshot"); err != nil {
			return nil, declared.Desired{}, err
		}
		return takeSnapshot(ctx, e, args, vars)
	}
	s, err := snapshot.ReadFile(from, e.stdin)
	if err != nil || len(args) == 0 {
		return s, declared.Desired{}, err
	}
	c, err := openConfig(e, args, vars)
	if err != nil {
		return nil, declared.Desired{}, err
	}
	desired, _, err := c.evaluate(&schema.Facts{Host: s.Host, Conntrack: s.Conntrack})
	if err != nil {
		return nil, desired, err
	}
	s, err = s.With(desired.Files, desired.InitScripts)
	return s, desired, err
}

func takeSnapshot(ctx context.Context, e *env, args []string, vars varFlags) (*snapshot.Snapshot, declared.Desired, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var c *config
	if len(args) > 0 {
		var err error
		if c, err = openConfig(e, args, vars); err != nil {
			return nil, declared.Desired{}, err
		}
	}
	reader, err := snapshot.Start(ctx, e.root, nil)
	if err != nil {
		return nil, declared.Desired{}, err
	}
	var desired declared.Desired
	if c != nil {
		if desired, _, err = c.evaluate(&schema.Facts{Host: reader.Host(), Conntrack: reader.Conntrack()}); err != nil {
			return nil, declared.Desired{}, err
		}
	}
	s, err := reader.Finish(desired.Files, desired.InitScripts)
	return s, desired, err
}
