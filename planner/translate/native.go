package translate

import (
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/xtables"
)

// Lines is what stands for a rule of nftables' own, in nft's words.
type Lines struct {
	// Lines go before the rule, in order: they ask for what is untracked, so that
	// they do nothing before that is.
	Lines []string
	Grade Grade
	// Why and Note are those of Translation, None says why there are no lines.
	Why, Note []string
	None      string
}

// Native translates a rule of nftables, as nft prints it, that matches on state,
// for the family of the scope. It is taken apart into the same words as a rule of
// iptables, and proved as that is. touched is as for Rule.
func (t *Translator) Native(text string, in Scope) (out Lines, touched bool) {
	r := nativeOf(text)
	if r.none != "" {
		return Lines{None: r.none}, true
	}
	proto, none := r.protocol(in.Family)
	if none != "" {
		return Lines{None: none}, proto != otherFamily
	}
	if proto == otherFamily {
		return out, false
	}
	for _, c := range r.cases {
		rule := strings.Join(strings.Fields(proto+" -m conntrack "+c.not+" --ctstate "+strings.ToUpper(c.states)+" "+targetOf(slices.Concat(c.then, r.after))), " ")
		got, is := t.Rule(&host.Rule{Chain: "INPUT", Text: rule, Words: xtables.Words(rule)}, in)
		touched = touched || is
		if got.None != "" {
			return Lines{None: got.None}, touched
		}
		out.Grade |= got.Grade
		out.Why, out.Note = addNew(out.Why, got.Why), addNew(out.Note, got.Note)
		for i := range got.Twins {
			if line, ok := r.line(&got.Twins[i], c.then, proto != "", got.Stays); ok {
				out.Lines = append(out.Lines, line)
			}
		}
	}
	return out, touched
}

