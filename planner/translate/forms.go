package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// form is what stands in the place of a match on state: one condition that a
// packet shows. Its code names it in the mark of a twin.
type form struct {
	code   string
	option string // "--tcp-flags"; "" for none
	text   string // with what it takes, as iptables-save prints it
}

var anyForm = form{code: "any"}

// The forms of TCP. A conversation begins with SYN alone of these four flags, and
// no other packet of it is so (RFC 9293).
var (
	synForm   = form{"syn", "--tcp-flags", "--tcp-flags FIN,SYN,RST,ACK SYN"}
	noSynForm = form{"nosyn", "--tcp-flags", "! --tcp-flags FIN,SYN,RST,ACK SYN"}
	// badForms are together the combinations that the kernel calls INVALID
	// (tcp_valid_flags in net/netfilter/nf_conntrack_proto_tcp.c).
	badForms = []form{
		{"bad1", "--tcp-flags", "--tcp-flags SYN,RST,ACK NONE"},
		{"bad2", "--tcp-flags", "--tcp-flags FIN,SYN FIN,SYN"},
		{"bad3", "--tcp-flags", "--tcp-flags SYN,RST SYN,RST"},
		{"bad4", "--tcp-flags", "--tcp-flags FIN,RST FIN,RST"},
		{"bad5", "--tcp-flags", "--tcp-flags RST,URG RST,URG"},
		{"bad6", "--tcp-flags", "--tcp-flags SYN,ACK,URG SYN,ACK,URG"},
	}
)

// icmpTypes are those that ask, that answer, and that report an error of another
// conversation (net/ipv4/netfilter: icmp_new, nf_conntrack_icmp_error; RFC 792,
// RFC 4443). Source quench and timestamps are left out: nobody sends the one
// (RFC 6633), and nobody waits for the others.
type icmpTypes struct{ asks, answers, errors []uint8 }

func icmpTypesOf(f host.Family) icmpTypes {
	if f == host.IPv6 {
		return icmpTypes{[]uint8{128}, []uint8{129}, []uint8{1, 2, 3, 4}}
	}
	return icmpTypes{[]uint8{8}, []uint8{0}, []uint8{3, 5, 11, 12}}
}

func icmpForm(f host.Family, typ uint8) form {
	option := "--icmp-type"
	if f == host.IPv6 {
		option = "--icmpv6-type"
	}
	return form{fmt.Sprintf("type%d", typ), option, fmt.Sprintf("%s %d", option, typ)}
}

const opensAndGoesOn = verdict.StateNew | verdict.StateEstablished

// tcpForms stand for the states of TCP. They may be fewer than one for what no
// conversation shows.
func tcpForms(states verdict.State) []form {
	var out []form
	switch states & opensAndGoesOn {
	case opensAndGoesOn:
		return []form{anyForm}
	case verdict.StateEstablished:
		return []form{noSynForm} // flags that no TCP sends are among it
	case verdict.StateNew:
		out = append(out, synForm)
	}
	if states&verdict.StateInvalid != 0 {
		out = append(out, badForms...)
	}
	return out
}

// otherForms stand for the states of what shows no sign of beginning or
// answering, as UDP: who takes the first takes all.
func otherForms(states verdict.State) []form {
	if states&verdict.StateNew != 0 {
		return []form{anyForm}
	}
	return nil
}

// icmpForms stand for the states of ICMP.
func icmpForms(f host.Family, states verdict.State) []form {
	const all = opensAndGoesOn | verdict.StateRelated
	if states&all == all {
		return []form{anyForm}
	}
	types := icmpTypesOf(f)
	var out []form
	for _, of := range []struct {
		state verdict.State
		types []uint8
	}{{verdict.StateEstablished, types.answers}, {verdict.StateNew, types.asks}, {verdict.StateRelated, types.errors}} {
		if states&of.state == 0 {
			continue
		}
		for _, t := range of.types {
			out = append(out, icmpForm(f, t))
		}
	}
	return out
}

// flagSet is a set of combinations of FIN, SYN, RST, ACK and URG, by bit: PSH
// tells nothing.
type flagSet uint32

