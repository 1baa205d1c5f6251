// Package host is what a host is, as values: its rules, modules, sysctls and
// files as the providers parsed them, what is connected, what it starts at boot.
//
// It knows nothing of plans. Every string in it may have been written by anyone.
package host

import (
	"net/netip"
	"slices"
	"strings"
)

// Live is what a host is, as the providers parsed it. The planner trusts its
// shape, not its content: every string in it may have been written by anyone.
type Live struct {
	Host      Host
	Conntrack Conntrack
	Modules   []Module          // loaded modules; nil on a kernel without module support
	Loading   *Loading          // what the kernel can load; nil where it loads nothing, or it was not read
	Trees     []ModuleTree      // of the running kernel, and of a newer one; nil where none was read
	Sysctls   map[string]Sysctl // the conntrack keys that exist, by dotted name
	Addresses []netip.Prefix    // of this host, with the lengths of their networks; nil where it routes nothing, or they were not read

	Rulesets   []Ruleset         // in the kernel: what iptables-save prints, the backend ctplan writes through first
	NFT        []NFTTable        // nftables in the kernel, as far as Rulesets do not hold them
	Links      map[string]uint32 // network interfaces by name: the index that nft's iif and oif compare; nil where it was not read
	NFTUnread  string            // why nftables could not be read: what it does with a packet is not known then
	Namespaces []Namespace       // other network namespaces of the machine in which something may need tracking
	SavedRules []Ruleset         // rules files that exist or that the HCL names; File is set

	SysctlFiles   []SysctlFile      // in the order in which boot applies them
	ModprobeFiles []ModprobeFile    // in the order in which modprobe reads them
	ModulesLoad   []ModulesLoadFile // in the order of their names
	InitScripts   []InitScript
	InitConfigs   []InitConfig
	Scripts       []BootScript      // of boot, the init scripts among them
	Initramfs     []ModulesLoadFile // what the initramfs loads
	NFTFiles      []NFTFile         // rules files of nft, with what they include
	NFTConf       NFTConf           // what comes of them at boot

	Boot *Boot // what starts at boot; nil where it was not read

	Connections *Connections // what is connected now; nil where it was not read

	Notes []string // what could not be read, and what follows from that
}

// Host identifies a machine and carries the facts that HCL reads as host.*.
type Host struct {
	Name      string `json:"name"`
	MachineID string `json:"machine_id,omitempty"` // /etc/machine-id
	BootID    string `json:"boot_id,omitempty"`    // /proc/sys/kernel/random/boot_id
	Kernel    string `json:"kernel"`               // release, as uname -r prints it
	// OS are the names of the operating system, its own and those that it is like:
	// ID and ID_LIKE of os-release(5).
	OS          []string `json:"os,omitempty"`
	CPUs        int64    `json:"cpus"`
	Memory      int64    `json:"memory"`       // bytes the kernel manages: MemTotal
	PageSize    int64    `json:"page_size"`    // bytes
	PointerSize int64    `json:"pointer_size"` // bytes
}

// ConntrackKind is how the kernel has connection tracking.
type ConntrackKind string

// The kinds.
const (
	ConntrackAbsent  ConntrackKind = "absent"
	ConntrackModule  ConntrackKind = "module"
	ConntrackBuiltin ConntrackKind = "builtin"
)

// Conntrack is the state of nf_conntrack itself.
type Conntrack struct {
	Kind         ConntrackKind `json:"kind"`
	Loaded       bool          `json:"loaded"`                // a loaded module, or built in
	Hashsize     int64         `json:"hashsize"`              // buckets, from sysfs; 0 when not loaded
	InitialNetns bool          `json:"initial_netns"`         // only there can max and hash size be set
	Count        int64         `json:"count"`                 // entries in this network namespace
	Max          int64         `json:"max"`                   // entries
	Drops        int64         `json:"drops,omitempty"`       // since boot: packets dropped for want of room
	EarlyDrops   int64         `json:"early_drops,omitempty"` // since boot: connections thrown out for new ones
	// HashsizeFixed is whether the hash table cannot be resized while the
	// module is loaded: its parameter is read-only, as before kernel 2.6.21.
	HashsizeFixed bool `json:"hashsize_fixed,omitempty"`
}

// Module is a line of /proc/modules.
type Module struct {
	Name string   `json:"name"`
	Refs int64    `json:"refs"`
	By   []string `json:"by,omitempty"` // modules that use it
}