func addNew(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// TakesNative is whether a rule of nftables accepts all packets in a state.
func TakesNative(text, state string) bool {
	r := nativeOf(text)
	for _, w := range slices.Concat(r.before, r.after) {
		if w != "accept" && w != "counter" && strings.Trim(w, "0123456789") != "" && w != "packets" && w != "bytes" {
			return false
		}
	}
	for _, c := range r.cases {
		if c.not == "" && slices.Contains(strings.Split(c.states, ","), state) && (slices.Equal(c.then, []string{"accept"}) || len(c.then) == 0 && slices.Contains(r.after, "accept")) {
			return r.none == ""
		}
	}
	return false
}

// nativeRule is a rule of nftables around its expression on state.
type nativeRule struct {
	before, after []string     // its words there
	ahead, behind string       // as they are written
	cases         []nativeCase // one, or those of a verdict map
	none          string
}

type nativeCase struct {
	not    string // "!"
	states string // "established,related"
	then   []string
}

// targetOf is the verdict of a rule in iptables' words, as far as translation asks
// for it.
func targetOf(words []string) string {
	switch {
	case slices.Contains(words, "drop") || slices.Contains(words, "reject"):
		return "-j DROP"
	case slices.Contains(words, "accept") || slices.Contains(words, "return"):
		return "-j ACCEPT"
	}
	return "-j other"
}

// nativeOf takes a rule apart.
func nativeOf(text string) (r nativeRule) {
	tokens, _ := nftables.Tokens(text)
	var words []string
	var ends [][2]int32
	for _, t := range tokens { // which are marks one by one
		switch n := len(words); {
		case t.Text == "\n":
		case t.Text == "=" && n > 0 && slices.Contains([]string{"!", "=", "<", ">"}, words[n-1]):
			words[n-1] += t.Text
			ends[n-1][1] = t.End
		default:
			words, ends = append(words, t.Text), append(ends, [2]int32{t.Start, t.End})
		}
	}
	at := -1
	for i, w := range words {
		if w != "ct" {
			continue
		}
		if at >= 0 || i+2 >= len(words) || words[i+1] != "state" {
			r.none = "it asks for more of a connection than its state"
			return r
		}
		at = i
	}
	if at < 0 {
		r.none = "it does not ask for the state of a connection"
		return r
	}
	i := at + 2
	not, isMap := "", false
	switch words[i] {
	case "!=":
		not, i = "!", i+1
	case "==":
		i++
	case "vmap":
		isMap, i = true, i+1
	}
	list, next, ok := elementsOf(words, i)
	r.before, r.after = words[:at], words[next:]
	r.ahead = strings.TrimSpace(text[:ends[at][0]])
	if next > 0 {
		r.behind = strings.TrimSpace(text[ends[next-1][1]:])
	}
	switch {
	case !ok:
		r.none = unreadable
	case isMap:
		for _, e := range list {
			state, then, has := cut(e, ":")
			if !has || len(state) != 1 || len(then) == 0 {
				r.none = unreadable
				return r
			}
			r.cases = append(r.cases, nativeCase{"", state[0], then})
		}
	default:
		var states []string
		for _, e := range list {
			if len(e) != 1 {
				r.none = unreadable
				return r
			}
			states = append(states, e[0])
		}
		r.cases = []nativeCase{{not, strings.Join(states, ","), nil}}
	}
	for _, c := range r.cases {
		for s := range strings.SplitSeq(c.states, ",") {
			if _, known := stateNames[strings.ToUpper(s)]; !known || s == "snat" || s == "dnat" {
				r.none = unreadable
			}
		}
	}
	return r
}

func cut(words []string, sep string) (before, after []string, ok bool) {
	i := slices.Index(words, sep)
	if i < 0 {
		return words, nil, false
	}
	return words[:i], words[i+1:], true
}

// elementsOf reads a value, a list or a set of them that begins at a word.
func elementsOf(words []string, i int) (list [][]string, next int, ok bool) {
	if i >= len(words) {
		return nil, i, false
	}
	if words[i] != "{" { // a list: a,b or a , b
		one := []string{}
		for ; i < len(words); i++ {
			for part := range strings.SplitSeq(words[i], ",") {
				if part != "" {
					one = append(one, part)
				}
			}
			if !strings.HasSuffix(words[i], ",") && !(i+1 < len(words) && strings.HasPrefix(words[i+1], ",")) {
				break
			}
		}
		for _, w := range one {
			list = append(list, []string{w})
		}
		return list, min(i+1, len(words)), len(one) > 0
	}
	var one []string
	for i++; i < len(words); i++ {
		switch w := words[i]; {
		case w == "}":
			return append(list, one), i + 1, len(one) > 0
		case w == ",":
			list, one = append(list, one), nil
		case strings.HasSuffix(w, ","):
			list, one = append(list, append(one, strings.TrimSuffix(w, ","))), nil
		default:
			one = append(one, w)
		}
	}
	return nil, i, false
}

// otherFamily is for rules that packets of the family do not meet.
const otherFamily = "-"

// protocol is what the rule asks of the protocol, in iptables' words.
func (r *nativeRule) protocol(f host.Family) (words, none string) {
	named := ""
	name := func(proto string) bool {
		ok := named == "" || named == proto
		named = proto
		return ok
	}
	all := slices.Concat(r.before, r.after)
	typ := ""
	for i, w := range all {
		next := func(n int) string {
			if i+n < len(all) {
				return all[i+n]
			}
			return ""
		}
		ok := true
		switch w {
		case "tcp", "udp", "sctp", "dccp", "udplite":
			switch next(1) {
			case "dport", "sport":
				ok = name(w)
			case "flags":
				return "", "it asks for flags of TCP itself"
			}
		case "icmp", "icmpv6":
			if next(1) != "type" {
				continue
			}
			if (w == "icmp") != (f == host.IPv4) {
				return otherFamily, ""
			}
			if typ, ok = nativeTypes[f][next(2)]; !ok && strings.Trim(next(2), "0123456789") == "" {
				typ, ok = next(2), next(2) != ""
			}
			ok = ok && name(icmpName(f))
		case "l4proto", "protocol", "nexthdr":
			n, known := protocol.Number(next(1))
			if next(1) == "icmpv6" {
				n, known = protocol.ICMPv6, true
			}
			if ok = known; ok {
				ok = name(protocol.Name(n))
			}
		case "nfproto":
			if next(1) == "ipv4" && f != host.IPv4 || next(1) == "ipv6" && f != host.IPv6 {
				return otherFamily, ""
			}
		case "ip", "ip6":
			if (next(1) == "saddr" || next(1) == "daddr") && (w == "ip") != (f == host.IPv4) {
				return otherFamily, ""
			}
		}
		if !ok {
			return "", "it asks for protocols or types of ICMP in a way that ctplan does not take apart"
		}
	}
	switch {
	case named == "":
		return "", ""
	case typ != "":
		return "-p " + named + " -m " + map[string]string{"icmp": "icmp --icmp-type ", "ipv6-icmp": "icmp6 --icmpv6-type "}[named] + typ, ""
	}
	return "-p " + named, ""
}

// nativeTypes are the types that are translated by nft's names.
var nativeTypes = map[host.Family]map[string]string{
	host.IPv4: {"echo-request": "8", "echo-reply": "0", "destination-unreachable": "3", "redirect": "5", "time-exceeded": "11", "parameter-problem": "12"},
	host.IPv6: {"echo-request": "128", "echo-reply": "129", "destination-unreachable": "1", "packet-too-big": "2", "time-exceeded": "3", "parameter-problem": "4"},
}

func nativeType(f host.Family, number string) string {
	for name, n := range nativeTypes[f] {
		if n == number {
			return name
		}
	}
	return number
}

// line is a twin in nft's words. Errors of ICMP about what is not tracked may be
// tracked themselves. ok is false for one that does nothing.
func (r *nativeRule) line(twin *host.Rule, then []string, named, tracked bool) (line string, ok bool) {
	l, ok := layoutOf(twin)
	if !ok || l.tail == "" {
		return "", false
	}
	var put []string
	if !(tracked && (l.has("icmp6") || l.has("icmp")) && !l.has("conntrack")) {
		put = []string{"ct", "state", "untracked"}
	}
	switch flags, types := l.option_("--tcp-flags").text, l.option_("--icmp-type"); {
	case named && flags == "":
	case flags != "":
		put = append(put, nativeFlags(flags))
	case len(types.Args) == 1:
		put = append(put, "icmp", "type", nativeType(host.IPv4, types.Args[0]))
	case l.has("icmp6"):
		put = append(put, "icmpv6", "type", nativeType(host.IPv6, strings.Join(l.option_("--icmpv6-type").Args, "")))
	default:
		if p := l.option_("-p"); len(p.Args) == 1 {
			put = append(put, "meta", "l4proto", strings.TrimPrefix(p.Args[0], "ipv6-"))
		}
	}
	return strings.Join(slices.DeleteFunc([]string{r.ahead, strings.Join(slices.Concat(put, then), " "), r.behind}, func(s string) bool { return s == "" }), " "), true
}

// nativeFlags is a condition on flags of TCP.
func nativeFlags(text string) string {
	w := strings.Fields(text)
	op := "=="
	if w[0] == "!" {
		op, w = "!=", w[1:]
	}
	if len(w) == 1 { // --syn
		w = strings.Fields(synForm.text)
	}
	flags := func(list string) string { return strings.ReplaceAll(strings.ToLower(list), ",", " | ") }
	is := flags(w[2])
	if w[2] == "NONE" {
		is = "0x0"
	}
	return "tcp flags & (" + flags(w[1]) + ") " + op + " " + is
}
