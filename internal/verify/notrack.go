package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// BlockSeen is what was seen of one notrack block.
type BlockSeen struct {
	Before  uint64 // packets that its rules had taken when the watching began
	Packets uint64 // in the end
	Entries Entries
	// EntriesErr is why the table could not be read; empty where it was.
	EntriesErr string
}

// notrack is whether the declared traffic is taken out of tracking, and stays
// out of it.
func (c *checker) notrack() {
	for i, t := range c.in.Desired.Notrack {
		var seen BlockSeen
		if i < len(c.in.Blocks) {
			seen = c.in.Blocks[i]
		}
		c.rules(t)
		c.packets(t, seen)
		c.entries(t, seen)
	}
}

// Standing counts the rules of a notrack block that packets come to in the
// kernel, of those declared.
func Standing(d declared.Desired, live host.Live, block string) (standing, declared int, missing []string) {
	if native(d, live) {
		return standingNative(d, live, block)
	}
	for _, want := range d.Chains {
		if want.Table != "raw" {
			continue
		}
		has, jump := 0, false
		for _, rs := range live.Rulesets {
			if rs.Family != want.Family || !rs.Primary {
				continue
			}
			for _, t := range rs.Tables {
				if t.Name != want.Table {
					continue
				}
				for i := range t.Rules {
					r := &t.Rules[i]
					jump = jump || r.Chain == want.Hook && slices.Contains(r.Words, want.Name)
					if r.Chain == want.Name && Named(r.Words, block) {
						has++
					}
				}
			}
		}
		asked := 0
		for i := range want.Rules {
			if Named(want.Rules[i].Words, block) {
				asked++
			}
		}
		declared += asked
		switch where := fmt.Sprintf("%s raw %s", want.Family, want.Name); {
		case asked == 0:
		case !jump:
			missing = append(missing, fmt.Sprintf("%s: no rule of %s leads there", where, want.Hook))
		case has < asked:
			missing = append(missing, fmt.Sprintf("%s: %d of %s", where, has, plural(asked, "rule", "rules")))
			standing += has
		default:
			standing += asked
		}
	}
	return standing, declared, missing
}

// native is whether nftables carries the rules.
func native(d declared.Desired, live host.Live) bool {
	through, _ := carrier.Of(d, live)
	return through == declared.NFTables
}

// standingNative is Standing where nftables carries the rules.
func standingNative(d declared.Desired, live host.Live, block string) (standing, asked int, missing []string) {
	for _, want := range d.Native {
		if !want.Notrack || want.Family != "inet" {
			continue
		}
		need, has := 0, 0
		for i := range want.Rules {
			if want.Rules[i].Comment == block {
				need++
			}
		}
		name := declared.OwnPrefix + want.Hook
		for _, t := range live.NFT {
			if t.Family != want.Family || t.Name != declared.OwnTable || t.Dormant {
				continue
			}
			for _, c := range t.Chains {
				if c.Name != name || c.Hook != want.Hook {
					continue
				}
				for i := range c.Rules {
					if c.Rules[i].Comment == block {
						has++
					}
				}
			}
		}
		asked, standing = asked+need, standing+min(has, need)
		if has < need {
			missing = append(missing, fmt.Sprintf("%s %s %s: %d of %s", want.Family, declared.OwnTable, name, has, plural(need, "rule", "rules")))
		}
	}
	return standing, asked, missing
}

// Named reports whether a rule's words have the name of a block as their
// comment, as ctplan writes it.
func Named(words []string, block string) bool {
	i := slices.Index(words, "--comment")
	return i >= 0 && i+1 < len(words) && words[i+1] == block
}

func (c *checker) rules(t declared.Traffic) {
	standing, declared, missing := Standing(c.in.Desired, c.in.Live, t.Name)
	name, what := "notrack."+t.Name+".rules", fmt.Sprintf("packets of %q reach its NOTRACK rules", t.Name)
	why := ""
	if standing < declared {
		why = fmt.Sprintf("%d of %s is missing or never reached", declared-standing, plural(declared, "rule", "rules"))
		if declared-standing > 1 {
			why = strings.Replace(why, " is ", " are ", 1)
		}
	}
	c.passes(why == "", name, what, why, missing...)
}

// absent reports whether no rule of the block is there to count.
func (c *checker) absent(t declared.Traffic) bool {
	standing, declared, _ := Standing(c.in.Desired, c.in.Live, t.Name)
	return standing == 0 && declared > 0
}

func (c *checker) packets(t declared.Traffic, seen BlockSeen) {
	name, what := "notrack."+t.Name+".packets", fmt.Sprintf("the NOTRACK rules of %q take packets", t.Name)
	// Whoever loads the rules anew meanwhile starts their counters again.
	grown := seen.Packets
	if seen.Packets >= seen.Before {
		grown -= seen.Before
	}
	switch {
	case native(c.in.Desired, c.in.Live):
		c.add(name, Skip, what, "rules of nftables that ctplan writes count nothing")
	case c.absent(t):
		c.add(name, Skip, what, "none of them stands")
	case c.in.Watched > 0 && grown > 0:
		c.add(name, Pass, what, fmt.Sprintf("%s in %s", plural(grown, "packet", "packets"), span(c.in.Watched)))
	case c.in.Watched > 0:
		c.add(name, Skip, what, fmt.Sprintf("no traffic in %s, and %s before", span(c.in.Watched), plural(seen.Before, "packet", "packets")))
	case seen.Packets > 0:
		c.add(name, Pass, what, plural(seen.Packets, "packet", "packets")+" since the rules were loaded")
	default:
		c.add(name, Skip, what, "no traffic since the rules were loaded: --wait 60s watches for it")
	}
}

func (c *checker) entries(t declared.Traffic, seen BlockSeen) {
	name, what := "notrack."+t.Name+".entries", fmt.Sprintf("%q leaves no entries in the table", t.Name)
	e := seen.Entries
	old := ""
	if e.Old > 0 {
		old = fmt.Sprintf("%s from before the change, the last of which ends in %s", plural(e.Old, "entry is", "entries are"), span(time.Duration(e.Longest)*time.Second))
	}
	switch {
	case seen.EntriesErr != "":
		c.add(name, Skip, what, seen.EntriesErr)
	case e.New > 0 && t.Interface != "":
		c.add(name, Skip, what, fmt.Sprintf("%s have its addresses and ports, and the table does not say through which interface they came", plural(e.New+e.Unsure, "entry", "entries")), e.Examples...)
	case e.New > 0:
		c.add(name, Fail, what, plural(e.New, "entry was", "entries were")+" made or used since", e.Examples...)
	case e.Unsure > 0:
		c.add(name, Skip, what, fmt.Sprintf("whether %s from before the change is not known: --wait 60s tells", plural(e.Unsure, "entry is", "entries are")), e.Examples...)
	case seen.Packets == 0:
		c.add(name, Skip, what, "no packet came that could have left one")
	default:
		c.add(name, Pass, what, old)
	}
}
