package planner

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// parseLines reads the plain rules of these tests: no quotes, one space
// between words.
func parseLines(t testing.TB, f Family, text string) Ruleset {
	t.Helper()
	r := Ruleset{Family: f, Backend: NFT, Primary: true}
	at, line := 0, 0
	for l := range strings.SplitAfterSeq(text, "\n") {
		span := Span{at, at + len(l)}
		at, line = span.End, line+1
		l = strings.TrimSuffix(l, "\n")
		switch {
		case strings.HasPrefix(l, "*"):
			r.Tables = append(r.Tables, Table{Name: l[1:], Span: span})
		case l == "", strings.HasPrefix(l, "#"):
		default:
			tb := &r.Tables[len(r.Tables)-1]
			switch {
			case l == "COMMIT":
				tb.Commit, tb.Span.End = span, span.End
			case l[0] == ':':
				w := strings.Fields(l[1:])
				tb.Chains = append(tb.Chains, ChainDecl{Name: w[0], Policy: w[1], Line: line, Span: span})
			case strings.HasPrefix(l, "-A "):
				w := strings.Fields(l)[1:]
				tb.Rules = append(tb.Rules, Rule{Chain: w[0], Words: w[1:], Text: strings.Join(w[1:], " "), Line: line, Span: span})
			default:
				t.Fatalf("line %d: %q", line, l)
			}
		}
	}
	return r
}

// kernel is the tables of one family, on which steps really run.
type kernel struct {
	family Family
	tables []*TableModel
}

func newKernel(r Ruleset) *kernel {
	k := &kernel{family: r.Family}
	for i := range r.Tables {
		k.tables = append(k.tables, NewTableModel(r.Tables[i].Name, []*Table{&r.Tables[i]}))
	}
	return k
}

func (k *kernel) table(name string) *TableModel {
	for _, m := range k.tables {
		if m.Name() == name {
			return m
		}
	}
	m := NewTableModel(name, nil)
	k.tables = append(k.tables, m)
	return m
}

func (k *kernel) run(t testing.TB, s Section) {
	t.Helper()
	m := k.table(s.Table)
	for _, op := range s.Ops {
		rules := m.Rules(op.Chain)
		switch op.Kind {
		case InsertRule:
			if op.Pos < 1 || op.Pos > len(rules)+1 {
				t.Fatalf("insert at %d of %s, which has %d rules", op.Pos, op.Chain, len(rules))
			}
		case DeleteRule:
			if op.Pos < 1 || op.Pos > len(rules) || rules[op.Pos-1] != op.Rule {
				t.Fatalf("delete %q at %d of %s: %q", op.Rule, op.Pos, op.Chain, rules)
			}
		case SetChain, DropChain:
			if !slices.Equal(rules, op.Was) {
				t.Fatalf("%s %s had %q, the operation says %q", op.Kind, op.Chain, rules, op.Was)
			}
			if op.Kind == DropChain {
				for _, c := range m.Chains() {
					if slices.Contains(m.Rules(c.Name), jumpText(op.Chain)) {
						t.Fatalf("%s is dropped while %s jumps to it", op.Chain, c.Name)
					}
				}
			}
		}
		m.Apply(op)
	}
}

// text prints all tables; empty ones that were never there before are left
// out, since they mean the same.
func (k *kernel) text() string {
	var b strings.Builder
	for _, m := range k.tables {
		lines := m.Lines()
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "-A") || !strings.HasSuffix(l, "ACCEPT") }) {
			continue
		}
		b.WriteString("*" + m.Name() + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n")
	}
	return b.String()
}

func randomForeign(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString("*filter\n")
	policy := []string{"ACCEPT", "DROP"}[r.IntN(2)]
	fmt.Fprintf(&b, ":INPUT %s\n:FORWARD ACCEPT\n:OUTPUT %s\n:f2b -\n", policy, policy)
	for _, chain := range []string{"INPUT", "OUTPUT", "FORWARD", "f2b"} {
		if chain != "f2b" && r.IntN(2) == 0 {
			fmt.Fprintf(&b, "-A %s -m state --state ESTABLISHED -j ACCEPT\n", chain)
		}
		for range r.IntN(4) {
			m := randomMatches(r)
			switch r.IntN(6) {
			case 0:
				m = append(m, "-m", "state", "--state", []string{"ESTABLISHED", "NEW", "INVALID"}[r.IntN(3)])
			case 1:
				m = append(m, "-m", "limit", "--limit", "5/sec")
			case 2:
				m = nil
			}
			targets := []string{"ACCEPT", "DROP", "REJECT", "LOG", "RETURN", "f2b"}
			if chain == "f2b" {
				targets = targets[:5]
			}
			fmt.Fprintf(&b, "-A %s %s\n", chain, strings.Join(append(m, "-j", targets[r.IntN(len(targets))]), " "))
		}
	}
	b.WriteString("COMMIT\n")
	if r.IntN(3) == 0 {
		b.WriteString("*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n")
		if r.IntN(2) == 0 {
			b.WriteString("-A PREROUTING -p udp -j CT --notrack\n")
		}
		if r.IntN(2) == 0 {
			b.WriteString("-A OUTPUT -j ACCEPT\n")
		}
		b.WriteString("COMMIT\n")
	}
	if r.IntN(4) == 0 {
		b.WriteString("*mangle\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n-A PREROUTING -j CONNMARK --restore-mark\nCOMMIT\n")
	}
	return b.String()
}

