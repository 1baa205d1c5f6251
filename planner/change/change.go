// Package change is what a stage of planning returns, as values: changes, the
// steps that carry them out and take them back, edits of files, and findings,
// which block a plan or warn.
package change

import (
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// Action is what a change does; its value is the glyph that views print.
type Action string

// The actions.
const (
	Create Action = "+"
	Update Action = "~"
	Delete Action = "-"
	Run    Action = "!"
)

// String is the action's name in JSON.
func (a Action) String() string {
	switch a {
	case Create:
		return "create"
	case Update:
		return "update"
	case Delete:
		return "delete"
	default:
		return "run"
	}
}

// Change is one thing that apply does to one object. It is one of
// *RulesChange, *NFTChange, *FileChange, *SysctlChange, *HashsizeChange,
// *ModuleChange, *ServiceChange.
type Change interface {
	Meta() Meta
	sealed()
}

// Meta is what every change has.
type Meta struct {
	Address  string         // unique in a plan: "iptables.ipv4.raw", "file./etc/sysctl.conf"
	Action   Action         //
	Reasons  []string       // why: sentences without a full stop
	Sources  []declared.Pos // the HCL that asked for it, without repeats
	Disrupts string         // what it disturbs while it happens; empty when nothing
}

// RulesChange changes one table of one family in the kernel. It happens in
// two passes, so that nothing closes before everything is open: see Passes.
type RulesChange struct {
	M       Meta
	Family  host.Family
	Backend host.Backend
	Table   string
	Before  []string // the table's chain and rule lines, as iptables-save prints them, without counters
	After   []string // the same as they will stand
	Open    []RuleOp // adds accepts and new NOTRACK rules
	Close   []RuleOp // takes away what is no longer wanted
	Last    []RuleOp // takes away what keeps out of tracking, when nothing asks for states any more
	Origin  map[string]declared.Pos
	Twins   []Twins // of the rules on state that it translates, in their order
}

// Twins are the stateless rules that stand for one on connection state. Rules are
// lines as iptables-save prints them.
type Twins struct {
	Rule  string   `json:"rule"` // the one on state
	Twins []string `json:"twins"`
	Grade string   `json:"grade"` // exact, wider, narrower, wider and narrower; empty where the rule comes back
	Why   []string `json:"why"`   // what makes them so, and what else changes: without a full stop
	Stays bool     `json:"stays"` // whether the rule stays behind them, for what is tracked
}

// FileChange writes, creates (Before does not exist) or removes (After does
// not exist) a file. Kind tells by which name the file's address begins.
type FileChange struct {
	M      Meta
	Before host.File
	After  host.File
}

// SysctlChange sets a key under /proc/sys.
type SysctlChange struct {
	M             Meta
	Key           string
	Before, After string
}

// HashsizeChange resizes the hash table, in buckets, through sysfs.
type HashsizeChange struct {
	M             Meta
	Before, After int64
}

// ModuleChange loads or unloads a kernel module.
type ModuleChange struct {
	M      Meta
	Module string
	Load   bool // false: unload
}

// ServiceChange restarts the packet filter's service, which takes the rules
// away, unloads nf_conntrack where it can, and brings the saved rules back.
type ServiceChange struct {
	M    Meta
	Step ServiceStep
}

func (c *RulesChange) Meta() Meta    { return c.M }
func (c *NFTChange) Meta() Meta      { return c.M }
func (c *FileChange) Meta() Meta     { return c.M }
func (c *SysctlChange) Meta() Meta   { return c.M }
func (c *HashsizeChange) Meta() Meta { return c.M }
func (c *ModuleChange) Meta() Meta   { return c.M }
func (c *ServiceChange) Meta() Meta  { return c.M }

func (*RulesChange) sealed()    {}
func (*NFTChange) sealed()      {}
func (*FileChange) sealed()     {}
func (*SysctlChange) sealed()   {}
func (*HashsizeChange) sealed() {}
func (*ModuleChange) sealed()   {}
func (*ServiceChange) sealed()  {}