// Loading is what of the modules that rules and sizes may need the running
// kernel has, or can load.
type Loading struct {
	// Disabled is whether no module comes or goes until the next boot
	// (kernel.modules_disabled).
	Disabled bool `json:"disabled,omitempty"`
	// Tree is whether /lib/modules has the modules of the running kernel: an
	// upgrade may have taken them away.
	Tree bool `json:"tree"`
	// Usable are those that are loaded, built in, or can be loaded, sorted.
	Usable []string `json:"usable"`
}

// ModuleTree is what a kernel's folder of /lib/modules says of connection
// tracking: of the running kernel, or of a newer one that is installed.
type ModuleTree struct {
	Release string `json:"release"`
	// Builtin is whether it has nf_conntrack built in.
	Builtin bool `json:"builtin,omitempty"`
	// Tracks are nf_conntrack and the modules that are loaded after it, by name,
	// sorted (modules.dep).
	Tracks []string `json:"tracks,omitempty"`
	// Aliases are other names of those (modules.alias).
	Aliases []ModuleAlias `json:"aliases,omitempty"`
}

// ModuleAlias is a pattern of fnmatch(3), with "_" for "-", and the module that
// such a name loads where no module has it.
type ModuleAlias struct {
	Name   string `json:"name"`
	Module string `json:"module"`
}

// Lacks reports whether a module is known to be out of reach.
func (l *Loading) Lacks(module string) bool { return l != nil && !slices.Contains(l.Usable, module) }

// Keys beside those of connection tracking that plans ask for.
const (
	SysctlIPVSConntrack = "net.ipv4.vs.conntrack"               // IPVS enters what it sends on into the table
	SysctlBridged4      = "net.bridge.bridge-nf-call-iptables"  // frames between the ports of a bridge meet the rules of IPv4; 1 only where there is one
	SysctlBridged6      = "net.bridge.bridge-nf-call-ip6tables" // the same of IPv6
)

// Forwarding is the key by which an interface forwards packets of a family;
// "all" stands for each.
func Forwarding(f Family, iface string) string {
	return "net." + string(f) + ".conf." + iface + ".forwarding"
}

// Routes reports whether packets that are not for this host are known to pass
// its rules: some interface forwards them, or they meet the rules on their way
// between the ports of a bridge.
func (l *Live) Routes(f Family) bool {
	bridged := map[Family]string{IPv4: SysctlBridged4, IPv6: SysctlBridged6}[f]
	before, after, _ := strings.Cut(Forwarding(f, "*"), "*")
	for key, v := range l.Sysctls {
		if v.Value == "1" && (key == bridged || strings.HasPrefix(key, before) && strings.HasSuffix(key, after)) {
			return true
		}
	}
	return false
}

// Sysctl is a key under /proc/sys.
type Sysctl struct {
	Value    string `json:"value"`
	Writable bool   `json:"writable"` // by its mode bits: a key can be read-only in a network namespace
}

// File is a file as it stands on disk. Paths are as the host sees them.
type File struct {
	Path    string            `json:"path"`
	Exists  bool              `json:"exists"`
	Content string            `json:"content,omitempty"`
	Mode    uint32            `json:"mode,omitempty"` // permission bits, with setuid, setgid and sticky
	UID     int               `json:"uid,omitempty"`
	GID     int               `json:"gid,omitempty"`
	Target  string            `json:"target,omitempty"` // the real path, where Path or a folder above it is a symbolic link
	Xattrs  map[string]string `json:"xattrs,omitempty"` // extended attributes, values in base64
}

// Span is a half-open range of bytes in a file's content.
type Span struct{ Start, End int }

// Ruleset is everything that one family's iptables-save prints, or a saved
// rules file in the same language.
type Ruleset struct {
	Family  Family
	Backend Backend
	Primary bool   // written through: what plain iptables speaks to
	Version string // of iptables, "1.8.9"; "" where it is not known
	Tables  []Table
	File    *File // nil for rules in the kernel

	// Incompatible are the tables of iptables-nft that iptables-save does not
	// show, because of what nft has put there; Tables has none of them.
	Incompatible []string

	// Refusal says why a saved file cannot be edited, with its line; then
	// Tables are empty.
	Refusal     string
	RefusalLine int
}

// Backend is what an iptables binary speaks to.
type Backend string

