package planner

import (
	"slices"
	"strconv"
)

// plainTargets go on to the next rule, and change nothing that rules look at.
var plainTargets = wordSet("", "LOG", "NFLOG", "ULOG", "TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "TTL", "HL", "ECN", "CLASSIFY", "TRACE", "CHECKSUM", "AUDIT",
	"SECMARK", "CONNSECMARK", "LED", "IDLETIMER", "RATEEST", "TEE")

// targetOf is what a rule does.
func targetOf(table string, s spec) Target { return target(s).Named(s.target) }

func target(s spec) Target {
	switch {
	case s.isGoto:
		return Goto(s.target)
	case s.notracks():
		return Untrack
	case s.target == "CT":
		return templateOf(s)
	case s.target == "ACCEPT":
		return Accept
	case s.target == "DROP", s.target == "REJECT", s.target == "TARPIT", s.target == "STEAL":
		return Drop
	case s.target == "RETURN":
		return Return
	case s.target == "QUEUE", s.target == "NFQUEUE":
		return Queue
	case s.target == "DNAT", s.target == "REDIRECT", s.target == "NETMAP", s.target == "SAME":
		return Translate
	case s.target == "SNAT", s.target == "MASQUERADE":
		return Accept
	case s.target == "MARK":
		return markTarget(s, SetMark, SomeMark)
	case s.target == "CONNMARK":
		return markTarget(s, SetConnMark, SaveMark)
	case s.target == "SET":
		if slices.ContainsFunc(s.topts, func(o option) bool { return o.name == "--map-set" }) {
			return SomeMark
		}
		return Target{}
	case plainTargets[s.target]:
		return Target{}
	case s.target == "SYNPROXY", s.target == "TPROXY", s.target == "DNPT", s.target == "SNPT", s.target == "CLUSTERIP":
		return Anything
	case s.target == "HMARK":
		return SomeMark
	}
	return Jump(s.target)
}

// templateOf is what a CT target attaches, with the zone that it puts both ways
// of a connection in.
func templateOf(s spec) Target {
	for _, o := range s.topts {
		if o.name != "--zone" || len(o.args) != 1 {
			continue
		}
		n, err := strconv.ParseUint(o.args[0], 0, 16)
		return TemplateZone(uint16(n), err == nil) // else taken from the mark
	}
	return Template()
}

// markTarget reads what MARK and CONNMARK do (net/netfilter/xt_mark.c,
// xt_connmark.c): both compute (mark &^ mask) ^ value. unknown is for what
// cannot be read.
func markTarget(s spec, set func(value, mask uint32) Target, unknown Target) Target {
	out := set(0, 0)
	for _, o := range s.topts {
		arg := ""
		if len(o.args) > 0 {
			arg = o.args[0]
		}
		v, m, ok := maskedNumber(arg)
		switch o.name {
		case "--set-xmark":
			out = set(v, m)
		case "--set-mark":
			out = set(v, m|v)
		case "--and-mark":
			out = set(0, ^v)
		case "--or-mark":
			out = set(v, v)
		case "--xor-mark":
			out = set(v, 0)
		case "--save-mark":
			out, ok = SaveMark, true
		case "--restore-mark":
			out, ok = RestoreMark, true
		default:
			ok = true
		}
		if !ok {
			return unknown
		}
	}
	return out
}
