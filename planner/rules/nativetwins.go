package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/owners"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/translate"
	"github.com/ctplan/ctplan/planner/verdict/nft"
	"github.com/ctplan/ctplan/planner/words"
)

// nativeTwin is a rule of nftables on state with the lines that stand for it.
type nativeTwin struct {
	nft.Rule
	translate.Lines
}

// nativeTwins gives the lines that stand for rules of nftables on state, as
// commands: they are not ctplan's to write. It tells nothing of rules that have
// them already, nor of tables that a program makes again.
func (p *stage) nativeTwins() {
	if p.d.StatefulRules != declared.TranslateStateful || p.d.Mode != declared.Notrack {
		return
	}
	type place struct {
		native, table string
		handle        uint64
	}
	var found []*nativeTwin
	at := map[place]*nativeTwin{}
	takers, lines := nativeTakers{}, map[*host.NFTChain]bool{}
	for _, f := range host.Families {
		for _, r := range nft.Rules(p.l.NFT, f, nft.AsksForTracking) {
			takes, ok := lines[r.Chain]
			if !ok {
				takes = owners.TakesLines(&p.l, &r.Ref)
				lines[r.Chain] = takes
			}
			if !takes {
				continue
			}
			got, touched := p.translator.Native(r.Source.Text, p.nativeScope(f, &r, takers))
			if !touched || len(got.Lines) == 0 && got.None == "" {
				continue
			}
			key := place{r.Ref.Native, r.Ref.Table, r.Ref.Handle}
			if at[key] != nil {
				at[key].join(&got)
				continue
			}
			at[key] = &nativeTwin{r, got}
			found = append(found, at[key])
		}
	}
	slices.SortStableFunc(found, func(a, b *nativeTwin) int {
		return cmp.Or(strings.Compare(a.Ref.Native, b.Ref.Native), strings.Compare(a.Ref.Table, b.Ref.Table))
	})
	for len(found) > 0 {
		n := 1
		for n < len(found) && found[n].Ref.Native == found[0].Ref.Native && found[n].Ref.Table == found[0].Ref.Table {
			n++
		}
		p.tellNative(found[:n])
		found = found[n:]
	}
}

// join adds what stands for the rule for packets of the other family.
func (t *nativeTwin) join(more *translate.Lines) {
	add := func(list *[]string, more []string) {
		for _, s := range more {
			if !slices.Contains(*list, s) {
				*list = append(*list, s)
			}
		}
	}
	t.Grade |= more.Grade
	t.None = words.Or(t.None, more.None)
	add(&t.Lines.Lines, more.Lines)
	add(&t.Why, more.Why)
	add(&t.Note, more.Note)
}

// nativeTakers are the first rules that take all packets in a state, by chain and
// state: their index, or -1.
type nativeTakers map[nativeTaker]int

type nativeTaker struct {
	chain *host.NFTChain
	state string
}

func (t nativeTakers) first(c *host.NFTChain, state string) int {
	key := nativeTaker{c, state}
	at, ok := t[key]
	if !ok {
		at = slices.IndexFunc(c.Rules, func(r host.NFTRule) bool { return translate.TakesNative(r.Text, state) })
		t[key] = at
	}
	return at
}

// nativeScope is what is known of the traffic that a rule of nftables sees.
func (p *stage) nativeScope(f host.Family, r *nft.Rule, takers nativeTakers) translate.Scope {
	chain := builtIn[r.Chain.Hook]
	in := translate.Scope{Family: f} // accept blocks of iptables let nothing through there
	taken := func(state string) func() bool {
		return func() bool {
			at := takers.first(r.Chain, state)
			return at >= 0 && at < slices.IndexFunc(r.Chain.Rules, func(o host.NFTRule) bool { return o.Handle == r.Source.Handle })
		}
	}
	in.Answered, in.Related = taken("established"), taken("related")
	in.Errors = slices.ContainsFunc(p.untrack, func(o untracked) bool { return o.family == f && slices.Contains(hooksBefore(chain), o.hook) })
	in.Untracks = func(proto string) (touched, covered bool) {
		q := r.Packets
		if q.Proto == "" || q.NotProto {
			q.Proto, q.NotProto = words.Or(protocol.Canonical(proto), "other"), false
		}
		return p.untracks(f, chain, q)
	}
	return in
}

// stands is whether the lines are there: right before the rule as many that ask
// for what is untracked.
func (t *nativeTwin) stands() bool {
	asks := func(line string) bool { return strings.Contains(line, "ct state untracked") }
	want := 0
	for _, l := range t.Lines.Lines {
		if asks(l) {
			want++
		}
	}
	at := slices.IndexFunc(t.Chain.Rules, func(r host.NFTRule) bool { return r.Handle == t.Source.Handle })
	for at--; at >= 0 && want > 0; at-- {
		switch text := t.Chain.Rules[at].Text; {
		case asks(text):
			want--
		case !strings.HasPrefix(text, "icmp"):
			return false
		}
	}
	return want == 0
}

// tellNative tells of the rules of one table.
func (p *stage) tellNative(twins []*nativeTwin) {
	var named, commands []string
	more := 0
	for _, t := range twins {
		if t.None == "" && t.stands() {
			continue
		}
		if len(named) == change.MaxNamed {
			more++
			continue
		}
		text := owners.Where(&p.l, &t.Ref, t.Ref.String()) + ": "
		if t.None != "" {
			named = append(named, text+"nothing, since "+t.None)
			continue
		}
		named = append(named, text+strings.Join(append([]string{t.Grade.String()}, t.Why...), ", "))
		chain := nftables.ChainName(&host.NFTTable{Family: t.Ref.Native, Name: t.Ref.Table}, t.Ref.Chain)
		if chain == "" {
			continue
		}
		for _, l := range t.Lines.Lines {
			commands = append(commands, fmt.Sprintf("nft insert rule %s position %d %s", chain, t.Ref.Handle, words.ShellWords(l)))
		}
	}
	if len(named) == 0 {
		return
	}
	if more > 0 {
		named = append(named, words.Plural(more, "more rule", "more rules"))
	}
	text := "rules of nftables that match on connection state stop matching what is no longer tracked, and ctplan does not translate them in place. What stands for them is below, a line of nft before each, to be put into the file that loads them too; it does nothing before the traffic is untracked: "
	p.Warn("nftables."+twins[0].Ref.Native+"."+twins[0].Ref.Table, text+strings.Join(named, "; "), p.d.Source, commands...)
}
