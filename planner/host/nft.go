package host

// NFTTable is a table of nftables that iptables-save does not show, or not
// whole. Names and texts come from whoever wrote the rules. Tables stand in the
// order in which they were made, chains in that in which they were added to
// theirs. Of base chains with one hook and priority the kernel calls the newest
// first (net/netfilter/core.c, nf_hook_entries_grow; measured on 6.18).
type NFTTable struct {
	Family string     `json:"family"` // ip, ip6, inet, arp, bridge or netdev
	Name   string     `json:"name"`
	Chains []NFTChain `json:"chains,omitempty"`
	Sets   []NFTSet   `json:"sets,omitempty"`
	Items  []NFTItem  `json:"items,omitempty"` // what of it needs connection tracking (NFTModule)
	Drops  bool       `json:"drops,omitempty"` // some rule drops, rejects or queues
	// Whole is whether Chains are all chains with all their rules, and Sets all
	// sets. Without it Chains are base chains without rules, and what the table
	// does with a packet is not known. A machine with another order of bytes than
	// little-endian has none that is whole: numbers of the host stand in rules.
	Whole   bool `json:"whole,omitempty"`
	Dormant bool `json:"dormant,omitempty"` // the kernel does not call its chains
}

// NFTChain is a chain: one that the kernel calls where it has a hook, else one
// that only rules call.
type NFTChain struct {
	Name     string    `json:"name"`
	Type     string    `json:"type,omitempty"`     // filter, nat or route; empty without a hook
	Hook     string    `json:"hook,omitempty"`     // prerouting, input, forward, output, postrouting, ingress or egress
	Priority int       `json:"priority,omitempty"` // in the hook: the lower comes first
	Policy   string    `json:"policy,omitempty"`   // accept or drop
	Devices  []string  `json:"devices,omitempty"`  // of ingress and egress
	Rules    []NFTRule `json:"rules,omitempty"`
}

// Base is whether the kernel calls it.
func (c *NFTChain) Base() bool { return c.Hook != "" }

// NFTRule is a rule: a program of expressions, one after the other, until one
// breaks it off or gives a verdict.
type NFTRule struct {
	Handle uint64     `json:"handle"` // by which it is deleted
	Text   string     `json:"text"`   // what it says, about as nft prints it
	Exprs  NFTProgram `json:"exprs,omitempty"`
	// Comment is kept with it for people, and part of Text.
	Comment string `json:"comment,omitempty"`
}

// NFTExpr is an expression by the name that the kernel has for it, with its
// parameters: numbers are as in include/uapi/linux/netfilter/nf_tables.h, and
// each expression uses the fields that its attributes there have a counterpart
// in. Registers are as the kernel dumps them: 1 to 4 have 16 bytes each, 8 to 23
// are the same storage in parts of 4, and 0, in Dst, is the verdict.
type NFTExpr struct {
	Name string `json:"name"`
	// Src are the registers that it reads (cmp, range, bitwise, byteorder,
	// lookup, dynset: the key, exthdr, payload, meta, ct: the value to set, …);
	// Src2 is a second one (bitwise of two registers, dynset: data, nat: the port,
	// in Src the address).
	Src  uint32 `json:"src,omitempty"`
	Src2 uint32 `json:"src2,omitempty"`
	Src3 uint32 `json:"src3,omitempty"` // nat: the last address, fwd and such: what comes third
	Src4 uint32 `json:"src4,omitempty"` // nat: the last port
	Dst  uint32 `json:"dst,omitempty"`  // the register that it writes

	Base   uint32 `json:"base,omitempty"`   // payload: 0 link layer, 1 network, 2 transport, 3 inner
	Offset uint32 `json:"offset,omitempty"` // payload, exthdr: bytes
	Len    uint32 `json:"len,omitempty"`    // payload, exthdr, bitwise, byteorder: bytes
	Size   uint32 `json:"size,omitempty"`   // byteorder: bytes of one number; numgen and hash: the modulus
	Key    uint32 `json:"key,omitempty"`    // meta, ct, rt, socket, fib (its result); exthdr: the type; objref: the type of the object; nat, reject, numgen, hash: the type
	Op     uint32 `json:"op,omitempty"`     // cmp, range, bitwise, byteorder, exthdr, dynset
	Flags  uint32 `json:"flags,omitempty"`  // lookup, fib, limit, exthdr, nat, masq, redir, queue, connlimit, …; quota
	Code   uint32 `json:"code,omitempty"`   // reject: of ICMP; socket: the level; nat, tproxy: the family (NFPROTO_…)
	Dir    string `json:"dir,omitempty"`    // ct: original or reply; empty without a direction
	Sets   bool   `json:"sets,omitempty"`   // meta, ct, payload, exthdr: it writes what it else loads

	Data Hex `json:"data,omitempty"` // cmp, immediate: the value; range: the first; bitwise, of a shift: by how much; match, target: their private data
	To   Hex `json:"to,omitempty"`   // range: the last
	Mask Hex `json:"mask,omitempty"` // bitwise
	Xor  Hex `json:"xor,omitempty"`  // bitwise

	Verdict string `json:"verdict,omitempty"` // immediate: accept, drop, queue, continue, break, jump, goto, return, or "verdict N"
	Chain   string `json:"chain,omitempty"`   // immediate: that jump or goto leads to
	Set     string `json:"set,omitempty"`     // lookup, dynset, objref: the set or map
	Object  string `json:"object,omitempty"`  // objref: the object; match, target: their name, with "/REVISION" where that is not 0
	// Inner are the expressions that a dynset adds to its elements.
	Inner NFTProgram `json:"inner,omitempty"`
}

