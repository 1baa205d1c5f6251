package planner

import (
	"slices"
	"strconv"
)

// targetKind is what a rule does with a packet that it matches.
type targetKind uint8

const (
	targetNone targetKind = iota // counts, logs, changes what no rule looks at
	targetAccept
	targetDrop
	targetReturn
	targetJump
	targetGoto
	targetQueue // a program decides
	targetUnknown
	targetNotrack
	targetCT // a template: NOTRACK comes too late behind it
	targetNAT
	targetMark
	targetConnMark
	targetUnknownMark
	targetUnknownCMark
)

// plainTargets go on to the next rule, and change nothing that rules look at.
var plainTargets = set("", "LOG", "NFLOG", "ULOG", "TCPMSS", "TCPOPTSTRIP", "DSCP", "TOS", "TTL", "HL", "ECN", "CLASSIFY", "TRACE", "CHECKSUM", "AUDIT",
	"SECMARK", "CONNSECMARK", "LED", "IDLETIMER", "RATEEST", "TEE")

// target compiles what a rule does.
func (c *compiler) target(table string, r *compiledRule, s spec) {
	r.to = s.target
	switch {
	case s.isGoto:
		r.target = targetGoto
	case s.notracks():
		r.target = targetNotrack
	case s.target == "CT":
		r.target = targetCT
		r.value, r.mask = zoneOf(s)
	case s.target == "ACCEPT":
		r.target = targetAccept
	case s.target == "DROP", s.target == "REJECT", s.target == "TARPIT", s.target == "STEAL":
		r.target = targetDrop
	case s.target == "RETURN":
		r.target = targetReturn
	case s.target == "QUEUE", s.target == "NFQUEUE":
		r.target = targetQueue
	case s.target == "DNAT", s.target == "REDIRECT", s.target == "NETMAP", s.target == "SAME":
		r.target = targetNAT
	case s.target == "SNAT", s.target == "MASQUERADE":
		r.target = targetAccept
	case s.target == "MARK":
		c.markTarget(r, s, false)
	case s.target == "CONNMARK":
		c.markTarget(r, s, true)
	case s.target == "SET":
		if slices.ContainsFunc(s.topts, func(o option) bool { return o.name == "--map-set" }) {
			r.target, r.mask = targetUnknownMark, ^uint32(0)
		}
	case plainTargets[s.target]:
		r.target = targetNone
	case s.target == "SYNPROXY", s.target == "TPROXY", s.target == "DNPT", s.target == "SNPT", s.target == "CLUSTERIP":
		r.target = targetUnknown
	case s.target == "HMARK":
		r.target, r.mask = targetUnknownMark, ^uint32(0)
	default:
		r.target = targetJump
	}
}

// What compiledRule.mask says of a CT target's zone.
const (
	zoneKnown   = 1
	zoneUnknown = 2
)

// zoneOf is the zone that a CT target puts both ways of a connection in.
func zoneOf(s spec) (id, known uint32) {
	for _, o := range s.topts {
		if o.name != "--zone" || len(o.args) != 1 {
			continue
		}
		if n, err := strconv.ParseUint(o.args[0], 0, 16); err == nil {
			return uint32(n), zoneKnown
		}
		return 0, zoneUnknown // taken from the mark
	}
	return 0, 0
}

// markTarget reads what MARK and CONNMARK do (net/netfilter/xt_mark.c,
// xt_connmark.c): both compute (mark &^ mask) ^ value.
func (c *compiler) markTarget(r *compiledRule, s spec, conn bool) {
	r.target, r.value, r.mask = targetMark, 0, 0
	if conn {
		r.target = targetConnMark
	}
	for _, o := range s.topts {
		arg := ""
		if len(o.args) > 0 {
			arg = o.args[0]
		}
		v, m, ok := maskedNumber(arg)
		switch o.name {
		case "--set-xmark":
			r.value, r.mask = v, m
		case "--set-mark":
			r.value, r.mask = v, m|v
		case "--and-mark":
			r.value, r.mask = 0, ^v
		case "--or-mark":
			r.value, r.mask = v, v
		case "--xor-mark":
			r.value, r.mask = v, 0
		case "--save-mark":
			r.target, r.mask, ok = targetUnknownCMark, ^uint32(0), true
		case "--restore-mark":
			r.target, r.mask, r.fromConn, ok = targetUnknownMark, ^uint32(0), true, true
		default:
			ok = true
		}
		if !ok {
			r.mask = ^uint32(0)
			r.target = targetUnknownMark
			if conn {
				r.target = targetUnknownCMark
			}
			return
		}
	}
}