// randomDesired declares a mode with chains as providers/iptables renders
// them; here they are made by hand, so that the planner is tested alone.
func randomDesired(r *rand.Rand) Desired {
	d := Desired{
		Block: "test", Source: Pos{"test.hcl", 1}, ModeSource: Pos{"test.hcl", 2},
		Mode: []Mode{Notrack, Disabled, Tuned}[r.IntN(3)], Families: []Family{IPv4},
		StatefulRules: RemoveStateful, AllowRisk: Risks,
		Max: &Setting{Value: 1000}, Hashsize: &Setting{Value: 512},
	}
	if d.Mode == Tuned {
		return d
	}
	var in, out, forward, pre, rawOut []string
	for range 1 + r.IntN(4) {
		proto := worldProtos[r.IntN(2)]
		port := worldPorts[r.IntN(len(worldPorts))]
		in = append(in, fmt.Sprintf("-p %s -m %s --dport %d -j ACCEPT", proto, proto, port))
		out = append(out, fmt.Sprintf("-p %s -m %s --sport %d -j ACCEPT", proto, proto, port))
		if r.IntN(3) == 0 {
			forward = append(forward, fmt.Sprintf("-d 10.0.1.0/24 -p %s -j ACCEPT", proto))
		}
	}
	if d.Mode == Notrack {
		for _, proto := range []string{"-p tcp", "-p udp -m udp --dport 80", ""}[:1+r.IntN(3)] {
			rule := strings.TrimSpace(proto + " -j CT --notrack")
			pre, rawOut = append(pre, rule), append(rawOut, rule)
		}
	}
	add := func(table, hook string, rules []string) {
		if len(rules) == 0 {
			return
		}
		c := Chain{Family: IPv4, Table: table, Hook: hook, Name: OwnPrefix + hook}
		for i, text := range rules {
			c.Rules = append(c.Rules, TargetRule{Rule: Rule{Chain: c.Name, Words: strings.Fields(text), Text: text}, Source: Pos{"test.hcl", 10 + i}})
		}
		d.Chains = append(d.Chains, c)
	}
	add("filter", "INPUT", in)
	add("filter", "OUTPUT", out)
	add("filter", "FORWARD", forward)
	add("raw", "PREROUTING", pre)
	add("raw", "OUTPUT", rawOut)
	return d
}

func testHost(r Ruleset) Live {
	return Live{
		Host:      Host{Name: "h", Kernel: "6.1.0", Memory: 1 << 34, PageSize: 4096, PointerSize: 8},
		Conntrack: Conntrack{Kind: ConntrackBuiltin, Loaded: true, Hashsize: 512, InitialNetns: true},
		Sysctls:   map[string]Sysctl{keyMax: {Value: "1000", Writable: true}},
		Rulesets:  []Ruleset{r},
	}
}

func rulesSections(p Plan) []Section {
	var out []Section
	for _, s := range Steps(p) {
		if s.Rules != nil {
			out = append(out, s.Rules.Sections...)
		}
	}
	return out
}

// flow is one packet of the small world, with what the host remembers of it.
type flow struct {
	hook, proto, src, dst, in, out string
	sport, dport                   uint16
	state                          string // while it is tracked
}

// accepts is a reference evaluator for the rules that these tests make up. A
// rate limit counts as not matching for ACCEPT and as matching for a drop.
func (k *kernel) accepts(f flow) bool {
	raw, filter := k.table("raw"), k.table("filter")
	hook := f.hook
	if hook != "OUTPUT" {
		hook = "PREROUTING"
	}
	if k.verdict(raw, hook, f) == "NOTRACK" {
		f.state = "UNTRACKED"
	}
	v := k.verdict(filter, f.hook, f)
	if v == "" {
		i := slices.IndexFunc(filter.Chains(), func(c ChainDecl) bool { return c.Name == f.hook })
		v = filter.Chains()[i].Policy
	}
	return v == "ACCEPT"
}

func (k *kernel) verdict(m *TableModel, chain string, f flow) string {
	for _, text := range m.Rules(chain) {
		s := parseSpec(strings.Fields(text))
		drops := s.target == "DROP" || s.target == "REJECT"
		hit := true
		var plain []string
		for _, o := range s.opts {
			switch o.name {
			case "--state":
				hit = hit && slices.Contains(o.args, f.state) != o.not
			case "--limit":
				hit = hit && drops
			case "-i":
				hit = hit && f.hook != "OUTPUT"
				plain = append(plain, optionWords(o)...)
			case "-o":
				hit = hit && f.hook != "INPUT"
				plain = append(plain, optionWords(o)...)
			default:
				plain = append(plain, optionWords(o)...)
			}
		}
		if !hit || !matches(plain, f.proto, f.src, f.dst, f.in, f.out, f.sport, f.dport) {
			continue
		}
		switch {
		case s.notracks():
			return "NOTRACK"
		case drops, s.target == "ACCEPT":
			return s.target
		case s.target == "RETURN":
			return ""
		case m.Has(s.target):
			if v := k.verdict(m, s.target, f); v != "" {
				return v
			}
		}
	}
	return ""
}

func optionWords(o option) []string {
	w := append([]string{o.name}, o.args...)
	if o.not {
		return append([]string{"!"}, w...)
	}
	return w
}

func worldFlows() []flow {
	var flows []flow
	for _, hook := range []string{"INPUT", "OUTPUT", "FORWARD"} {
		for _, proto := range worldProtos {
			for _, src := range worldAddrs {
				for _, dst := range worldAddrs[:2] {
					for _, port := range worldPorts {
						for _, state := range []string{"NEW", "ESTABLISHED"} {
							flows = append(flows, flow{hook, proto, src, dst, "eth0", "eth1", 40000, port, state}, flow{hook, proto, src, dst, "eth0", "eth1", port, 40000, state})
						}
					}
				}
			}
		}
	}
	return flows
}