// NFTSet is a set, or a map.
type NFTSet struct {
	Name     string `json:"name"`
	Flags    uint32 `json:"flags,omitempty"`     // NFT_SET_…
	KeyType  uint32 `json:"key_type,omitempty"`  // nft's own number of it
	KeyLen   uint32 `json:"key_len"`             // bytes
	DataType uint32 `json:"data_type,omitempty"` // map: the same; NFTVerdicts: of verdicts
	DataLen  uint32 `json:"data_len,omitempty"`
	// ObjectType is of a map of objects: the type of those (NFT_OBJECT_…).
	ObjectType uint32   `json:"object_type,omitempty"`
	Fields     []uint32 `json:"fields,omitempty"` // of a concatenation of intervals: the bytes of each part, each of which takes whole fours in a key
	Exprs      []string `json:"exprs,omitempty"`  // what each element does with a packet that it matches: counter, limit, quota, connlimit, last
	Elements   Elements `json:"elements,omitempty"`
	// Unread is whether Elements are not all of them.
	Unread bool `json:"unread,omitempty"`
}

// NFTVerdicts is the type of data of a map of verdicts (NFT_DATA_VERDICT).
const NFTVerdicts = 0xffffff00

// Flags of a set (enum nft_set_flags).
const (
	NFTSetAnonymous = 1 << 0
	NFTSetConstant  = 1 << 1
	NFTSetInterval  = 1 << 2
	NFTSetMap       = 1 << 3
	NFTSetTimeout   = 1 << 4
	NFTSetEval      = 1 << 5 // packets fill it
	NFTSetObject    = 1 << 6
	NFTSetConcat    = 1 << 7
)

// Chain is the table's chain of a name; nil where it has none.
func (t *NFTTable) Chain(name string) *NFTChain {
	for i := range t.Chains {
		if t.Chains[i].Name == name {
			return &t.Chains[i]
		}
	}
	return nil
}

// FindNFT is the table of a family and a name; nil where there is none.
func FindNFT(tables []NFTTable, family, name string) *NFTTable {
	for i := range tables {
		if tables[i].Family == family && tables[i].Name == name {
			return &tables[i]
		}
	}
	return nil
}

// NFTItem is a rule, a chain, an object or a flowtable of a table.
type NFTItem struct {
	Kind   string `json:"kind"`             // as nft(8) calls it: rule, chain, flowtable, ct helper, …
	Chain  string `json:"chain,omitempty"`  // rule: where it stands
	Handle uint64 `json:"handle,omitempty"` // rule: by which it is deleted
	Name   string `json:"name,omitempty"`   // of everything but a rule
	Text   string `json:"text,omitempty"`   // rule: what it says, about as nft prints it; ct helper: of which protocol
	// Uses are its parts: expressions by the names that the kernel has for
	// them, "match NAME" and "target NAME" for those of xtables.
	Uses []string `json:"uses"`
}

// Namespace is another network namespace of the machine, in which something
// may need connection tracking.
type Namespace struct {
	Inode    uint64     // of the namespace: its identity until it goes
	Path     string     // where it is mounted; empty where it is not
	PID      int        // of a process in it; 0 where it has none
	Command  string     // that process's name
	NFT      []NFTTable // what iptables-nft has made is among them
	Rulesets []Ruleset  // of iptables-legacy
}

// NFTFile is a rules file of nft.
type NFTFile struct {
	File
	Lines    []NFTLine // that need connection tracking
	Includes []NFTInclude
}

// NFTLine is a line of such a file.
type NFTLine struct {
	Line int
	Text string
}

// NFTInclude is an include line: a path, which may be a pattern.
type NFTInclude struct {
	Path string
	Line int
}
