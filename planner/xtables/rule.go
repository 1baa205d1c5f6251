// Package xtables is the language of iptables' rules as values: what the words
// of a rule say, which packets it matches, what it needs of connection tracking,
// when two rules are the same, and what operations make of a table.
//
// It says nothing of what becomes of a packet: see package verdict.
package xtables

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/words"
)

// Option is one match or target option of a rule.
type Option struct {
	Not    bool
	Name   string // canonical: long names for the short ones that have both
	Args   []string
	Module int // how many modules were named before it: those of one -m share it
}

// Spec is a rule by meaning: what it matches and what it does then.
type Spec struct {
	Modules       []string // of -m, in order
	Matches       []Option // matches
	Target        string   // of -j or -g; empty when there is none
	IsGoto        bool
	TargetOptions []Option // options of the target
}

// longName maps the spellings of the built-in options to one (iptables(8)).
var longName = map[string]string{
	"-p": "-p", "--protocol": "-p", "--proto": "-p",
	"-s": "-s", "--source": "-s", "--src": "-s",
	"-d": "-d", "--destination": "-d", "--dst": "-d",
	"-i": "-i", "--in-interface": "-i",
	"-o": "-o", "--out-interface": "-o",
	"-f": "-f", "--fragment": "-f",
	"--source-port": "--sport", "--destination-port": "--dport",
	"--source-ports": "--sports", "--destination-ports": "--dports",
}

// noArgs are the options that stand alone (iptables-extensions(8)).
var noArgs = words.Set(
	"-f", "-4", "-6", "--ipv4", "--ipv6", "--notrack", "--syn", "--random", "--random-fully",
	"--persistent", "--log-tcp-sequence", "--log-tcp-options", "--log-ip-options", "--log-uid",
	"--log-macdecode", "--rcheck", "--update", "--remove", "--rttl", "--rsource", "--rdest", "--reap",
	"--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged", "--socket-exists", "--loose",
	"--validmark", "--accept-local", "--invert", "--transparent", "--nowildcard", "--restore-skmark",
	"--clamp-mss-to-pmtu", "--ecn-tcp-cwr", "--ecn-tcp-ece", "--ecn-tcp-remove", "--kerneltz",
	"--contiguous", "--return-nomatch", "--update-counters", "--update-subcounters", "--queue-bypass",
	"--queue-cpu-fanout", "--save", "--restore", "--save-mark", "--restore-mark", "--exist",
	"--hashlimit-rate-match", "--connlimit-saddr", "--connlimit-daddr", "--ahres", "--limit-iface-in",
	"--limit-iface-out", "--strict", "--next", "--soft", "--rt-0-res", "--rt-0-not-strict",
)

// twoArgs are the options that take two words.
var twoArgs = words.Set("--tcp-flags", "--match-set", "--add-set", "--del-set", "--map-set", "--chunk-types", "-c", "--set-counters")

// anyArg are the options whose one word may look like an option itself,
// because somebody chose it freely.
var anyArg = words.Set(
	"--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--name",
	"--hashlimit-name", "--helper", "--uid-owner", "--gid-owner", "--path", "--label", "--nfacct-name",
	"--led-trigger-id", "-m", "--match", "-j", "--jump", "-g", "--goto", "-i", "-o", "-p", "-s", "-d",
)

// Piece is a part of a rule's words that comes and goes as a whole: a module, an
// option with what it takes, the target.
type Piece struct {
	Option          // of a module or a target: its name
	From, To   int  // words[From:To], the "!" in front among them
	OfTarget   bool // the target and its options
	IsModule   bool
	IsTarget   bool
	IsGoto     bool
	isCounters bool
}

// Parse reads a rule's words. It never fails: an option it does not know
// takes the words up to the next option.
func Parse(words []string) Spec {
	var s Spec
	eachPiece(words, &s.Modules, func(p Piece) {
		switch {
		case p.IsModule:
			s.Modules = append(s.Modules, p.Name)
		case p.IsTarget:
			s.Target, s.IsGoto = p.Name, p.IsGoto
		case p.isCounters:
		case p.OfTarget:
			s.TargetOptions = append(s.TargetOptions, p.Option)
		default:
			s.Matches = append(s.Matches, p.Option)
		}
	})
	return s
}

// Pieces are the parts of a rule, in order.
func Pieces(words []string) []Piece {
	var out []Piece
	var modules []string
	eachPiece(words, &modules, func(p Piece) {
		if p.IsModule {
			modules = append(modules, p.Name)
		}
		out = append(out, p)
	})
	return out
}

