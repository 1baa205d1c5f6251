package host

// NFTConf is what nftables.service loads at boot, by its files: tables as they
// stand once all is loaded, from an empty ruleset.
type NFTConf struct {
	Mains  []string // the files that the service names, in order
	Tables []NFTConfTable
	// Loads are the include lines that were followed, and Mains, in the order in
	// which their files are read; a file that is read twice is there twice.
	Loads []NFTConfLoad
	Flush NFTSite // the last "flush ruleset"; no line: there is none
	// Doubt says why Tables may not be all, or not as they will stand: the place,
	// and what was not followed. It is empty where all was.
	Doubt string
}

// NFTConfLoad is the reading of one file.
type NFTConfLoad struct {
	File string
	From NFTSite // the include line; no line: the service names it
}

// NFTSite is where a statement stands.
type NFTSite struct {
	File string
	Line int  // of its first word
	Span Span // from its first word to its last, without what ends it
	// Times is how often the statement is read: its file may be included twice.
	Times int
	// Fixed says why its text cannot be cut out; empty where it can.
	Fixed string
}

// NFTConfTable is a table as files declare it.
type NFTConfTable struct {
	Family, Name string
	Site         NFTSite // of its first mention
	Chains       []NFTConfChain
	Items        []NFTConfItem
}

// NFTConfChain is a chain, with its rules as they come to stand.
type NFTConfChain struct {
	Name    string
	Site    NFTSite  // of its first mention
	Base    string   // where the kernel calls it, "TYPE HOOK PRIORITY"; empty without a hook
	Devices []string // of ingress and egress, sorted
	Policy  string   // empty: accept
	Rules   []NFTConfRule
	// Doubt says why its rules, or where the kernel calls it, are not known.
	Doubt string
}

// NFTConfRule is a rule.
type NFTConfRule struct {
	Site NFTSite
	Text string // in nftconf.Canonical's spelling, what is defined in its place
	// Vague is whether Text is not all that it says: a rule with rules of its own in
	// braces, or a name that nothing defines.
	Vague bool
}

// NFTConfItem is a set, a map, an object or a flowtable.
type NFTConfItem struct {
	Kind string // as nft(8) calls it: set, map, flowtable, ct helper, counter, …
	Name string
	Site NFTSite
}
