package nft

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Messages and flags that package unix does not have
// (include/uapi/linux/netfilter/nfnetlink.h, include/uapi/linux/netlink.h).
const (
	attrBatchGeneration = 1     // NFNL_BATCH_GENID
	nonRecursive        = 0x100 // NLM_F_NONREC: delete nothing that still holds something
)

// maxCommits is how often a transaction is made anew for a ruleset that somebody
// else changes meanwhile.
const maxCommits = 20

// Commit changes nftables by one transaction of the kernel: all operations happen,
// in all tables, or none. It reads the ruleset and asks for the operations on it;
// positions among rules become handles then, and the kernel refuses the
// transaction if the ruleset is no longer of that generation. Then all of it
// begins anew, so plan may be called several times. Nothing happens where it
// returns no operations, or an error, which is Commit's too.
//
// It stands in the network namespace of the calling thread.
func Commit(plan func(tables []host.NFTTable) ([]change.NFTOp, error)) error {
	return transact(plan, true)
}

// Test has the kernel take a transaction to its end and then drop it, as nft does
// to check: nothing changes, but that modules may be loaded. plan is that of
// Commit.
func Test(plan func(tables []host.NFTTable) ([]change.NFTOp, error)) error {
	return transact(plan, false)
}

func transact(plan func(tables []host.NFTTable) ([]change.NFTOp, error), lasting bool) error {
	for range maxCommits {
		tables, generation, err := read(reader{whole: true, links: &linkNames{}})
		if err != nil {
			return err
		}
		ops, err := plan(tables)
		if err != nil || len(ops) == 0 {
			return err
		}
		b := batch{tables: slices.Clone(tables)}
		for i := range b.tables {
			b.tables[i] = nftables.Clone(b.tables[i])
		}
		for i := range ops {
			if err := b.op(&ops[i]); err != nil {
				return fmt.Errorf("writing table %s %s of nftables: %w", ops[i].Family, ops[i].Table, err)
			}
		}
		err = b.commit(generation, lasting)
		if !errors.Is(err, unix.ERESTART) {
			return err
		}
	}
	return errors.New("writing nftables: somebody else keeps changing the ruleset; nothing was changed")
}

// batch is a transaction in the making.
type batch struct {
	tables   []host.NFTTable // as they stand after what was written
	messages []netlink.Request
	what     []string // each of them does, for errors
	sets     uint32   // how many sets without a name it makes
}

func (b *batch) say(family string, typ uint16, flags uint16, body attrs, what string) error {
	number := slices.Index([]string{"inet", "ip", "ip6"}, family)
	if number < 0 {
		return fmt.Errorf("the family %q is none that rules are put into", family)
	}
	head := []byte{[]byte{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[number], unix.NFNETLINK_V0, 0, 0}
	b.messages = append(b.messages, netlink.Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | typ, Flags: flags, Body: append(head, body...)})
	b.what = append(b.what, what)
	return nil
}

// op writes one operation, and carries it out on the tables at hand.
func (b *batch) op(op *change.NFTOp) error {
	k := slices.IndexFunc(b.tables, func(t host.NFTTable) bool { return t.Family == op.Family && t.Name == op.Table })
	if op.Kind == change.AddNFTTable {
		b.tables = append(b.tables, host.NFTTable{Family: op.Family, Name: op.Table, Whole: true})
		var a attrs
		a.text(unix.NFTA_TABLE_NAME, op.Table)
		return b.say(op.Family, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a, "creating it")
	}
	if k < 0 {
		return errors.New("it is not there")
	}
	t := &b.tables[k]
	var err error
	switch op.Kind {
	case change.DeleteNFTTable:
		var a attrs
		a.text(unix.NFTA_TABLE_NAME, op.Table)
		b.tables = slices.Delete(b.tables, k, k+1)
		return b.say(op.Family, unix.NFT_MSG_DELTABLE, nonRecursive, a, "deleting it")
	case change.SetNFTChain:
		err = b.setChain(t, op.Want)
	case change.DropNFTChain:
		if err = b.flush(t, op.Chain); err == nil {
			var a attrs
			a.text(unix.NFTA_CHAIN_TABLE, t.Name)
			a.text(unix.NFTA_CHAIN_NAME, op.Chain)
			err = b.say(t.Family, unix.NFT_MSG_DELCHAIN, nonRecursive, a, "deleting chain "+op.Chain)
		}
	case change.InsertNFTRule:
		err = b.insert(t, op)
	case change.DeleteNFTRule:
		err = b.delete(t, op)
	default:
		err = fmt.Errorf("there is no operation %q", op.Kind)
	}
	if err == nil {
		nftables.Do(t, op)
	}
	return err
}