// flagsAt are the flags of the nth combination.
func flagsAt(n int) uint8 {
	flags := [...]uint8{verdict.TCPFin, verdict.TCPSyn, verdict.TCPRst, verdict.TCPAck, verdict.TCPUrg}
	var out uint8
	for i, f := range flags {
		if n>>i&1 != 0 {
			out |= f
		}
	}
	return out
}

// validFlags are the combinations that TCP sends.
func validFlags(f uint8) bool {
	const (
		fin, syn, rst, ack, urg = verdict.TCPFin, verdict.TCPSyn, verdict.TCPRst, verdict.TCPAck, verdict.TCPUrg
	)
	switch f &^ verdict.TCPPsh {
	case syn, syn | urg, syn | ack, rst, rst | ack, fin | ack, fin | ack | urg, ack, ack | urg:
		return true
	}
	return false
}

func flagsWhere(holds func(flags uint8) bool) (s flagSet) {
	for n := range 32 {
		if holds(flagsAt(n)) {
			s |= 1 << n
		}
	}
	return s
}

var validSet = flagsWhere(validFlags)

var flagBits = map[string]uint8{"FIN": verdict.TCPFin, "SYN": verdict.TCPSyn, "RST": verdict.TCPRst, "PSH": verdict.TCPPsh, "ACK": verdict.TCPAck, "URG": verdict.TCPUrg, "ALL": 0x3f, "NONE": 0}

// flagsOf are the combinations that an option of TCP lets through. It reports
// false for one that cannot be read.
func flagsOf(text string) (flagSet, bool) {
	w := strings.Fields(text)
	not := len(w) > 0 && w[0] == "!"
	if not {
		w = w[1:]
	}
	if len(w) == 1 && w[0] == "--syn" {
		w = strings.Fields(synForm.text)
	}
	if len(w) != 3 {
		return 0, false
	}
	var v [2]uint8
	for i, list := range w[1:] {
		for name := range strings.SplitSeq(list, ",") {
			bit, ok := flagBits[name]
			if !ok {
				return 0, false
			}
			v[i] |= bit
		}
	}
	v[0], v[1] = v[0]&^verdict.TCPPsh, v[1]&^verdict.TCPPsh
	return flagsWhere(func(f uint8) bool { return (f&v[0] == v[1]) != not }), true
}

// fitFlags fits forms of TCP to a rule that asks for flags itself, since no
// version of iptables keeps two such conditions apart. It reports false where
// that takes both.
func fitFlags(own string, forms []form) ([]form, bool) {
	has, ok := flagsOf(own)
	if !ok {
		return nil, false
	}
	var out []form
	for _, f := range forms {
		if f.option == "" {
			return []form{anyForm}, true
		}
		asks, _ := flagsOf(f.text)
		within := validSet // what counts of it
		if strings.HasPrefix(f.code, "bad") {
			within = ^flagSet(0)
		}
		switch {
		case has&asks&within == 0: // nothing is in both
		case has&within&^asks == 0:
			return []form{anyForm}, true
		default:
			return nil, false
		}
	}
	return out, true
}

// fitTypes fits forms of ICMP to a rule that asks for a type itself.
func fitTypes(own part, forms []form) ([]form, bool) {
	if len(own.Args) != 1 || own.Not {
		return nil, false
	}
	typ, _, hasCode := strings.Cut(own.Args[0], "/")
	n, err := strconv.Atoi(typ)
	if name, ok := icmpNames[own.Args[0]]; err != nil && ok {
		n, err = name, nil
	}
	if typ == "any" || err == nil && n == 255 && !hasCode {
		return nil, false
	}
	if err != nil {
		return nil, false
	}
	if slices.ContainsFunc(forms, func(f form) bool { return f.option == "" || f.code == fmt.Sprintf("type%d", n) }) {
		return []form{anyForm}, true
	}
	return nil, true
}

// icmpNames are those that rules files written by hand use.
var icmpNames = map[string]int{"echo-reply": 0, "pong": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8, "ping": 8, "time-exceeded": 11, "ttl-exceeded": 11, "parameter-problem": 12}
