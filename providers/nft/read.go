package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Read reads the tables of the network namespace that the calling thread
// stands in. Tables of which shown reports true are left out, as their rules
// are read by other means; nil: none is. A kernel without nf_tables has no
// tables.
//
// Rules that need no connection tracking are not kept. The tables come in the
// kernel's order.
func Read(shown func(family, table string) bool) ([]host.NFTTable, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("reading nftables: %w", err)
	}
	defer conn.Close()
	r := reader{conn: conn, shown: shown}
	tables, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("reading nftables: %w", err)
	}
	return tables, nil
}

type reader struct {
	conn  *netlink.Conn
	shown func(family, table string) bool
}

func (r reader) read() ([]host.NFTTable, error) {
	list, err := dump(r.conn, unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // no nf_tables
	}
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(m message) bool {
		return r.shown != nil && r.shown(families[m.family], m.text(unix.NFTA_TABLE_NAME))
	})
	if len(list) == 0 {
		return nil, nil
	}
	chains, err := dump(r.conn, unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC)
	if err != nil {
		return nil, err
	}
	objects, err := dump(r.conn, msgGetObj, unix.NFPROTO_UNSPEC)
	if err != nil && !unsupported(err) {
		return nil, err
	}
	flowtables, err := dump(r.conn, msgGetFlowtable, unix.NFPROTO_UNSPEC)
	if err != nil && !unsupported(err) {
		return nil, err
	}
	sets, err := dump(r.conn, unix.NFT_MSG_GETSET, unix.NFPROTO_UNSPEC)
	if err != nil {
		return nil, err
	}
	var tables []host.NFTTable
	for _, m := range list {
		t := host.NFTTable{Family: families[m.family], Name: m.text(unix.NFTA_TABLE_NAME)}
		raw := m.attrs[unix.NFTA_TABLE_NAME]
		of := func(o message, attr uint16) bool {
			return o.family == m.family && string(o.attrs[attr]) == string(raw)
		}
		for _, c := range chains {
			if of(c, unix.NFTA_CHAIN_TABLE) {
				addChain(&t, c)
			}
		}
		rules, err := dump(r.conn, unix.NFT_MSG_GETRULE, m.family, netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: raw})
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			addRule(&t, rule)
		}
		for _, o := range objects {
			if of(o, attrObjTable) {
				addObject(&t, o)
			}
		}
		for _, s := range sets {
			if of(s, unix.NFTA_SET_TABLE) {
				addSet(&t, s)
			}
		}
		for _, f := range flowtables {
			if of(f, attrFlowtableTable) {
				t.Items = append(t.Items, host.NFTItem{Kind: "flowtable", Name: f.text(attrFlowtableName), Uses: []string{"flowtable"}})
			}
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// unsupported is what kernels older than a kind of object say of it.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// hooks are the names of the hooks by number (include/uapi/linux/netfilter.h).
func hook(family byte, n uint64) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	switch family {
	case unix.NFPROTO_ARP:
		names = []string{"input", "output", "forward"}
	case unix.NFPROTO_NETDEV:
		names = []string{"ingress", "egress"}
	}
	if n >= uint64(len(names)) {
		return fmt.Sprintf("hook %d", n)
	}
	return names[n]
}

func addChain(t *host.NFTTable, m message) {
	h, base := m.attrs[unix.NFTA_CHAIN_HOOK]
	if !base {
		return
	}
	c := host.NFTChain{Name: m.text(unix.NFTA_CHAIN_NAME), Type: m.text(unix.NFTA_CHAIN_TYPE)}
	attributes(h, func(typ uint16, value []byte) {
		if typ == unix.NFTA_HOOK_HOOKNUM {
			c.Hook = hook(m.family, bigEndian(value))
		}
	})
	if policy, ok := m.attrs[unix.NFTA_CHAIN_POLICY]; ok {
		c.Policy = "accept"
		if bigEndian(policy) == 0 {
			c.Policy = "drop"
		}
	}
	t.Chains = append(t.Chains, c)
	if c.Type == "nat" {
		t.Items = append(t.Items, host.NFTItem{Kind: "chain", Name: c.Name, Uses: []string{"chain nat"}})
	}
}

// objectKinds are the objects of connection tracking, by type.
var objectKinds = map[uint64]string{
	unix.NFT_OBJECT_CT_HELPER: "ct helper", unix.NFT_OBJECT_CT_TIMEOUT: "ct timeout", unix.NFT_OBJECT_CT_EXPECT: "ct expectation",
	unix.NFT_OBJECT_SYNPROXY: "synproxy",
}

func addObject(t *host.NFTTable, m message) {
	if kind := objectKinds[m.number(attrObjType)]; kind != "" {
		item := host.NFTItem{Kind: kind, Name: m.text(attrObjName), Uses: []string{kind}}
		if kind == "ct helper" {
			item.Text = cstring(expression{data: m.attrs[attrObjData]}.attribute(attrHelperName))
		}
		t.Items = append(t.Items, item)
	}
}

// addSet keeps a set whose elements do something that needs connection
// tracking: "ct count" is the one that nft knows.
func addSet(t *host.NFTTable, m message) {
	parts := expressions(m.attrs[attrSetExpressions])
	if one := oneExpression(m.attrs[attrSetExpr]); one.name != "" {
		parts = append(parts, one)
	}
	for _, p := range parts {
		if nftables.Module(p.name) != "" {
			t.Items = append(t.Items, host.NFTItem{Kind: "set", Name: m.text(unix.NFTA_SET_NAME), Uses: []string{p.name}})
			return
		}
	}
}

// addRule keeps a rule if a part of it needs connection tracking.
func addRule(t *host.NFTTable, m message) {
	parts := expressions(m.attrs[unix.NFTA_RULE_EXPRESSIONS])
	var uses []string
	needs := false
	for _, p := range parts {
		for _, u := range p.uses() {
			if !slices.Contains(uses, u) {
				uses = append(uses, u)
			}
			needs = needs || nftables.Module(u) != ""
			switch u {
			case "reject", "queue", "target REJECT", "target NFQUEUE", "target DROP":
				t.Drops = true
			}
		}
		t.Drops = t.Drops || p.drops()
	}
	if !needs {
		return
	}
	t.Items = append(t.Items, host.NFTItem{
		Kind: "rule", Chain: m.text(unix.NFTA_RULE_CHAIN), Handle: m.number(unix.NFTA_RULE_HANDLE),
		Text: ruleText(m.family, parts, comment(m.attrs[unix.NFTA_RULE_USERDATA])), Uses: uses,
	})
}
