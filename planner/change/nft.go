package change

import (
	"slices"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// NFTChange changes one table of nftables. All those of a plan happen at once:
// the kernel takes one transaction for all tables of all families, or nothing.
type NFTChange struct {
	M             Meta
	Family, Table string
	Before        []string // the chains that change, about as nft lists them
	After         []string // the same as they will stand
	Ops           []NFTOp
	Origin        map[string]declared.Pos // of lines of After
}

// NFTOpKind is what an NFTOp does.
type NFTOpKind string

// The kinds of NFTOp.
const (
	AddNFTTable    NFTOpKind = "add-table"    // create a table of ctplan's own
	DeleteNFTTable NFTOpKind = "delete-table" // delete it; it is empty
	SetNFTChain    NFTOpKind = "set-chain"    // create one of ctplan's chains, or replace its rules
	DropNFTChain   NFTOpKind = "drop-chain"   // flush and delete one of ctplan's chains
	InsertNFTRule  NFTOpKind = "insert-rule"  // insert Rule at Pos of Chain
	DeleteNFTRule  NFTOpKind = "delete-rule"  // delete Rule, which stands at Pos of Chain
)

// NFTOp is one operation on a table of nftables. It carries enough to be taken
// back, but for what of a rule of others nobody has words for: the journal keeps
// those as the kernel has them.
type NFTOp struct {
	Kind   NFTOpKind `json:"kind"`
	Family string    `json:"family"` // of the table: ip, ip6 or inet
	Table  string    `json:"table"`
	Chain  string    `json:"chain,omitempty"`

	Want *NFTContent `json:"want,omitempty"` // set-chain: as the chain shall stand
	Was  *NFTContent `json:"was,omitempty"`  // set-chain, drop-chain: as it stood; nil where there was none

	Pos  int           `json:"pos,omitempty"`  // from 1, at the moment when the operation runs
	Rule *host.NFTRule `json:"rule,omitempty"` // insert-rule, delete-rule
	Sets []host.NFTSet `json:"sets,omitempty"` // those without a name of their own that Rule looks up
	// Kept is a rule of others as the kernel has it, for its way back; nil in a
	// plan.
	Kept *NFTKept `json:"kept,omitempty"`
}

// NFTKept is a rule as the kernel told of it, with the sets that have no name and
// go with it: attributes of netlink (include/uapi/linux/netfilter/nf_tables.h).
type NFTKept struct {
	Expressions host.Hex     `json:"expressions"` // the content of NFTA_RULE_EXPRESSIONS
	Userdata    host.Hex     `json:"userdata,omitempty"`
	Sets        []NFTKeptSet `json:"sets,omitempty"`
}

// NFTKeptSet is one of those sets.
type NFTKeptSet struct {
	Name     string     `json:"name"`
	Set      host.Hex   `json:"set"`                // attributes of the set but its table, name and handle
	Elements []host.Hex `json:"elements,omitempty"` // the content of NFTA_SET_ELEM_LIST_ELEMENTS, of a message each
}

// NFTContent is a chain, with the sets that have no name of their own and that its
// rules look up.
type NFTContent struct {
	Chain host.NFTChain `json:"chain"`
	Sets  []host.NFTSet `json:"sets,omitempty"`
}

// Inverse returns the operation that takes op back.
func (op NFTOp) Inverse() NFTOp {
	inv := op
	switch op.Kind {
	case AddNFTTable:
		inv.Kind = DeleteNFTTable
	case DeleteNFTTable:
		inv.Kind = AddNFTTable
	case SetNFTChain:
		if inv.Want, inv.Was = op.Was, op.Want; op.Was == nil {
			inv.Kind = DropNFTChain
		}
	case DropNFTChain:
		inv.Kind, inv.Want, inv.Was = SetNFTChain, op.Was, nil
	case InsertNFTRule:
		inv.Kind = DeleteNFTRule
	case DeleteNFTRule:
		inv.Kind = InsertNFTRule
	}
	return inv
}

// NFTStep changes nftables by one transaction of the kernel.
type NFTStep struct {
	Ops []NFTOp `json:"ops"`
}

// Inverse returns the step that takes s back.
func (s *NFTStep) Inverse() *NFTStep {
	inv := &NFTStep{}
	for _, op := range slices.Backward(s.Ops) {
		inv.Ops = append(inv.Ops, op.Inverse())
	}
	return inv
}

// Touches reports whether the step changes a table.
func (s *NFTStep) Touches(family, table string) bool {
	return slices.ContainsFunc(s.Ops, func(op NFTOp) bool { return op.Family == family && op.Table == table })
}