func (b *batch) flush(t *host.NFTTable, chain string) error {
	var a attrs
	a.text(unix.NFTA_RULE_TABLE, t.Name)
	a.text(unix.NFTA_RULE_CHAIN, chain)
	return b.say(t.Family, unix.NFT_MSG_DELRULE, 0, a, "emptying chain "+chain)
}

// setChain creates one of ctplan's chains, or replaces its rules.
func (b *batch) setChain(t *host.NFTTable, want *change.NFTContent) error {
	c := &want.Chain
	if t.Chain(c.Name) != nil {
		if err := b.flush(t, c.Name); err != nil {
			return err
		}
	} else {
		var a attrs
		a.text(unix.NFTA_CHAIN_TABLE, t.Name)
		a.text(unix.NFTA_CHAIN_NAME, c.Name)
		if c.Base() {
			number := slices.Index([]string{"prerouting", "input", "forward", "output", "postrouting"}, c.Hook)
			if number < 0 || c.Policy != "accept" {
				return fmt.Errorf("a chain at %s with policy %s is none of ctplan's", c.Hook, c.Policy)
			}
			var h attrs
			h.u32(unix.NFTA_HOOK_HOOKNUM, uint32(number))
			h.u32(unix.NFTA_HOOK_PRIORITY, uint32(int32(c.Priority)))
			a.nest(unix.NFTA_CHAIN_HOOK, h)
			a.u32(unix.NFTA_CHAIN_POLICY, 1)
			a.text(unix.NFTA_CHAIN_TYPE, c.Type)
		}
		if err := b.say(t.Family, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a, "creating chain "+c.Name); err != nil {
			return err
		}
	}
	for i := range c.Rules {
		ids, err := b.setsOf(t, &c.Rules[i], want.Sets)
		if err != nil {
			return err
		}
		if err := b.rule(t, c.Name, &c.Rules[i], ids, unix.NLM_F_CREATE|unix.NLM_F_APPEND, 0); err != nil {
			return err
		}
	}
	return nil
}

// rule writes a rule of ctplan's. place is the handle of the rule that it stands
// beside; 0: none.
func (b *batch) rule(t *host.NFTTable, chain string, r *host.NFTRule, ids map[string]uint32, flags uint16, place uint64) error {
	list, err := program(r.Exprs, ids)
	if err != nil {
		return err
	}
	return b.newRule(t, chain, list, userdata(r.Comment), flags, place)
}

func (b *batch) newRule(t *host.NFTTable, chain string, list attrs, userdata []byte, flags uint16, place uint64) error {
	var a attrs
	a.text(unix.NFTA_RULE_TABLE, t.Name)
	a.text(unix.NFTA_RULE_CHAIN, chain)
	a.nest(unix.NFTA_RULE_EXPRESSIONS, list)
	if place != 0 {
		a.u64(unix.NFTA_RULE_POSITION, place)
	}
	if len(userdata) > 0 {
		a.bytes(unix.NFTA_RULE_USERDATA, userdata)
	}
	return b.say(t.Family, unix.NFT_MSG_NEWRULE, flags, a, "putting a rule into chain "+chain)
}