// eachPiece calls take with the parts of a rule. modules are those that take
// was called with.
func eachPiece(words []string, modules *[]string, take func(Piece)) {
	not, from, ofTarget := false, 0, false
	for i := 0; i < len(words); {
		w := words[i]
		i++
		if w == "!" {
			not = true
			continue
		}
		if long, ok := longName[w]; ok {
			w = long
		}
		n := arity(w, words[i:], *modules)
		args := words[i : i+n]
		i += n
		// Old rules files write the negation behind the option.
		if n == 1 && args[0] == "!" && !anyArgFree(w) && i < len(words) {
			not, args = true, words[i:i+1]
			i++
		}
		p := Piece{Option: Option{Not: not, Name: w, Args: args, Module: len(*modules)}, From: from, To: i, OfTarget: ofTarget}
		switch w {
		case "-m", "--match":
			if n == 1 {
				p.IsModule, p.Name, p.Args = true, args[0], nil
				take(p)
			}
		case "-j", "--jump", "-g", "--goto":
			ofTarget = true
			if n == 1 {
				p.IsTarget, p.IsGoto, p.OfTarget, p.Name, p.Args = true, w == "-g" || w == "--goto", true, args[0], nil
				take(p)
			}
		case "-c", "--set-counters":
			p.isCounters = true
			take(p)
		default:
			take(p)
		}
		not, from = false, i
	}
}

// anyArgFree is whether "!" is a possible word of the option itself.
func anyArgFree(name string) bool {
	return anyArg[name] && len(name) > 2
}

// arity is how many of the following words belong to the option.
func arity(name string, rest []string, modules []string) int {
	want := 1
	switch {
	case noArgs[name], name == "--set" && slices.Contains(modules, "recent"):
		want = 0
	case twoArgs[name]:
		want = 2
	case anyArg[name]:
	case len(rest) > 0 && strings.HasPrefix(rest[0], "-") && len(rest[0]) > 1 && !isNumber(rest[0]):
		want = 0
	}
	return min(want, len(rest))
}

func isNumber(w string) bool {
	return len(w) > 1 && w[1] >= '0' && w[1] <= '9'
}

// Key is the rule's meaning in one canonical string: two rules with one key
// are the same to the kernel. It evens out what iptables versions and backends
// write differently: the order of matches and of state lists, implied -m tcp,
// NOTRACK for CT --notrack, -m state for -m conntrack, --syn, host prefixes.
func Key(words []string) string {
	s := Parse(words)
	var parts []string
	for _, o := range s.Matches {
		part := canonicalOption(o)
		if o.Name == "--mark" && o.Module > 0 { // of the packet or of its connection
			part = s.Modules[o.Module-1] + " " + part
		}
		parts = append(parts, part)
	}
	parts = append(parts, s.bareModules()...)
	slices.Sort(parts)
	parts = slices.Compact(parts)
	parts = append(parts, "->", canonicalTarget(s))
	var topts []string
	for _, o := range s.TargetOptions {
		if o.Name != "--notrack" {
			topts = append(topts, canonicalOption(o))
		}
	}
	slices.Sort(topts)
	return strings.Join(append(parts, topts...), "\x00")
}

// bareModules are the matches that narrow a rule without any option; the
// others show in their options.
func (s Spec) bareModules() []string {
	var bare []string
	for _, m := range s.Modules {
		switch m {
		case "socket", "rpfilter", "ah", "esp", "unclean", "eui64":
			bare = append(bare, "-m "+m)
		}
	}
	return bare
}

func canonicalTarget(s Spec) string {
	if s.Untracks() {
		return "NOTRACK"
	}
	if s.IsGoto {
		return "goto " + s.Target
	}
	return s.Target
}

// Untracks reports whether the rule takes packets out of tracking.
func (s Spec) Untracks() bool {
	return s.Target == "NOTRACK" || s.Target == "CT" && slices.ContainsFunc(s.TargetOptions, func(o Option) bool { return o.Name == "--notrack" })
}

