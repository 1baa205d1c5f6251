package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// Read reads the tables of the network namespace that the calling thread
// stands in, whole: chains, rules, sets with their elements. Tables of which
// shown reports true are left out, as their rules are read by other means; nil:
// none is. A kernel without nf_tables has no tables.
//
// All is of one generation of the ruleset. Tables come in the kernel's order.
func Read(shown func(family, table string) bool) ([]host.NFTTable, error) {
	tables, _, err := read(reader{shown: shown, whole: true, links: &linkNames{}})
	return tables, err
}

// ReadHolders reads of every table what needs connection tracking, and nothing
// else: no rules without it, and no elements of sets.
func ReadHolders() ([]host.NFTTable, error) {
	tables, _, err := read(reader{links: &linkNames{}})
	return tables, err
}

// HasSet returns whether a table has a set or a map, named or not: iptables-nft
// makes none, and iptables-save leaves what looks one up out of the rules that it
// shows, as if they matched without (measured: 1.8.9).
func HasSet() (in func(family, table string) bool, err error) {
	in = func(string, string) bool { return false }
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return in, nil
	}
	if err != nil {
		return in, fmt.Errorf("reading the sets of nftables: %w", err)
	}
	defer s.Close()
	found := map[[2]string]bool{}
	r := reader{socket: s}
	err = r.dump(unix.NFT_MSG_GETSET, unix.NFPROTO_UNSPEC, nil, func(m *message) {
		found[[2]string{families[m.family], m.text(unix.NFTA_SET_TABLE)}] = true
	})
	if err != nil && !unsupported(err) {
		return in, fmt.Errorf("reading the sets of nftables: %w", err)
	}
	return func(family, table string) bool { return found[[2]string{family, table}] }, nil
}

// Answers reports whether the kernel has nf_tables. It asks, which loads it
// where it is a module that can be loaded.
func Answers() bool {
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return false
	}
	defer s.Close()
	head := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}
	err = s.Ask(unix.NFNL_SUBSYS_NFTABLES<<8|msgGetGen, 0, head, func([]byte) bool { return false })
	return !unsupported(err)
}

// read reads the tables, and says of which generation they are.
func read(r reader) ([]host.NFTTable, uint64, error) {
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, 0, nil // a kernel that nothing of netfilter can be asked, nf_tables included
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading nftables: %w", err)
	}
	defer s.Close()
	r.socket = s
	step := uint64(0)
	for range maxTries {
		before, err := r.generation()
		if err == nil {
			err = r.tables()
		}
		if errors.Is(err, netlink.ErrInterrupted) || errors.Is(err, unix.ENOENT) { // a table or set that has gone
			continue
		}
		after := before
		if err == nil {
			after, err = r.generation()
		}
		if err != nil {
			return nil, 0, fmt.Errorf("reading nftables: %w", err)
		}
		if after == before+step {
			return r.list, after, nil
		}
		if step, err = r.step(); err != nil {
			return nil, 0, fmt.Errorf("reading nftables: %w", err)
		}
	}
	return nil, 0, errUnsettled
}

// step is by how much asking for the generation moves it: old kernels count a
// batch without changes too.
func (r *reader) step() (uint64, error) {
	var ids [4]uint64
	for i := range ids {
		var err error
		if ids[i], err = r.generation(); err != nil {
			return 0, err
		}
		if i > 0 && ids[i] != ids[i-1]+1 {
			return 0, nil
		}
	}
	return 1, nil
}

// littleEndian is whether numbers of the host are as programs have them that are
// judged.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// maxTries is how often a ruleset is read that changes meanwhile.
const maxTries = 5

// errUnsettled is when a ruleset changes faster than it can be read.
var errUnsettled = errors.New("reading nftables: it keeps changing while it is being read")

type reader struct {
	socket *netlink.Socket
	shown  func(family, table string) bool
	whole  bool

	list     []host.NFTTable
	byName   map[tableName]int // in list
	sets     []setName
	m        message
	elements int // bytes of elements that were read
	links    *linkNames
	texts    texts
	scratch  []expression
}

