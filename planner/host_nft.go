package planner

// NFTTable is a table of nftables that iptables-save does not show, or not
// whole. Names and texts come from whoever wrote the rules.
type NFTTable struct {
	Family string     `json:"family"` // ip, ip6, inet, arp, bridge or netdev
	Name   string     `json:"name"`
	Chains []NFTChain `json:"chains,omitempty"` // base chains: those that the kernel calls
	Items  []NFTItem  `json:"items,omitempty"`  // what of it needs connection tracking (NFTModule)
	Drops  bool       `json:"drops,omitempty"`  // some rule drops, rejects or queues
}

// NFTChain is a base chain.
type NFTChain struct {
	Name   string `json:"name"`
	Type   string `json:"type"` // filter, nat or route
	Hook   string `json:"hook"` // prerouting, input, forward, output, postrouting, ingress or egress
	Policy string `json:"policy,omitempty"`
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
