package nft

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Keep returns operations with each rule of others that they delete as the kernel
// has it, so that it can be put back: with what ctplan has no words for, and with
// the sets that go with it. It is an error where such a rule does not stand.
func Keep(ops []change.NFTOp) ([]change.NFTOp, error) {
	deletes := func(op change.NFTOp) bool {
		return op.Kind == change.DeleteNFTRule && op.Kept == nil && len(op.Rule.Exprs) > 0
	}
	if !slices.ContainsFunc(ops, deletes) {
		return ops, nil
	}
	for range maxTries {
		tables, _, err := read(reader{whole: true, links: &linkNames{}})
		if err != nil {
			return nil, err
		}
		out := slices.Clone(ops)
		now := slices.Clone(tables)
		for i := range out {
			if deletes(out[i]) {
				if out[i].Kept, err = keep(&out[i], now); err != nil {
					break
				}
			}
			now = nftables.Apply(now, out[i:i+1])
		}
		again, _, failed := read(reader{whole: true, links: &linkNames{}})
		if failed != nil {
			return nil, failed
		}
		if !sameRules(tables, again) {
			continue
		}
		return out, err
	}
	return nil, errUnsettled
}

// sameRules is whether the rulesets have the same rules, by their handles.
func sameRules(a, b []host.NFTTable) bool {
	return slices.EqualFunc(a, b, func(s, t host.NFTTable) bool {
		return s.Family == t.Family && s.Name == t.Name && slices.EqualFunc(s.Chains, t.Chains, func(c, d host.NFTChain) bool {
			return c.Name == d.Name && slices.EqualFunc(c.Rules, d.Rules, func(r, q host.NFTRule) bool { return r.Handle == q.Handle })
		})
	})
}

// keep reads one rule that an operation deletes.
func keep(op *change.NFTOp, tables []host.NFTTable) (*change.NFTKept, error) {
	missing := fmt.Errorf("the rule %q does not stand at position %d of chain %s of table %s %s", op.Rule.Text, op.Pos, op.Chain, op.Family, op.Table)
	k := slices.IndexFunc(tables, func(t host.NFTTable) bool { return t.Family == op.Family && t.Name == op.Table })
	if k < 0 {
		return nil, missing
	}
	t := &tables[k]
	c := t.Chain(op.Chain)
	if c == nil || op.Pos < 1 || op.Pos > len(c.Rules) || nftables.Key(&c.Rules[op.Pos-1], t.Sets) != nftables.Key(op.Rule, op.Sets) {
		return nil, missing
	}
	rule := &c.Rules[op.Pos-1]
	if rule.Handle == 0 {
		return nil, nil // it comes with the same transaction, and is ctplan's
	}
	family := familyNumber(op.Family)
	var a attrs
	a.text(unix.NFTA_RULE_TABLE, op.Table)
	a.text(unix.NFTA_RULE_CHAIN, op.Chain)
	a.u64(unix.NFTA_RULE_HANDLE, rule.Handle)
	kept := &change.NFTKept{}
	found := false
	err := ask(unix.NFT_MSG_GETRULE, family, a, 0, func(m *message) {
		found = true
		kept.Expressions = slices.Clone(m.attrs[unix.NFTA_RULE_EXPRESSIONS])
		kept.Userdata = slices.Clone(m.attrs[unix.NFTA_RULE_USERDATA])
	})
	if err != nil {
		return nil, fmt.Errorf("reading rule %q of nftables: %w", rule.Text, err)
	}
	if !found {
		return nil, missing
	}
	for _, e := range rule.Exprs {
		if !strings.HasPrefix(e.Set, "__") || slices.ContainsFunc(kept.Sets, func(s change.NFTKeptSet) bool { return s.Name == e.Set }) {
			continue
		}
		s, err := keepSet(family, op.Table, e.Set)
		if err != nil {
			return nil, fmt.Errorf("reading a set of rule %q of nftables: %w", rule.Text, err)
		}
		kept.Sets = append(kept.Sets, s)
	}
	return kept, nil
}