// tableName is a table as messages name it: with its NUL.
type tableName struct {
	family byte
	raw    string
}

// dump lists everything of a kind, of all families and tables or of one table.
func (r *reader) dump(kind uint16, family byte, attrs []byte, each func(m *message)) error {
	return r.socket.Ask(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP, request(family, attrs), r.parsed(each))
}

// dumpAhead is dump for long lists.
func (r *reader) dumpAhead(kind uint16, family byte, attrs []byte, each func(m *message)) error {
	return netlink.DumpAhead(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|kind, request(family, attrs), r.parsed(each))
}

func request(family byte, attrs []byte) []byte {
	return append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...)
}

func (r *reader) parsed(each func(m *message)) func(msg []byte) bool {
	return func(msg []byte) bool {
		if r.m.parse(msg) {
			each(&r.m)
		}
		return true
	}
}

// generation is the number of the ruleset: each change makes it another. It is
// 0 on kernels that have none (before 3.18).
//
// It waits until no change is under way, with a batch that has none in it. While
// the kernel prepares one, the number is still the old, and while it takes out
// what is old, already the new; but dumps leave things out then, or have them
// twice, and nothing tells (net/netfilter/nf_tables_api.c; measured on 6.18).
func (r *reader) generation() (id uint64, err error) {
	head := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	batch := []netlink.Request{{Type: unix.NFNL_MSG_BATCH_BEGIN, Body: head}, {Type: unix.NFNL_MSG_BATCH_END, Body: head}}
	if err := netlink.Tell(unix.NETLINK_NETFILTER, batch...); err != nil {
		return 0, err
	}
	err = r.socket.Ask(unix.NFNL_SUBSYS_NFTABLES<<8|msgGetGen, 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, func(msg []byte) bool {
		if r.m.parse(msg) {
			id = r.m.number(unix.NFTA_GEN_ID)
		}
		return false
	})
	if unsupported(err) {
		return 0, nil
	}
	return id, err
}

// unsupported is what kernels say of a kind of object that they do not have.
func unsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

func (r *reader) tables() error {
	r.list, r.byName, r.sets, r.elements = nil, map[tableName]int{}, nil, 0
	var names []tableName
	err := r.dump(unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC, nil, func(m *message) {
		t := host.NFTTable{Family: families[m.family], Name: m.text(unix.NFTA_TABLE_NAME), Whole: r.whole && littleEndian}
		if t.Family == "" || r.shown != nil && r.shown(t.Family, t.Name) {
			return
		}
		t.Dormant = m.number(unix.NFTA_TABLE_FLAGS)&tableDormant != 0
		name := tableName{m.family, string(m.attrs[unix.NFTA_TABLE_NAME])}
		r.byName[name] = len(names)
		names, r.list = append(names, name), append(r.list, t)
	})
	if unsupported(err) {
		return nil // no nf_tables
	}
	if err != nil || len(names) == 0 {
		return err
	}
	if err := r.parts(names); err != nil {
		return err
	}
	for i := range r.list {
		r.list[i].Items = sorted(r.list[i].Items)
	}
	return nil
}

