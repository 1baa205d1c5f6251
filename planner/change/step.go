package change

import (
	"slices"

	"github.com/ctplan/ctplan/planner/host"
)

// RuleOpKind is what a RuleOp does.
type RuleOpKind string

// The kinds of RuleOp.
const (
	SetChain   RuleOpKind = "set-chain"   // create one of ctplan's chains, or replace its rules
	DropChain  RuleOpKind = "drop-chain"  // flush and delete one of ctplan's chains
	InsertRule RuleOpKind = "insert-rule" // insert Rule at Pos of Chain
	DeleteRule RuleOpKind = "delete-rule" // delete Rule, which stands at Pos of Chain
)

// RuleOp is one operation on a table. It carries enough to be undone exactly.
type RuleOp struct {
	Kind    RuleOpKind `json:"kind"`
	Chain   string     `json:"chain"`
	Pos     int        `json:"pos,omitempty"`     // from 1, at the moment when the operation runs
	Rule    string     `json:"rule,omitempty"`    // as iptables-save prints it behind "-A CHAIN "
	Rules   []string   `json:"rules,omitempty"`   // set-chain: the rules it shall have
	Was     []string   `json:"was,omitempty"`     // set-chain, drop-chain: the rules it had
	Existed bool       `json:"existed,omitempty"` // set-chain: it was there before
}

// Inverse returns the operation that takes op back.
func (op RuleOp) Inverse() RuleOp {
	inv := op
	switch op.Kind {
	case SetChain:
		if op.Existed {
			inv.Rules, inv.Was = op.Was, op.Rules
		} else {
			inv = RuleOp{Kind: DropChain, Chain: op.Chain, Was: op.Rules}
		}
	case DropChain:
		inv = RuleOp{Kind: SetChain, Chain: op.Chain, Rules: op.Was}
	case InsertRule:
		inv.Kind = DeleteRule
	case DeleteRule:
		inv.Kind = InsertRule
	}
	return inv
}

// Section is a run of operations on one table, committed as one: the kernel
// takes all of it or nothing.
type Section struct {
	Table string   `json:"table"`
	Ops   []RuleOp `json:"ops"`
}

// Step is one thing that apply does and can take back as a whole. Exactly one
// of Rules, NFT, File, Sysctl, Hashsize, Module and Service is set.
type Step struct {
	Addresses []string `json:"addresses"` // the changes that it carries out

	Rules    *RulesStep    `json:"rules,omitempty"`
	NFT      *NFTStep      `json:"nft,omitempty"`
	File     *FileStep     `json:"file,omitempty"`
	Sysctl   *SysctlStep   `json:"sysctl,omitempty"`
	Hashsize *HashsizeStep `json:"hashsize,omitempty"`
	Module   *ModuleStep   `json:"module,omitempty"`
	Service  *ServiceStep  `json:"service,omitempty"`
}

// RulesStep changes one family's rules through one backend, section by section.
type RulesStep struct {
	Family   host.Family  `json:"family"`
	Backend  host.Backend `json:"backend"`
	Sections []Section    `json:"sections"`
	// Trim are tables as they were before anything was changed: what else of
	// them is left, and treats no packet, goes at the end.
	Trim []TrimTable `json:"trim,omitempty"`
}

// TrimTable is a table by the built-in chains that it had; none where there was
// no table.
type TrimTable struct {
	Name   string   `json:"name"`
	Chains []string `json:"chains,omitempty"`
}

// FileStep replaces a file that stands as Before by After.
type FileStep struct {
	Before host.File `json:"before"`
	After  host.File `json:"after"`
}

