package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/ctplan/ctplan/internal/cause"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/nft"
	"github.com/ctplan/ctplan/schema"
)

// varFlags are the flags that set variables.
type varFlags struct{ vars, files []string }

func (v *varFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&v.vars, "var", nil, "set a variable: `NAME=VALUE` (repeatable)")
	flags.StringArrayVar(&v.files, "var-file", nil, "set variables from a `FILE` of NAME = VALUE lines (repeatable)")
}

// config is HCL that has been read and not yet evaluated, because host.* can
// differ from one evaluation to the next.
type config struct {
	env     *env
	sources []schema.Source
	vars    schema.Vars
	said    []string // diagnostics printed before: many hosts share them
}

// openConfig reads the HCL at the path in args, "." without one.
func openConfig(e *env, args []string, v varFlags) (*config, error) {
	path := "."
	if len(args) > 0 {
		path = args[0]
	}
	sources, err := schema.ReadSources(path)
	if err != nil {
		if errors.Is(err, schema.ErrNoSources) {
			return nil, hint(err, "give the path of the configuration: an .hcl file or a folder of them")
		}
		return nil, err
	}
	return &config{env: e, sources: sources, vars: schema.Vars{Flags: v.vars, Files: v.files, Env: e.environ}}, nil
}

// evaluate loads the configuration for a host and returns what it declares
// for it, without its rules. Diagnostics go to stderr; after an error of theirs
// the error is a status.
func (c *config) evaluate(facts *schema.Facts) (declared.Desired, string, error) {
	conf, diags := schema.Load(c.sources, c.vars, facts)
	if err := c.diagnose(diags); err != nil {
		return declared.Desired{}, "", err
	}
	desired, diags := conf.For(facts.Host.Name)
	if err := c.diagnose(diags); err != nil {
		return declared.Desired{}, "", err
	}
	return desired, conf.Digest(), nil
}

// render turns what is declared into rules for a host.
func render(d *declared.Desired, l host.Live) {
	d.Chains, d.Native = iptables.Render(*d, l), nft.Render(*d)
}

// diagnose is env.diagnose, without saying a thing twice.
func (c *config) diagnose(d schema.Diagnostics) error {
	var key bytes.Buffer
	if err := d.WriteText(&key, 0, false); err != nil {
		return err
	}
	if key.Len() == 0 || slices.Contains(c.said, key.String()) {
		return nil
	}
	c.said = append(c.said, key.String())
	return c.env.diagnose(d)
}

// planned is a host with the plan for it, and what the plan was made from.
type planned struct {
	desired  declared.Desired
	digest   string
	snapshot *snapshot.Snapshot
	live     host.Live
	plan     planner.Plan

	causes  map[string][]cause.Cause // of drift, by address; nil where nothing differs or nobody asked
	ignored int                      // changes and blocks of drift that were left out
}

// diff makes the plan.
func diff(desired declared.Desired, digest string, s *snapshot.Snapshot) (*planned, error) {
	return planBy(snapshot.Plan, desired, digest, s)
}

// draft makes the plan without judging it.
func draft(desired declared.Desired, digest string, s *snapshot.Snapshot) (*planned, error) {
	return planBy(snapshot.Draft, desired, digest, s)
}

func planBy(plan func(declared.Desired, host.Live) (planner.Plan, error), desired declared.Desired, digest string, s *snapshot.Snapshot) (*planned, error) {
	live, err := s.For(desired.Files, desired.InitScripts).Live()
	if err != nil {
		return nil, err
	}
	render(&desired, live)
	made, err := plan(desired, live)
	if err != nil {
		return nil, err
	}
	return &planned{desired: desired, digest: digest, snapshot: s, live: live, plan: made}, nil
}

// judge judges a plan, by the connections that are open on this host now if it
// can cut any of them off.
func (e *env) judge(p *planned) error {
	plan := func() (err error) {
		p.plan, err = snapshot.Plan(p.desired, p.live)
		return err
	}
	if !planner.NeedsConnections(p.plan) {
		return plan()
	}
	s := *p.snapshot
	p.snapshot = &s
	defer collectLess(s.Conntrack.Count)()
	return s.JudgeConnections(e.root, e.getenv("SSH_CONNECTION"), func(s *snapshot.Snapshot) error {
		p.live.Connections, p.live.Notes = s.Connections, s.Notes
		return plan()
	})
}

// needRoot explains why reading a host takes root.
func (e *env) needRoot(doing string) error { return e.needRootOr(doing, "run it with sudo") }

// needRootOr is the same with another way out.
func (e *env) needRootOr(doing, way string) error {
	if e.euid == 0 {
		return nil
	}
	return hint(fmt.Errorf("%s needs root, because iptables-save does", doing), "%s", way)
}

// offHost is the way out where a snapshot will do.
const offHost = "run it with sudo, or plan off the host: sudo ctplan snapshot -o FILE there, ctplan plan --snapshot FILE here"

// planHost drafts a plan for the host that ctplan runs on. The rules are being
// read while the HCL is evaluated.
func (c *config) planHost(reader *snapshot.Reader) (*planned, error) {
	desired, digest, err := c.evaluate(&schema.Facts{Host: reader.Host(), Conntrack: reader.Conntrack()})
	if err != nil {
		return nil, err
	}
	s, err := reader.Finish(desired.Files, desired.InitScripts)
	if err != nil {
		return nil, err
	}
	return draft(desired, digest, s)
}

// planSnapshot plans for the host that a snapshot was taken of.
func (c *config) planSnapshot(s *snapshot.Snapshot) (*planned, error) {
	desired, digest, err := c.evaluate(&schema.Facts{Host: s.Host, Conntrack: s.Conntrack})
	if err != nil {
		return nil, err
	}
	if s, err = s.With(desired.Files, desired.InitScripts); err != nil {
		return nil, err
	}
	if missing := s.Missing(desired.Files, desired.InitScripts); len(missing) > 0 {
		if s.ByScript() {
			return nil, hint(fmt.Errorf("the snapshot of %s does not hold %s, which the configuration names", s.Host.Name, missing[0]),
				"name it to the script: ssh HOST sh -s -- %s < snapshot.sh", strings.Join(missing, " "))
		}
		return nil, hint(fmt.Errorf("the snapshot of %s does not hold %s, which the configuration names", s.Host.Name, missing[0]),
			"take it with the configuration at hand: ctplan snapshot -o FILE PATH")
	}
	return diff(desired, digest, s)
}