// The backends; a saved rules file has none.
const (
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Table is one "*name … COMMIT" section. Several sections may name one table.
type Table struct {
	Name   string
	Chains []ChainDecl
	Rules  []Rule // in order of the text, all chains mixed
	Span   Span   // from "*name" to the end of the COMMIT line
	Commit Span   // the COMMIT line
}

// ChainDecl is a ":NAME POLICY [packets:bytes]" line.
type ChainDecl struct {
	Name   string
	Policy string // "-" for a user's chain
	Line   int
	Span   Span // the whole line with its newline
}

// Rule is one "-A CHAIN …" line of a table.
type Rule struct {
	Chain string
	Words []string // what follows "-A CHAIN", unquoted
	Text  string   // the same as written, quotes kept, without counters
	Line  int      // from 1; in a file or in the output of iptables-save
	Span  Span     // the whole line with its newline
}

// SysctlFile is sysctl.conf or a file of a sysctl.d folder.
type SysctlFile struct {
	File
	As       string // the link in such a folder by which it is read, "/etc/sysctl.d/99-sysctl.conf"; empty: only as itself
	Entries  []SysctlEntry
	Excluded []SysctlExclusion
}

// SysctlEntry is one "key = value" line.
type SysctlEntry struct {
	Key       string // with dots, "-" and spaces taken off
	Value     string
	IgnoreErr bool // the key was written with a leading "-"
	Line      int
	Span      Span // the whole line with its newline
	ValueSpan Span
}

// SysctlExclusion is a line "-key": no glob sets that key. To systemd, it also
// takes back a line before it that does.
type SysctlExclusion struct {
	Key  string // written out; a glob excludes nothing
	Line int
}

// ModprobeFile is a file of a modprobe.d folder.
type ModprobeFile struct {
	File
	As      string // as in SysctlFile
	Entries []ModprobeEntry
}

// ModprobeEntry is one command, continuation lines joined.
type ModprobeEntry struct {
	Command string // options, install, blacklist, alias, softdep, remove
	Module  string // with "-" written as "_"
	Args    []ModprobeArg
	Line    int
	Span    Span // all its lines with the last newline
	End     int  // where an argument would be added
}

// ModprobeArg is a word behind the module's name, as written.
type ModprobeArg struct {
	Text string
	Span Span
}

// ModulesLoadFile is a file of a modules-load.d folder, or /etc/modules.
type ModulesLoadFile struct {
	File
	As      string // as in SysctlFile
	Entries []ModulesLoadEntry
}

// ModulesLoadEntry is a module that boot loads.
type ModulesLoadEntry struct {
	Module string // with "-" written as "_"
	Params string // behind the name: the module's parameters without systemd; with it, the line names no module
	Line   int
	Span   Span
}

// InitScript is an init script of iptables.
type InitScript struct {
	File
	// Array is NF_MODULES_COMMON where the script has one that can be edited.
	// Nil with an empty Refusal means that the script has none.
	Array *WordList
	// Refusal says why the array cannot be edited safely, with its line.
	Refusal     string
	RefusalLine int

	// FlushesFirst is whether stop flushes the rules before it sets policies
	// to ACCEPT: in between, a policy of DROP drops everything.
	FlushesFirst bool
	// Unloads is whether the script unloads modules.
	Unloads bool
	// SysctlFrom is where start looks for the lines that
	// IPTABLES_SYSCTL_LOAD_LIST names: /etc/sysctl.conf, /etc/sysctl.d, or
	// both, in order; nil where the script has no such list.
	SysctlFrom []string
}

// InitConfig is iptables-config or ip6tables-config.
type InitConfig struct {
	File
	Modules    *WordList // IPTABLES_MODULES or IP6TABLES_MODULES; nil where it is not assigned
	SysctlLoad *WordList // IPTABLES_SYSCTL_LOAD_LIST or IP6TABLES_SYSCTL_LOAD_LIST

	// ModulesName and SysctlLoadName are the names to assign where the lists are nil.
	ModulesName, SysctlLoadName string

	Refusal     string
	RefusalLine int
}

// WordList is a list of words in a shell script: an array "(a b)" or a string
// "a b". Inner spans what stands between the parentheses or the quotes.
type WordList struct {
	Words []Word
	Inner Span
	Line  int
}

// Word is one element of a WordList.
type Word struct {
	Text string // unquoted
	Span Span   // with its quotes
}

// Sections returns the parts of a ruleset that make up one table.
func (r *Ruleset) Sections(table string) []*Table {
	var found []*Table
	for i := range r.Tables {
		if r.Tables[i].Name == table {
			found = append(found, &r.Tables[i])
		}
	}
	return found
}

// Standing is the one of them that stands once all are loaded: iptables-restore
// flushes the table at each.
func (r *Ruleset) Standing(table string) []*Table {
	found := r.Sections(table)
	return found[max(0, len(found)-1):]
}

// TableNames lists the tables to look at: filter and raw first, in the order in
// which they open, then whatever else the ruleset has.
func (r *Ruleset) TableNames() []string {
	names := []string{"filter", "raw"}
	for _, t := range r.Tables {
		if !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}
