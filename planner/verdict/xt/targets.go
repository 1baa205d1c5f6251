package xt

import (
	"slices"
	"strconv"

	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
	"github.com/ctplan/ctplan/planner/xtables"
)

// plainTargets go on to the next rule, and change nothing that rules look at.
var plainTargets = words.Set("", "LOG", "NFLOG", "ULOG", "TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "TTL", "HL", "ECN", "CLASSIFY", "TRACE", "CHECKSUM", "AUDIT",
	"SECMARK", "CONNSECMARK", "LED", "IDLETIMER", "RATEEST", "TEE")

// targetOf is what a rule does.
func targetOf(table string, s xtables.Spec) verdict.Target { return target(s).Named(s.Target) }

func target(s xtables.Spec) verdict.Target {
	switch {
	case s.IsGoto:
		return verdict.Goto(s.Target)
	case s.Untracks():
		return verdict.Untrack
	case s.Target == "CT":
		return templateOf(s)
	case s.Target == "ACCEPT":
		return verdict.Accept
	case s.Target == "DROP", s.Target == "REJECT", s.Target == "TARPIT", s.Target == "STEAL":
		return verdict.Drop
	case s.Target == "RETURN":
		return verdict.Return
	case s.Target == "QUEUE", s.Target == "NFQUEUE":
		return verdict.Queue
	case s.Target == "DNAT", s.Target == "REDIRECT", s.Target == "NETMAP", s.Target == "SAME":
		return verdict.Translate
	case s.Target == "SNAT", s.Target == "MASQUERADE":
		return verdict.Accept
	case s.Target == "MARK":
		return markTarget(s, verdict.SetMark, verdict.SomeMark)
	case s.Target == "CONNMARK":
		return connMarkTarget(s)
	case s.Target == "SET":
		if slices.ContainsFunc(s.TargetOptions, func(o xtables.Option) bool { return o.Name == "--map-set" }) {
			return verdict.SomeMark
		}
		return verdict.Target{}
	case plainTargets[s.Target]:
		return verdict.Target{}
	case s.Target == "SYNPROXY":
		return verdict.Proxy
	case s.Target == "TPROXY", s.Target == "DNPT", s.Target == "SNPT", s.Target == "CLUSTERIP":
		return verdict.Anything
	case s.Target == "HMARK":
		return verdict.SomeMark
	}
	return verdict.Jump(s.Target)
}

// templateOf is what a CT target attaches, with the zone that it puts both ways
// of a connection in.
func templateOf(s xtables.Spec) verdict.Target {
	for _, o := range s.TargetOptions {
		if o.Name != "--zone" || len(o.Args) != 1 {
			continue
		}
		n, err := strconv.ParseUint(o.Args[0], 0, 16)
		return verdict.TemplateZone(uint16(n), err == nil) // else taken from the mark
	}
	return verdict.Template()
}

// markTarget reads what MARK and CONNMARK do (net/netfilter/xt_mark.c,
// xt_connmark.c): both compute (mark &^ mask) ^ value. unknown is for what
// cannot be read.
func markTarget(s xtables.Spec, set func(value, mask uint32) verdict.Target, unknown verdict.Target) verdict.Target {
	out := set(0, 0)
	for _, o := range s.TargetOptions {
		arg := ""
		if len(o.Args) > 0 {
			arg = o.Args[0]
		}
		v, m, ok := maskedNumber(arg)
		switch o.Name {
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
		default:
			ok = true
		}
		if !ok {
			return unknown
		}
	}
	return out
}

// connMarkTarget is what CONNMARK does: it sets the connection's mark, or copies
// marks under masks.
func connMarkTarget(s xtables.Spec) verdict.Target {
	nfmask, ctmask := ^uint32(0), ^uint32(0)
	var copies func(nfmask, ctmask uint32) verdict.Target
	ok := true
	for _, o := range s.TargetOptions {
		switch o.Name {
		case "--save-mark":
			copies = verdict.SaveMark
			continue
		case "--restore-mark":
			copies = verdict.RestoreMark
			continue
		}
		v, _, number := uint32(0), uint32(0), false
		if len(o.Args) == 1 {
			v, _, number = maskedNumber(o.Args[0])
		}
		switch o.Name {
		case "--nfmask":
			nfmask = v
		case "--ctmask":
			ctmask = v
		case "--mask":
			nfmask, ctmask = v, v
		default:
			number = false // shifts
		}
		ok = ok && number
	}
	switch {
	case copies == nil:
		return markTarget(s, verdict.SetConnMark, verdict.SomeConnMark)
	case !ok && slices.ContainsFunc(s.TargetOptions, func(o xtables.Option) bool { return o.Name == "--restore-mark" }):
		return verdict.SomeMark
	case !ok:
		return verdict.SomeConnMark
	}
	return copies(nfmask, ctmask)
}