// familyNumber is the number of a family by nft's name.
func familyNumber(name string) byte {
	for n, f := range families {
		if f == name {
			return n
		}
	}
	return unix.NFPROTO_UNSPEC
}

// ask asks one question about nftables.
func ask(kind uint16, family byte, about attrs, flags uint16, each func(m *message)) error {
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.Close()
	var m message
	return s.Ask(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, request(family, about), func(msg []byte) bool {
		if m.parse(msg) {
			each(&m)
		}
		return flags&unix.NLM_F_DUMP != 0
	})
}

// keptAttributes are those of a set that it is made with.
var keptAttributes = []uint16{
	unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN,
	unix.NFTA_SET_POLICY, unix.NFTA_SET_DESC, unix.NFTA_SET_TIMEOUT, unix.NFTA_SET_GC_INTERVAL, unix.NFTA_SET_USERDATA,
	attrSetObjType, attrSetExpr, attrSetExpressions,
}

func keepSet(family byte, table, name string) (change.NFTKeptSet, error) {
	kept := change.NFTKeptSet{Name: name}
	var a attrs
	a.text(unix.NFTA_SET_TABLE, table)
	a.text(unix.NFTA_SET_NAME, name)
	err := ask(unix.NFT_MSG_GETSET, family, a, 0, func(m *message) {
		var about attrs
		for _, typ := range keptAttributes {
			if value := m.attrs[typ]; value != nil {
				about.bytes(typ, value)
			}
		}
		kept.Set = host.Hex(about)
	})
	if err != nil {
		return kept, err
	}
	var list attrs
	list.text(attrListTable, table)
	list.text(attrListSet, name)
	err = ask(unix.NFT_MSG_GETSETELEM, family, list, unix.NLM_F_DUMP, func(m *message) {
		if elements := m.attrs[attrListElements]; elements != nil {
			kept.Elements = append(kept.Elements, slices.Clone(elements))
		}
	})
	return kept, err
}

// putBack puts a rule of others where it was.
func (b *batch) putBack(t *host.NFTTable, op *change.NFTOp, flags uint16, place uint64) error {
	ids := map[string]uint32{}
	for _, s := range op.Kept.Sets {
		var lists []attrs
		for _, l := range s.Elements {
			lists = append(lists, attrs(l))
		}
		var err error
		if ids[s.Name], err = b.newSet(t, pattern(s.Name), attrs(s.Set), lists); err != nil {
			return err
		}
	}
	return b.newRule(t, op.Chain, renamed(op.Kept.Expressions, ids), op.Kept.Userdata, flags, place)
}

// setAttributes are, by expression, the attributes of a set's name and number.
var setAttributes = map[string][2]uint16{"lookup": {1, 4}, "dynset": {1, 2}, "objref": {4, 5}}

// renamed is a list of expressions that call sets without a name by their numbers,
// fit to be taken by the kernel that told of it.
func renamed(list []byte, ids map[string]uint32) (out attrs) {
	each(list, func(elem []byte) {
		var e attrs
		name := cstring(attribute(elem, unix.NFTA_EXPR_NAME))
		netlink.Attributes(elem, func(typ uint16, value []byte) {
			if typ != unix.NFTA_EXPR_DATA {
				e.bytes(typ, value)
				return
			}
			e.nest(typ, taken(name, value, ids))
		})
		out.nest(unix.NFTA_LIST_ELEM, e)
	})
	return out
}

// taken are the attributes of an expression as the kernel takes them.
func taken(name string, told []byte, ids map[string]uint32) (out attrs) {
	of, looksUp := setAttributes[name]
	id, anonymous := ids[cstring(attribute(told, of[0]))]
	const extensionFlags, extensionSource = 5, 7
	sets := name == "exthdr" && attribute(told, extensionSource) != nil
	netlink.Attributes(told, func(typ uint16, value []byte) {
		switch {
		case looksUp && anonymous && typ == of[0]:
			out.text(typ, pattern(cstring(value)))
			out.u32(of[1], id)
		case looksUp && anonymous && typ == of[1]:
		case sets && typ == extensionFlags: // it tells of them, and takes none where something is set
		default:
			out.bytes(typ, value)
		}
	})
	return out
}