// SysctlStep sets a key under /proc/sys.
type SysctlStep struct {
	Key    string `json:"key"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// HashsizeStep resizes the hash table, in buckets.
type HashsizeStep struct {
	Before int64 `json:"before"`
	After  int64 `json:"after"`
}

// ModuleStep loads or unloads a kernel module.
type ModuleStep struct {
	Module string `json:"module"`
	Load   bool   `json:"load"`
}

// ServiceStep restarts the packet filter's service. It is its own inverse:
// what it brings is what the files say.
type ServiceStep struct {
	Commands [][]string    `json:"commands"` // in order; each a program with its arguments
	Rules    []ServedRules `json:"rules"`    // what it takes away and brings back
	// KeepsRules is whether the rules must be the same afterwards.
	KeepsRules bool `json:"keeps_rules"`
}

// ServedRules are the rules of one family that a service has brought.
type ServedRules struct {
	Family  host.Family  `json:"family"`
	Backend host.Backend `json:"backend"`
}

// Inverse returns the step that takes s back. Sections run in reverse, and
// the operations within them too.
func (s Step) Inverse() Step {
	inv := Step{Addresses: s.Addresses}
	switch {
	case s.Rules != nil:
		r := &RulesStep{Family: s.Rules.Family, Backend: s.Rules.Backend}
		for _, sec := range slices.Backward(s.Rules.Sections) {
			undo := Section{Table: sec.Table}
			for _, op := range slices.Backward(sec.Ops) {
				undo.Ops = append(undo.Ops, op.Inverse())
			}
			r.Sections = append(r.Sections, undo)
		}
		inv.Rules = r
	case s.NFT != nil:
		inv.NFT = s.NFT.Inverse()
	case s.File != nil:
		inv.File = &FileStep{Before: s.File.After, After: s.File.Before}
	case s.Sysctl != nil:
		inv.Sysctl = &SysctlStep{Key: s.Sysctl.Key, Before: s.Sysctl.After, After: s.Sysctl.Before}
	case s.Hashsize != nil:
		inv.Hashsize = &HashsizeStep{Before: s.Hashsize.After, After: s.Hashsize.Before}
	case s.Module != nil:
		inv.Module = &ModuleStep{Module: s.Module.Module, Load: !s.Module.Load}
	case s.Service != nil:
		inv.Service = s.Service
	}
	return inv
}

// StepsOf returns what apply does for changes, in order. Neighbouring rule
// changes of one family and backend become one step of several sections: what
// opens first, what closes last. Those of nftables become one step, of all
// tables.
func StepsOf(changes []Change) []Step {
	var steps []Step
	for i := 0; i < len(changes); i++ {
		c := changes[i]
		addr := []string{c.Meta().Address}
		switch c := c.(type) {
		case *RulesChange:
			run := []*RulesChange{c}
			for i+1 < len(changes) {
				next, ok := changes[i+1].(*RulesChange)
				if !ok || next.Family != c.Family || next.Backend != c.Backend {
					break
				}
				run = append(run, next)
				addr = append(addr, next.M.Address)
				i++
			}
			steps = append(steps, Step{Addresses: addr, Rules: RulesStepOf(run)})
		case *NFTChange:
			step := &NFTStep{Ops: c.Ops}
			for i+1 < len(changes) {
				next, ok := changes[i+1].(*NFTChange)
				if !ok {
					break
				}
				step.Ops = slices.Concat(step.Ops, next.Ops)
				addr = append(addr, next.M.Address)
				i++
			}
			steps = append(steps, Step{Addresses: addr, NFT: step})
		case *FileChange:
			steps = append(steps, Step{Addresses: addr, File: &FileStep{Before: c.Before, After: c.After}})
		case *SysctlChange:
			steps = append(steps, Step{Addresses: addr, Sysctl: &SysctlStep{Key: c.Key, Before: c.Before, After: c.After}})
		case *HashsizeChange:
			steps = append(steps, Step{Addresses: addr, Hashsize: &HashsizeStep{Before: c.Before, After: c.After}})
		case *ModuleChange:
			steps = append(steps, Step{Addresses: addr, Module: &ModuleStep{Module: c.Module, Load: c.Load}})
		case *ServiceChange:
			steps = append(steps, Step{Addresses: addr, Service: &c.Step})
		}
	}
	return steps
}

// RulesStepOf orders the passes of one family's tables. The changes come in the
// order in which tables open (filter before raw), so closing runs backwards.
func RulesStepOf(run []*RulesChange) *RulesStep {
	s := &RulesStep{Family: run[0].Family, Backend: run[0].Backend}
	for _, c := range run {
		if len(c.Open) > 0 {
			s.Sections = append(s.Sections, Section{Table: c.Table, Ops: c.Open})
		}
	}
	close := func(table string, ops []RuleOp) {
		if len(ops) == 0 {
			return
		}
		// A table that closes right after it opened needs one commit, not two.
		if n := len(s.Sections); n > 0 && s.Sections[n-1].Table == table {
			s.Sections[n-1].Ops = slices.Concat(s.Sections[n-1].Ops, ops)
			return
		}
		s.Sections = append(s.Sections, Section{Table: table, Ops: ops})
	}
	for _, c := range slices.Backward(run) {
		close(c.Table, c.Close)
	}
	for _, c := range run {
		close(c.Table, c.Last)
	}
	return s
}
