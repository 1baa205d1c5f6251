package nftables

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// workOf are the parts of nftables, by the names of NFTItem.Uses, that have
// connection tracking do more than tell states.
var workOf = map[string]declared.Risk{
	"synproxy": declared.RiskSYNProxy, "connlimit": declared.RiskConnectionLimits, "flow_offload": declared.RiskFlowtables,
	"ct timeout": declared.RiskRuleTimeouts,
}

// keyWork is the same of what ct loads or sets (enum nft_ct_keys), with the
// words that nft prints for it.
var keyWork = []struct {
	key  uint32
	word string
	risk declared.Risk
}{
	{3, "ct mark", declared.RiskConnectionMarks}, {4, "ct secmark", declared.RiskConnectionMarks}, {13, "ct label", declared.RiskConnectionMarks},
	{14, "packets", declared.RiskConnectionBytes}, {15, "bytes", declared.RiskConnectionBytes}, {16, "avgpkt", declared.RiskConnectionBytes},
	{17, "zone", declared.RiskZones},
}

// WorkOf is what a rule among a table's items has connection tracking do that
// nothing else can, beside telling states and translating addresses; "" where it
// does not. Of a table that was not read whole its text says so.
func WorkOf(t *host.NFTTable, i *host.NFTItem) declared.Risk {
	for _, u := range i.Uses {
		if r := workOf[u]; r != "" {
			return r
		}
		name, isMatch := strings.CutPrefix(u, "match ")
		target, isTarget := strings.CutPrefix(u, "target ")
		switch {
		case isMatch:
			if r := xtables.WorkOf(xtables.Spec{Modules: []string{name}}); r != "" {
				return r
			}
		case isTarget:
			if r := xtables.WorkOf(xtables.Spec{Target: target}); r != "" {
				return r
			}
		}
	}
	rule := ruleOf(t, i)
	for _, k := range keyWork {
		if rule == nil && strings.Contains(i.Text, "ct ") && strings.Contains(i.Text, k.word) {
			return k.risk
		}
	}
	if rule == nil {
		return ""
	}
	for n := range rule.Exprs {
		if e := &rule.Exprs[n]; e.Name == "ct" {
			for _, k := range keyWork {
				if k.key == e.Key {
					return k.risk
				}
			}
		}
	}
	return ""
}

// ruleOf is the rule that an item is about; nil where it is none, or was not read.
func ruleOf(t *host.NFTTable, i *host.NFTItem) *host.NFTRule {
	if _, c := chainOf(t, i); c != nil {
		for k := range c.Rules {
			if c.Rules[k].Handle == i.Handle {
				return &c.Rules[k]
			}
		}
	}
	return nil
}

func chainOf(t *host.NFTTable, i *host.NFTItem) (hook string, c *host.NFTChain) {
	if c = t.Chain(i.Chain); c != nil {
		hook = c.Hook
	}
	return hook, c
}

// Where packets stand in a payload, and the key of meta that loads the protocol
// (enum nft_meta_keys, enum nft_payload_bases).
const (
	baseNetwork, baseTransport = 1, 2
	metaProtocol               = 16
	opEqual                    = 0
)

// PacketsOf are no fewer packets than those that a rule among a table's items
// matches: what it compares with one protocol, port or address is taken in, and
// everything else left out. hook is that of its chain, empty for one that rules
// call.
func PacketsOf(t *host.NFTTable, i *host.NFTItem) (p xtables.Packets, hook string) {
	hook, _ = chainOf(t, i)
	rule := ruleOf(t, i)
	if rule == nil {
		return p, hook
	}
	held := map[uint32]*host.NFTExpr{}
	for n := range rule.Exprs {
		e := &rule.Exprs[n]
		if e.Name == "cmp" && e.Op == opEqual && held[e.Src] != nil {
			compare(&p, held[e.Src], e.Data)
			continue
		}
		if e.Dst != 0 {
			clear(held) // registers overlap
			if e.Name == "payload" || e.Name == "meta" {
				held[e.Dst] = e
			}
		}
	}
	return p, hook
}

// compare takes in that what is loaded is one value.
func compare(p *xtables.Packets, loaded *host.NFTExpr, value []byte) {
	port := func(s *xtables.PortSet) {
		n := uint16(value[0])<<8 | uint16(value[1])
		s.Ranges = []host.PortRange{{From: n, To: n}}
	}
	address := func(s *xtables.PrefixSet) {
		if a, ok := netip.AddrFromSlice(bytes.Clone(value)); ok {
			s.Prefix = netip.PrefixFrom(a, a.BitLen())
		}
	}
	at := [4]uint32{loaded.Base, loaded.Offset, loaded.Len, uint32(len(value))}
	switch {
	case loaded.Name == "meta" && loaded.Key == metaProtocol && len(value) == 1:
		p.Proto = strconv.Itoa(int(value[0]))
	case loaded.Name != "payload":
	case at == [4]uint32{baseTransport, 0, 2, 2}:
		port(&p.SrcPorts)
	case at == [4]uint32{baseTransport, 2, 2, 2}:
		port(&p.DstPorts)
	case at == [4]uint32{baseNetwork, 12, 4, 4}, at == [4]uint32{baseNetwork, 8, 16, 16}:
		address(&p.Src)
	case at == [4]uint32{baseNetwork, 16, 4, 4}, at == [4]uint32{baseNetwork, 24, 16, 16}:
		address(&p.Dst)
	}
}
