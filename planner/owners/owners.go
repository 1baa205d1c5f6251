// Package owners is who keeps a table of nftables, which file loads it, and how
// its owner is told to let something through.
//
// An accept of iptables ends its own base chain alone: what a chain of nftables
// drops has to be accepted there. Commands are given where they were tried with
// that owner; where none was, the text says so.
package owners

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/planner/words"
)

// Cut is packets that a rule, or a policy, of nftables drops.
type Cut struct {
	Rule    *verdict.RuleRef
	Packets Packets
}

// Advice is what to do: a phrase to end a sentence with, and shell commands.
type Advice struct {
	Text     string
	Commands []string
}

// place is where a rule stands.
type place struct {
	ref   *verdict.RuleRef
	table *host.NFTTable
	chain *host.NFTChain // nil where the ref names none that was read
	rule  int            // in the chain; -1: its policy, or not found
	owner string         // a program that makes the table; empty where none is known
	from  nftables.Origin
}

// find looks a rule up; ok is false for one that is none of nftables' own.
func find(l *host.Live, ref *verdict.RuleRef) (p place, ok bool) {
	if ref.NativeChain() == "" {
		return p, false
	}
	p.ref, p.rule = ref, -1
	if p.table = host.FindNFT(l.NFT, ref.Native, ref.Table); p.table == nil {
		return p, true
	}
	if p.chain = p.table.Chain(ref.Chain); p.chain != nil {
		if ref.Handle != 0 {
			p.rule = slices.IndexFunc(p.chain.Rules, func(r host.NFTRule) bool { return r.Handle == ref.Handle })
		}
	}
	p.owner = nftables.Keeper(p.table, ref.Chain)
	if p.from = nftables.OriginOf(&l.NFTConf, p.table, p.chain, p.rule); ref.Handle != 0 && p.rule < 0 {
		p.from.Added = false // it was not found
	}
	return p, true
}

// Where names a rule as it is printed, with the file and line that load it, or
// with the program that makes it, where they are known. printed is the rule
// where it is none of nftables' own.
func Where(l *host.Live, ref *verdict.RuleRef, printed string) string {
	p, ok := find(l, ref)
	switch {
	case !ok:
		return printed
	case p.owner != "":
		return printed + " (made by " + p.owner + ")"
	case p.from.Added:
		return printed + " (added by hand, in no file that nftables.service loads)"
	case p.from.At != "":
		return printed + " (nftables.service, " + p.from.At + ")"
	}
	return printed
}

// TakesLines is whether a rule is where lines of nft can be put, by whoever keeps the
// file that loads it: no program makes the table again.
func TakesLines(l *host.Live, ref *verdict.RuleRef) bool {
	p, ok := find(l, ref)
	return ok && p.owner == "" && p.chain != nil && p.seesState()
}

// Accepts is whether an accept block lets through what a rule drops: it is one of
// iptables, or of a table of nftables that ctplan's own rules go to.
func Accepts(d declared.Desired, l *host.Live, ref *verdict.RuleRef) bool {
	p, native := find(l, ref)
	if !native {
		return true
	}
	through, _ := carrier.Of(d, *l)
	return through == declared.NFTables && p.table != nil && carrier.TakesRules(p.table) && p.seesState()
}

// ToLetThrough is how to let through what the cuts drop; accept is the block that
// does where Accepts says so of a rule. Cuts of one rule come together.
func ToLetThrough(d declared.Desired, l *host.Live, by *verdict.RuleRef, cuts []Cut, accept string) Advice {
	var out Advice
	var parts []string
	cuts = slices.DeleteFunc(slices.Clone(cuts), func(c Cut) bool { return c.Rule.NativeChain() != "" && Accepts(d, l, c.Rule) })
	if !Accepts(d, l, by) {
		accept = ""
	}
	if accept != "" {
		parts = append(parts, accept)
	}
	for len(cuts) > 0 {
		n := 1
		for n < len(cuts) && *cuts[n].Rule == *cuts[0].Rule {
			n++
		}
		p, _ := find(l, cuts[0].Rule)
		text, commands := p.letThrough(cuts[:n])
		if !slices.Contains(parts, text) {
			parts = append(parts, text)
		}
		for _, c := range commands {
			if !slices.Contains(out.Commands, c) {
				out.Commands = append(out.Commands, c)
			}
		}
		cuts = cuts[n:]
	}
	if out.Text = strings.Join(parts, "; and "); accept == "" && len(out.Commands) > 0 {
		out.Text += "; and ask for it in an accept block, which says who may get in by that"
	}
	return out
}

// letThrough is the same for one rule.
func (p *place) letThrough(cuts []Cut) (text string, commands []string) {
	const inVain = ", where an accept of iptables counts for nothing"
	switch {
	case p.owner == "firewalld":
		return p.firewalld(cuts)
	case p.owner != "":
		return fmt.Sprintf("leave it tracked: the rule is one of %s, which %s makes and makes again, and no way was tried to have it let this through", p.ref.NativeChain(), p.owner), nil
	case p.chain == nil || !p.seesState():
		return "accept it in the chain of nftables that drops it, " + p.ref.NativeChain() + inVain, nil
	}
	var lines []string
	for _, c := range cuts {
		if line := c.Packets.nft(p.table.Family); !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	for _, line := range lines {
		if c := p.command(line); c != "" {
			commands = append(commands, c)
		}
	}
	text = "accept it in the chain of nftables that drops it, " + p.ref.NativeChain() + inVain
	if len(commands) > 0 {
		text += ": at once by the commands below"
	}
	quoted := "`" + strings.Join(lines, "` and `") + "`"
	switch {
	case p.from.Added:
		what := "rule"
		if p.ref.Handle == 0 {
			what = "policy"
		}
		text += fmt.Sprintf(", and for good by %s where that %s comes from: no file that nftables.service loads has it", quoted, what)
	case p.from.Exact:
		text += fmt.Sprintf(", and for good by %s before %s", quoted, p.from.At)
	case p.from.At != "" && p.rule < 0 && p.ref.Handle == 0:
		text += fmt.Sprintf(", and for good by %s as the last of the chain at %s", quoted, p.from.At)
	case p.from.At != "":
		text += fmt.Sprintf(", and for good by %s before that rule, in %s", quoted, p.from.At)
	default:
		text += fmt.Sprintf(", and for good by %s where the table comes from: no file that nftables.service loads has it", quoted)
	}
	return text, commands
}

// seesState is whether rules there can ask for a state, which packets have
// where chains of IP see them.
func (p *place) seesState() bool {
	return p.chain != nil && p.chain.Hook != "ingress" && p.chain.Hook != "egress" && slices.Contains([]string{"ip", "ip6", "inet"}, p.table.Family)
}

// command puts a line before the rule that drops, or last where the policy does;
// empty for names that cannot be written.
func (p *place) command(line string) string {
	chain := nftables.ChainName(p.table, p.chain.Name)
	switch {
	case chain == "":
		return ""
	case p.ref.Handle != 0:
		return fmt.Sprintf("nft insert rule %s position %d %s", chain, p.ref.Handle, shell(line))
	}
	return fmt.Sprintf("nft add rule %s %s", chain, shell(line))
}

// shell writes a line of nft as words of a shell: as it stands where they need
// no quotes.
func shell(line string) string {
	if fields := strings.Fields(line); words.ShellWords(fields...) == line {
		return line
	}
	return words.ShellWords(line)
}