// parts reads what the tables hold. Rules come after the sets that they name,
// whose elements their texts show.
func (r *reader) parts(names []tableName) error {
	of := func(attr int, add func(t *host.NFTTable, m *message)) func(m *message) {
		return func(m *message) {
			if i, ok := r.byName[tableName{m.family, string(m.attrs[attr])}]; ok {
				add(&r.list[i], m)
			}
		}
	}
	if err := r.dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, nil, of(unix.NFTA_CHAIN_TABLE, r.addChain)); err != nil {
		return err
	}
	if err := r.dump(unix.NFT_MSG_GETSET, unix.NFPROTO_UNSPEC, nil, of(unix.NFTA_SET_TABLE, r.addSet)); err != nil {
		return err
	}
	if r.whole {
		if err := r.readElements(); err != nil {
			return err
		}
	}
	for i, name := range names {
		t := &r.list[i]
		r.texts = texts{family: t.Family, sets: map[string]*host.NFTSet{}, links: r.links}
		for j := range t.Sets {
			r.texts.sets[t.Sets[j].Name] = &t.Sets[j]
		}
		var chain *host.NFTChain
		table := netlink.AppendAttribute(nil, unix.NFTA_RULE_TABLE, []byte(name.raw))
		if err := r.dumpAhead(unix.NFT_MSG_GETRULE, name.family, table, func(m *message) {
			chain = r.addRule(t, chain, m)
		}); err != nil {
			return err
		}
	}
	if err := r.dump(msgGetObj, unix.NFPROTO_UNSPEC, nil, of(attrObjTable, addObject)); err != nil && !unsupported(err) {
		return err
	}
	err := r.dump(msgGetFlowtable, unix.NFPROTO_UNSPEC, nil, of(attrFlowtableTable, func(t *host.NFTTable, m *message) {
		t.Items = append(t.Items, host.NFTItem{Kind: "flowtable", Name: m.text(attrFlowtableName), Uses: []string{"flowtable"}})
	}))
	if err != nil && !unsupported(err) {
		return err
	}
	return nil
}

// hook is the name of a hook by number (include/uapi/linux/netfilter.h).
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

func (r *reader) addChain(t *host.NFTTable, m *message) {
	c := host.NFTChain{Name: m.text(unix.NFTA_CHAIN_NAME)}
	t.Whole = t.Whole && !replaced(c.Name)
	h := m.attrs[unix.NFTA_CHAIN_HOOK]
	if h == nil {
		if r.whole {
			t.Chains = append(t.Chains, c)
		}
		return
	}
	c.Type = m.text(unix.NFTA_CHAIN_TYPE)
	netlink.Attributes(h, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_HOOK_HOOKNUM:
			c.Hook = hook(m.family, bigEndian(value))
		case unix.NFTA_HOOK_PRIORITY:
			c.Priority = int(int32(bigEndian(value)))
		case unix.NFTA_HOOK_DEV:
			if d := cstring(value); !slices.Contains(c.Devices, d) { // beside the list, which has it too
				c.Devices = append(c.Devices, d)
			}
		case attrHookDevs:
			each(value, func(name []byte) {
				if d := cstring(name); !slices.Contains(c.Devices, d) {
					c.Devices = append(c.Devices, d)
				}
			})
		}
	})
	if policy := m.attrs[unix.NFTA_CHAIN_POLICY]; policy != nil {
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

// addRule adds a rule to its chain, and to the items if a part of it needs
// connection tracking. Rules come chain by chain: last is the chain of the one
// before; the result that of this one.
func (r *reader) addRule(t *host.NFTTable, last *host.NFTChain, m *message) *host.NFTChain {
	name := m.attrs[unix.NFTA_RULE_CHAIN]
	chain := last
	if r.whole && (chain == nil || chain.Name != cstring(name)) {
		chain = t.Chain(cstring(name))
	}
	r.scratch = expressions(m.attrs[unix.NFTA_RULE_EXPRESSIONS], r.scratch[:0])
	uses, needs := usesOf(r.scratch)
	t.Drops = t.Drops || drops(r.scratch)
	if chain == nil && !needs {
		return nil
	}
	handle := m.number(unix.NFTA_RULE_HANDLE)
	said := comment(m.attrs[unix.NFTA_RULE_USERDATA])
	r.texts.whole = nftables.IsOwn(cstring(name))
	text := r.texts.ruleText(r.scratch, said)
	if needs {
		t.Items = append(t.Items, host.NFTItem{Kind: "rule", Chain: cstring(name), Handle: handle, Text: text, Uses: uses})
	}
	if chain != nil {
		rule := host.NFTRule{Handle: handle, Text: text, Comment: said, Exprs: make([]host.NFTExpr, len(r.scratch))}
		for i := range r.scratch {
			rule.Exprs[i] = r.scratch[i].NFTExpr
		}
		chain.Rules = append(chain.Rules, rule)
	}
	return chain
}
