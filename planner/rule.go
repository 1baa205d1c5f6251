package planner

import (
	"slices"
	"strings"
)

// option is one match or target option of a rule.
type option struct {
	not  bool
	name string // canonical: long names for the short ones that have both
	args []string
	mod  int // how many modules were named before it: those of one -m share it
}

// spec is a rule by meaning: what it matches and what it does then.
type spec struct {
	modules []string // of -m, in order
	opts    []option // matches
	target  string   // of -j or -g; empty when there is none
	isGoto  bool
	topts   []option // options of the target
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
var noArgs = wordSet(
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
var twoArgs = wordSet("--tcp-flags", "--match-set", "--add-set", "--del-set", "--map-set", "--chunk-types", "-c", "--set-counters")

// anyArg are the options whose one word may look like an option itself,
// because somebody chose it freely.
var anyArg = wordSet(
	"--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--name",
	"--hashlimit-name", "--helper", "--uid-owner", "--gid-owner", "--path", "--label", "--nfacct-name",
	"--led-trigger-id", "-m", "--match", "-j", "--jump", "-g", "--goto", "-i", "-o", "-p", "-s", "-d",
)

// parseSpec reads a rule's words. It never fails: an option it does not know
// takes the words up to the next option.
func parseSpec(words []string) spec {
	var s spec
	opts := &s.opts
	not := false
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
		n := arity(w, words[i:], s.modules)
		args := words[i : i+n]
		i += n
		// Old rules files write the negation behind the option.
		if n == 1 && args[0] == "!" && !anyArgFree(w) && i < len(words) {
			not, args = true, words[i:i+1]
			i++
		}
		switch w {
		case "-m", "--match":
			if n == 1 {
				s.modules = append(s.modules, args[0])
			}
		case "-j", "--jump", "-g", "--goto":
			if n == 1 {
				s.target = args[0]
				s.isGoto = w == "-g" || w == "--goto"
			}
			opts = &s.topts
		case "-c", "--set-counters":
		default:
			*opts = append(*opts, option{not: not, name: w, args: args, mod: len(s.modules)})
		}
		not = false
	}
	return s
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
	s := parseSpec(words)
	var parts []string
	for _, o := range s.opts {
		part := canonicalOption(o)
		if o.name == "--mark" && o.mod > 0 { // of the packet or of its connection
			part = s.modules[o.mod-1] + " " + part
		}
		parts = append(parts, part)
	}
	parts = append(parts, s.bareModules()...)
	slices.Sort(parts)
	parts = slices.Compact(parts)
	parts = append(parts, "->", canonicalTarget(s))
	var topts []string
	for _, o := range s.topts {
		if o.name != "--notrack" {
			topts = append(topts, canonicalOption(o))
		}
	}
	slices.Sort(topts)
	return strings.Join(append(parts, topts...), "\x00")
}

// bareModules are the matches that narrow a rule without any option; the
// others show in their options.
func (s spec) bareModules() []string {
	var bare []string
	for _, m := range s.modules {
		switch m {
		case "socket", "rpfilter", "ah", "esp", "unclean", "eui64":
			bare = append(bare, "-m "+m)
		}
	}
	return bare
}

func canonicalTarget(s spec) string {
	if s.notracks() {
		return "NOTRACK"
	}
	if s.isGoto {
		return "goto " + s.target
	}
	return s.target
}

// notracks reports whether the rule takes packets out of tracking.
func (s spec) notracks() bool {
	return s.target == "NOTRACK" || s.target == "CT" && slices.ContainsFunc(s.topts, func(o option) bool { return o.name == "--notrack" })
}

func canonicalOption(o option) string {
	name, args := o.name, o.args
	switch name {
	case "-s", "-d":
		if len(args) == 1 {
			args = []string{strings.TrimSuffix(strings.TrimSuffix(args[0], "/32"), "/128")}
			if strings.Contains(args[0], ":") != strings.Contains(o.args[0], ":") {
				args = o.args
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
			args = []string{canonicalProtocol(args[0])}
		}
	}
	not := ""
	if o.not {
		not = "! "
	}
	return not + name + " " + strings.Join(args, " ")
}

// need says what a rule needs of connection tracking.
type need int

const (
	needNothing need = iota
	needModule       // NOTRACK itself: xt_CT pulls the module in, and nothing is tracked
	needState        // a match or target that works on tracked packets only
	needNAT          // address translation, which is made of tracked connections
)

// isStateModule holds for the matches that read a packet's connection
// (net/netfilter/xt_*.c that call nf_ct_get and nf_ct_netns_get).
func isStateModule(name string) bool {
	switch name {
	case "state", "conntrack", "connbytes", "connlimit", "connmark", "connlabel", "helper", "cluster", "layer7", "ipvs":
		return true
	}
	return false
}

// isStateTarget and isNATTarget hold for the targets that do.
func isStateTarget(name string) bool {
	switch name {
	case "CONNMARK", "CONNSECMARK", "SYNPROXY", "CLUSTERIP":
		return true
	}
	return false
}

func isNATTarget(name string) bool {
	switch name {
	case "SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP":
		return true
	}
	return false
}

// needs classifies a rule of the table.
func needsOf(table string, words []string) need {
	if !mayNeed(table, words) {
		return needNothing
	}
	s := parseSpec(words)
	switch {
	case table == "nat", isNATTarget(s.target):
		return needNAT
	case slices.ContainsFunc(s.modules, isStateModule), isStateTarget(s.target):
		return needState
	case s.notracks():
		return needModule
	case s.target == "CT": // a zone, a helper, a timeout: something to track with
		return needState
	}
	return needNothing
}

// mayNeed is needs' quick first look, over rulesets of any size: it may say
// yes because of a word in a comment, never no wrongly.
func mayNeed(table string, words []string) bool {
	if table == "nat" {
		return true
	}
	for i, w := range words {
		if i+1 == len(words) || len(w) < 2 || w[0] != '-' {
			continue
		}
		switch w {
		case "-m", "--match":
			if isStateModule(words[i+1]) {
				return true
			}
		case "-j", "--jump", "-g", "--goto":
			t := words[i+1]
			if t == "CT" || t == "NOTRACK" || isStateTarget(t) || isNATTarget(t) {
				return true
			}
		}
	}
	return false
}

// matchesUntracked reports whether a rule that needs state may match a packet
// that is not tracked: such a packet is in state UNTRACKED and in no other.
func (s spec) matchesUntracked() bool {
	for _, m := range s.modules {
		if isStateModule(m) && m != "state" && m != "conntrack" {
			return false
		}
	}
	if isStateTarget(s.target) {
		return false
	}
	found := false
	for _, o := range s.opts {
		switch {
		case o.name == "--state" || o.name == "--ctstate":
			found = true
			if len(o.args) != 1 {
				return false
			}
			if slices.Contains(strings.Split(o.args[0], ","), "UNTRACKED") == o.not {
				return false
			}
		case strings.HasPrefix(o.name, "--ct"):
			return false
		}
	}
	return found
}