// setsOf makes the sets without a name that a rule looks up, and returns by which
// numbers the rule has to call them.
func (b *batch) setsOf(t *host.NFTTable, r *host.NFTRule, sets []host.NFTSet) (map[string]uint32, error) {
	ids := map[string]uint32{}
	for _, e := range r.Exprs {
		k := slices.IndexFunc(sets, func(s host.NFTSet) bool { return s.Name == e.Set })
		if e.Set == "" || k < 0 {
			continue
		}
		s := &sets[k]
		var a attrs
		a.u32(unix.NFTA_SET_FLAGS, s.Flags)
		a.u32(unix.NFTA_SET_KEY_TYPE, s.KeyType)
		a.u32(unix.NFTA_SET_KEY_LEN, s.KeyLen)
		lists, err := setElements(s)
		if err != nil {
			return nil, err
		}
		if ids[s.Name], err = b.newSet(t, pattern(s.Name), a, lists); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// newSet makes a set without a name, and returns its number.
func (b *batch) newSet(t *host.NFTTable, name string, about attrs, lists []attrs) (id uint32, err error) {
	b.sets++
	var a attrs
	a.text(unix.NFTA_SET_TABLE, t.Name)
	a.text(unix.NFTA_SET_NAME, name)
	a.u32(unix.NFTA_SET_ID, b.sets)
	if err := b.say(t.Family, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, append(a, about...), "making a set"); err != nil {
		return 0, err
	}
	for _, list := range lists {
		var a attrs
		a.text(attrListTable, t.Name)
		a.text(attrListSet, name)
		a.u32(unix.NFTA_SET_ELEM_LIST_SET_ID, b.sets)
		a.nest(attrListElements, list)
		if err := b.say(t.Family, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, a, "filling a set"); err != nil {
			return 0, err
		}
	}
	return b.sets, nil
}

// insert writes a rule at a position of a chain: beside a rule that has a handle.
func (b *batch) insert(t *host.NFTTable, op *change.NFTOp) error {
	c := t.Chain(op.Chain)
	if c == nil {
		return fmt.Errorf("chain %s is not there", op.Chain)
	}
	at := min(op.Pos, len(c.Rules)+1) - 1
	flags, place := uint16(unix.NLM_F_CREATE), uint64(0)
	switch {
	case at == 0: // before all
	case at == len(c.Rules):
		flags |= unix.NLM_F_APPEND
	case c.Rules[at].Handle != 0:
		place = c.Rules[at].Handle
	case c.Rules[at-1].Handle != 0:
		flags, place = flags|unix.NLM_F_APPEND, c.Rules[at-1].Handle
	default:
		return fmt.Errorf("there is no rule in chain %s that a new one could stand beside", op.Chain)
	}
	if op.Kept != nil {
		return b.putBack(t, op, flags, place)
	}
	ids, err := b.setsOf(t, op.Rule, op.Sets)
	if err != nil {
		return err
	}
	return b.rule(t, op.Chain, op.Rule, ids, flags, place)
}

// delete deletes the rule at a position, which must be the one that is meant.
func (b *batch) delete(t *host.NFTTable, op *change.NFTOp) error {
	c := t.Chain(op.Chain)
	if c == nil || op.Pos < 1 || op.Pos > len(c.Rules) || nftables.Key(&c.Rules[op.Pos-1], t.Sets) != nftables.Key(op.Rule, op.Sets) {
		return fmt.Errorf("the rule %q does not stand at position %d of chain %s", op.Rule.Text, op.Pos, op.Chain)
	}
	var a attrs
	a.text(unix.NFTA_RULE_TABLE, t.Name)
	a.text(unix.NFTA_RULE_CHAIN, op.Chain)
	a.u64(unix.NFTA_RULE_HANDLE, c.Rules[op.Pos-1].Handle)
	return b.say(t.Family, unix.NFT_MSG_DELRULE, 0, a, "deleting a rule of chain "+op.Chain)
}

// commit sends the batch for a generation of the ruleset. The kernel keeps nothing
// of one without an end.
func (b *batch) commit(generation uint64, lasting bool) error {
	head := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	begin := attrs(slices.Clone(head))
	if generation != 0 {
		begin.u32(attrBatchGeneration, uint32(generation))
	}
	all := append([]netlink.Request{{Type: unix.NFNL_MSG_BATCH_BEGIN, Body: begin}}, b.messages...)
	all[len(all)-1].Flags |= unix.NLM_F_ACK
	if lasting {
		all = append(all, netlink.Request{Type: unix.NFNL_MSG_BATCH_END, Body: head})
	}
	at, err := netlink.Transact(unix.NETLINK_NETFILTER, all)
	switch {
	case err == nil, errors.Is(err, unix.ERESTART):
		return err
	case at >= 1 && at <= len(b.what):
		return fmt.Errorf("writing nftables: %s: %w; nothing was changed", b.what[at-1], err)
	}
	return fmt.Errorf("writing nftables: %w; nothing was changed", err)
}
