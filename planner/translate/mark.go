package translate

import (
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// markPrefix begins the comment that makes a rule a twin. It says how the twin
// came about and what of the rule it stands for: "ctplan tcp+syn: -m state
// --state NEW". So the rule itself follows from any of its twins.
const markPrefix = "ctplan "

// maxMark is how long a comment may be (XT_MAX_COMMENT_LEN, with its zero byte).
const maxMark = 255

// markGroup is the comment of a twin.
func markGroup(codes []string, state string) (g group, ok bool) {
	text := markPrefix + strings.Join(codes, "+") + ": " + state
	if len(text) > maxMark || strings.ContainsAny(text, "\"'\\") || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return g, false
	}
	return group{"comment", []part{{xtables.Option{Name: "--comment", Args: []string{text}}, `--comment "` + text + `"`}}}, true
}

// readMark takes the mark of a comment apart.
func readMark(comment string) (codes []string, state string, ok bool) {
	rest, ok := strings.CutPrefix(comment, markPrefix)
	if !ok {
		return nil, "", false
	}
	list, state, ok := strings.Cut(rest, ": ")
	if !ok || !strings.HasPrefix(state, "-m state ") && !strings.HasPrefix(state, "-m conntrack ") {
		return nil, "", false
	}
	return strings.Split(list, "+"), state, true
}

// holds is the code of a rule that does nothing but hold the place of one that no
// packet of a conversation meets. Its mark ends in that rule's target.
const holds = "nothing"

// holder is that rule. ok is false where the mark cannot hold it.
func (w *work) holder() (rule host.Rule, ok bool) {
	l := w.l.clone()
	tail := l.tail
	l.tail = ""
	if tail == "" || w.replace(&l, coded{}, []string{holds}, " "+tail) != "" {
		return rule, false
	}
	return l.rule(w.chain), true
}

// IsTwin is a quick look at whether a rule may be a twin.
func IsTwin(rule *host.Rule) bool {
	for i := 1; i < len(rule.Words); i++ {
		if strings.HasPrefix(rule.Words[i], markPrefix) && rule.Words[i-1] == "--comment" {
			return true
		}
	}
	return false
}

// Original is the rule that a twin stands for. It is the rule by its meaning:
// matches may stand in another order. It reports false for what is no twin.
func Original(twin *host.Rule) (rule host.Rule, ok bool) {
	if !IsTwin(twin) {
		return rule, false
	}
	l, ok := layoutOf(twin)
	if !ok {
		return rule, false
	}
	at := -1
	var codes []string
	var state string
	for i := range l.groups {
		if g := &l.groups[i]; g.module == "comment" && len(g.parts) == 1 && len(g.parts[0].Args) == 1 {
			if codes, state, ok = readMark(g.parts[0].Args[0]); ok {
				at = i
				break
			}
		}
	}
	if at < 0 {
		return rule, false
	}
	if len(codes) == 1 && codes[0] == holds {
		i := max(strings.LastIndex(state, " -j "), strings.LastIndex(state, " -g "))
		if i < 0 || l.tail != "" {
			return rule, false
		}
		state, l.tail = state[:i], state[i+1:]
	}
	l.groups[at] = group{module: strings.Fields(state)[1], parts: []part{{text: strings.Join(strings.Fields(state)[2:], " ")}}}
	for _, code := range codes {
		l.take(code)
	}
	return l.rule(twin.Chain), true
}

// take takes back what a code says was added.
func (l *layout) take(code string) {
	drop := func(name string) {
		keep := func(list []part) (out []part) {
			for _, p := range list {
				if p.Name != name {
					out = append(out, p)
				}
			}
			return out
		}
		l.head = keep(l.head)
		for i := range l.groups {
			l.groups[i].parts = keep(l.groups[i].parts)
		}
	}
	switch {
	case code == "tcp" || code == "udp" || code == "icmp" || code == "ipv6-icmp":
		drop("-p")
	case code == "syn" || code == "nosyn" || strings.HasPrefix(code, "bad"):
		drop("--tcp-flags")
		drop("--syn")
	case strings.HasPrefix(code, "type"):
		drop("--icmp-type")
		drop("--icmpv6-type")
	case code == "s" || code == "d":
		drop("-" + code)
	case code == "sport" || code == "dport":
		drop("--" + code)
	case code == "untracked":
		for i := range l.groups {
			if g := &l.groups[i]; g.module == "conntrack" && len(g.parts) == 1 && g.parts[0].text == untrackedText {
				l.groups = append(l.groups[:i], l.groups[i+1:]...)
				break
			}
		}
	}
	for i := 0; i < len(l.groups); i++ {
		if g := &l.groups[i]; len(g.parts) == 0 && ofProtocol(g.module) {
			l.groups = append(l.groups[:i], l.groups[i+1:]...)
			i--
		}
	}
}