func canonicalOption(o Option) string {
	name, args := o.Name, o.Args
	switch name {
	case "-s", "-d":
		if len(args) == 1 {
			args = []string{strings.TrimSuffix(strings.TrimSuffix(args[0], "/32"), "/128")}
			if strings.Contains(args[0], ":") != strings.Contains(o.Args[0], ":") {
				args = o.Args
			}
		}
	case "--state", "--ctstate":
		name = "--ctstate"
		if len(args) == 1 {
			states := strings.Split(args[0], ",")
			slices.Sort(states)
			args = []string{strings.Join(slices.Compact(states), ",")}
		}
	case "--syn":
		name, args = "--tcp-flags", []string{"FIN,SYN,RST,ACK", "SYN"}
	case "-p":
		if len(args) == 1 {
			args = []string{protocol.Canonical(args[0])}
		}
	}
	not := ""
	if o.Not {
		not = "! "
	}
	return not + name + " " + strings.Join(args, " ")
}

// Need says what a rule needs of connection tracking.
type Need int

const (
	NeedNothing Need = iota
	needModule       // NOTRACK itself: xt_CT pulls the module in, and nothing is tracked
	NeedState        // a match or target that works on tracked packets only
	NeedNAT          // address translation, which is made of tracked connections
)

// IsStateModule holds for the matches that read a packet's connection
// (net/netfilter/xt_*.c that call nf_ct_get and nf_ct_netns_get).
func IsStateModule(name string) bool {
	switch name {
	case "state", "conntrack", "connbytes", "connlimit", "connmark", "connlabel", "helper", "cluster", "layer7", "ipvs":
		return true
	}
	return false
}

// isStateTarget holds for the targets that do.
func isStateTarget(name string) bool {
	switch name {
	case "CONNMARK", "CONNSECMARK", "SYNPROXY", "CLUSTERIP":
		return true
	}
	return false
}

// IsNATTarget holds for the targets that translate addresses.
func IsNATTarget(name string) bool {
	switch name {
	case "SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP":
		return true
	}
	return false
}

// Needs says what a rule of the table needs of connection tracking.
func Needs(table string, words []string) Need {
	if !MayNeed(table, words) {
		return NeedNothing
	}
	s := Parse(words)
	switch {
	case table == "nat", IsNATTarget(s.Target):
		return NeedNAT
	case slices.ContainsFunc(s.Modules, IsStateModule), isStateTarget(s.Target):
		return NeedState
	case s.Untracks():
		return needModule
	case s.Target == "CT", marksByConnection(s): // a zone, a helper, a timeout: something to track with
		return NeedState
	}
	return NeedNothing
}

// MayNeed is needs' quick first look, over rulesets of any size: it may say
// yes because of a word in a comment, never no wrongly.
func MayNeed(table string, words []string) bool {
	if table == "nat" {
		return true
	}
	for i, w := range words {
		if i+1 == len(words) || len(w) < 2 || w[0] != '-' {
			continue
		}
		switch w {
		case "-m", "--match":
			if IsStateModule(words[i+1]) {
				return true
			}
		case "-j", "--jump", "-g", "--goto":
			t := words[i+1]
			if t == "CT" || t == "NOTRACK" || t == "HMARK" || isStateTarget(t) || IsNATTarget(t) {
				return true
			}
		}
	}
	return false
}

// JoinsFragments reports whether the kernel joins fragments as long as a rule of
// these words stands, reached or not: what reads connections asks for it
// (nf_ct_netns_get), and so does what looks for sockets (net/netfilter/xt_socket.c,
// xt_TPROXY.c, nf_defrag_ipv4_enable). NOTRACK does not.
func JoinsFragments(words []string) bool {
	for i, w := range words {
		if i+1 == len(words) {
			break
		}
		next := words[i+1]
		switch w {
		case "-m", "--match":
			if next == "socket" || IsStateModule(next) && next != "ipvs" && next != "layer7" {
				return true
			}
		case "-j", "--jump", "-g", "--goto":
			if next == "TPROXY" || isStateTarget(next) || IsNATTarget(next) {
				return true
			}
			if next == "CT" {
				return !Parse(words).Untracks()
			}
		}
	}
	return false
}

// MatchesUntracked reports whether a rule that needs state may match a packet
// that is not tracked: such a packet is in state UNTRACKED and in no other.
func (s Spec) MatchesUntracked() bool {
	for _, m := range s.Modules {
		if IsStateModule(m) && m != "state" && m != "conntrack" {
			return false
		}
	}
	if isStateTarget(s.Target) {
		return false
	}
	found := false
	for _, o := range s.Matches {
		switch {
		case o.Name == "--state" || o.Name == "--ctstate":
			found = true
			if len(o.Args) != 1 {
				return false
			}
			if slices.Contains(strings.Split(o.Args[0], ","), "UNTRACKED") == o.Not {
				return false
			}
		case strings.HasPrefix(o.Name, "--ct"):
			return false
		}
	}
	return found
}
