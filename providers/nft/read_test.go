package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	own "github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// ruleset has every way to need connection tracking that nft 1.0.6 can write
// and the machines that run the tests can load, and others.
const ruleset = `
table inet filter {
	ct helper ftp { type "ftp" protocol tcp; }
	ct timeout short { protocol tcp; l3proto ip; policy = { established: 120 }; }
	ct expectation sip { protocol udp; dport 5060; timeout 2m; size 8; l3proto ip; }
	set s { type ipv4_addr; flags dynamic; }
	set t { type ipv4_addr; flags dynamic; ct count over 3; }
	synproxy web { mss 1460; wscale 7; timestamp sack-perm; }
	chain input {
		type filter hook input priority 0; policy drop;
		ct state vmap { established : accept, invalid : drop }
		ct state established,related accept comment "hello"
		tcp dport 22 ct state new counter accept
		iifname "eth0" ip saddr 10.0.0.0/8 tcp dport { 80, 443 } ct state new log prefix "x" drop
		tcp dport 21 ct helper set "ftp"
		tcp dport 21 ct timeout set "short"
		udp dport 5060 ct expectation set "sip"
		add @s { ip saddr ct count over 10 } drop
		ct mark set 0x1
		ct mark set meta mark
		ct count over 20 reject
		ct original ip saddr 10.0.0.1 accept
		ip saddr 10.0.0.0/9 ct zone 3 accept
		ct state untracked accept
		ct state != established accept
		tcp dport 80 accept
	}
	chain raw { type filter hook prerouting priority -300; tcp dport 80 notrack; }
	chain syn { type filter hook input priority 5; tcp dport 80 synproxy mss 1460; tcp dport 81 synproxy name "web"; }
	chain other { tcp dport 22 accept; }
	chain pr { type nat hook prerouting priority -100; tcp dport 80 dnat ip to 10.0.0.1:8080; tcp dport 81 redirect to :82; }
	chain po { type nat hook postrouting priority 100; oifname "eth0" masquerade; ip saddr 1.2.3.4 snat ip to 5.6.7.8; }
}
table inet verdicts { chain c { type filter hook input priority 1; tcp dport vmap { 22 : accept, 23 : drop }; }
}
table inet member { set s { type inet_service; elements = { 22 }; }
	chain c { type filter hook input priority 2; tcp dport @s accept; }
}
table bridge b { chain c { type filter hook prerouting priority 0; meta mark 3 accept; }
}
table netdev n { chain c { type filter hook ingress device lo priority 0; policy drop; }
}
table arp a { chain c { type filter hook output priority 0; policy accept; }
}
table ip6 x { chain y { ip6 saddr fd00::/8 ct state new drop; ip6 daddr fd00::1 ct state new reject; }
}
`

const want = `
inet filter drops [input filter input drop] [raw filter prerouting accept] [syn filter input accept] [pr nat prerouting accept] [po nat postrouting accept]
  chain pr (nft_chain_nat)
  chain po (nft_chain_nat)
  rule input: ct state vmap { invalid : drop, established : accept } (nft_ct)
  rule input: ct state established,related accept comment "hello" (nft_ct)
  rule input: tcp dport 22 ct state new accept (nft_ct)
  rule input: iifname "eth0" ip saddr 10.0.0.0/8 tcp dport { 80, 443 } ct state new log prefix "x" drop (nft_ct)
  rule input: tcp dport 21 ct helper set "ftp" (nft_ct)
  rule input: tcp dport 21 ct timeout set "short" (nft_ct)
  rule input: udp dport 5060 ct expectation set "sip" (nft_ct)
  rule input: add @s { ip saddr ct count over 10 } drop (nft_connlimit)
  rule input: ct mark set 0x00000001 (nft_ct)
  rule input: ct mark set meta mark (nft_ct)
  rule input: ct count over 20 reject (nft_connlimit)
  rule input: ct original ip saddr 10.0.0.1 accept (nft_ct)
  rule input: ip saddr 10.0.0.0/9 ct zone 3 accept (nft_ct)
  rule input: ct state untracked accept (nft_ct)
  rule input: ct state != established accept (nft_ct)
  rule raw: tcp dport 80 notrack (nft_ct)
  rule syn: tcp dport 80 synproxy mss 1460 (nft_synproxy)
  rule syn: tcp dport 81 synproxy name "web" (nft_synproxy)
  rule pr: tcp dport 80 dnat ip to 10.0.0.1:8080 (nft_nat)
  rule pr: tcp dport 81 redirect to :82 (nft_redir)
  rule po: oifname "eth0" masquerade (nft_masq)
  rule po: ip saddr 1.2.3.4 snat ip to 5.6.7.8 (nft_nat)
  ct helper ftp: ftp (nft_ct)
  ct timeout short (nft_ct)
  ct expectation sip (nft_ct)
  synproxy web (nft_synproxy)
  set t (nft_connlimit)
inet verdicts drops [c filter input accept]
inet member [c filter input accept]
bridge b [c filter prerouting accept]
netdev n [c filter ingress drop]
arp a [c filter output accept]
ip6 x drops
  rule y: ip6 saddr fd00::/8 ct state new drop (nft_ct)
  rule y: ip6 daddr fd00::1 ct state new reject (nft_ct)
ip filter [INPUT filter input accept]
  rule INPUT: xt match "conntrack" accept (xt_conntrack)
ip nat [POSTROUTING nat postrouting accept]
  chain POSTROUTING (nft_chain_nat)
  rule POSTROUTING: xt target "MASQUERADE" (xt_MASQUERADE)
ip raw [OUTPUT filter output accept]
  rule OUTPUT: xt target "CT" (xt_CT)
  rule OUTPUT: xt target "CT" (xt_CT)
`

func show(tables []host.NFTTable) string {
	var b strings.Builder
	for _, t := range tables {
		b.WriteString(t.Family + " " + t.Name)
		if t.Drops {
			b.WriteString(" drops")
		}
		for _, c := range t.Chains {
			if !c.Base() {
				continue
			}
			fmt.Fprintf(&b, " [%s %s %s %s]", c.Name, c.Type, c.Hook, c.Policy)
		}
		b.WriteString("\n")
		for _, i := range t.Items {
			var modules []string
			for _, u := range i.Uses {
				if m := nftables.Module(u); m != "" && !slices.Contains(modules, m) {
					modules = append(modules, m)
				}
			}
			fmt.Fprintf(&b, "  %s %s%s", i.Kind, i.Chain, i.Name)
			if i.Text != "" {
				b.WriteString(": " + i.Text)
			}
			fmt.Fprintf(&b, " (%s)\n", strings.Join(modules, ", "))
		}
	}
	return b.String()
}

// TestRead reads what nft and iptables-nft really make, and then takes it all
// away by the handles that were read.
func TestRead(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.RunInput(ruleset, "nft", "-f", "-")
		ns.Run("iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
		ns.Run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
		ns.Run("iptables-nft", "-t", "raw", "-A", "OUTPUT", "-j", "NOTRACK")
		ns.Run("iptables-nft", "-t", "raw", "-A", "OUTPUT", "-j", "CT", "--zone", "3")
		tables, err := Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(tables); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("got:\n%s", got)
		}
		shown, err := Read(func(family, table string) bool { return family == "ip" && table == "nat" })
		if err != nil || len(shown) != len(tables)-1 {
			t.Errorf("without the nat table: %v, %d tables of %d", err, len(shown), len(tables))
		}
		for _, table := range tables {
			for _, i := range table.Items {
				if i.Kind == "rule" {
					ns.Run("nft", "delete", "rule", table.Family, table.Name, i.Chain, "handle", fmt.Sprint(i.Handle))
				}
			}
		}
		tables, err = Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			for _, i := range table.Items {
				if i.Kind == "rule" {
					t.Errorf("%s %s: still %s", table.Family, table.Name, i.Text)
				}
			}
		}
		ns.Run("nft", "flush", "ruleset")
		if tables, err := Read(nil); err != nil || tables != nil {
			t.Errorf("with no ruleset: %v, %v", tables, err)
		}
	})
}

// TestReadSettles reads a ruleset that changes all the time, two chains at once:
// they are never read from two states of it.
func TestReadSettles(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		state := func(n int) string {
			var b strings.Builder
			b.WriteString("table inet t { chain a { }\n chain b { }\n}\nflush table inet t\ntable inet t {\n")
			for _, chain := range []string{"a", "b"} {
				fmt.Fprintf(&b, "chain %s {\n", chain)
				for range 400 {
					fmt.Fprintf(&b, "tcp dport %d accept\n", n)
				}
				b.WriteString("}\n")
			}
			return b.String() + "}\n"
		}
		ns.RunInput(state(1), "nft", "-f", "-")
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for n := 2; ; n++ {
				select {
				case <-stop:
					return
				default:
					ns.RunInput(state(n), "nft", "-f", "-")
				}
			}
		}()
		states := map[string]bool{}
		for deadline := time.Now().Add(time.Minute); len(states) < 8 && time.Now().Before(deadline); {
			tables, err := Read(nil)
			if errors.Is(err, errUnsettled) {
				continue
			}
			if err != nil || len(tables) != 1 || len(tables[0].Chains) != 2 {
				t.Fatalf("%v, %+v", err, tables)
			}
			first := tables[0].Chains[0].Rules[0].Text
			states[first] = true
			for _, c := range tables[0].Chains {
				for _, r := range c.Rules {
					if r.Text != first || len(c.Rules) != 400 {
						t.Fatalf("one rule says %q, another, in chain %s of %d rules, %q", first, c.Name, len(c.Rules), r.Text)
					}
				}
			}
		}
		close(stop)
		<-done
		if len(states) < 8 {
			t.Errorf("the ruleset was read in %d states: the test saw no change", len(states))
		}
	})
}

// TestElementBounds stops at what is too much.
func TestElementBounds(t *testing.T) {
	key := func(n uint32) []byte {
		value := own.AppendAttribute(nil, unix.NFTA_DATA_VALUE, append(binary.BigEndian.AppendUint32(nil, n), make([]byte, 60)...))
		return own.AppendAttribute(nil, attrElemKey, value)
	}
	list := elementList{whole: true}
	for n := range uint32(10) {
		list.add(key(n))
	}
	if !list.whole || list.elements().Len() != 10 {
		t.Errorf("%+v", list)
	}
	for n := uint32(0); list.whole; n++ {
		if list.add(key(n)); n > maxElements/64 {
			t.Fatalf("%d elements, and no end", n)
		}
	}
	if list.single != nil || list.size < maxElements {
		t.Errorf("%d elements and %d bytes are left", len(list.single), list.size)
	}
}

// TestReadHostile reads names and texts that nft itself would never write.
func TestReadHostile(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		// Names from netlink directly: any bytes but NUL.
		const evil = "x; reboot #\n\x1b[2J\xff"
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(evil + "\x00")}})
		if err != nil {
			t.Fatal(err)
		}
		batch := func(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, attrs []byte) netlink.Message {
			head := []byte{family, 0, 0, 0}
			binary.BigEndian.PutUint16(head[2:], resource)
			return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: append(head, attrs...)}
		}
		if _, err := conn.SendMessages([]netlink.Message{
			batch(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
			batch(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, unix.NFPROTO_INET, 0, name),
			batch(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Receive(); err != nil {
			t.Fatal(err)
		}
		tables, err := Read(nil)
		if err != nil || len(tables) != 1 || tables[0].Name != "x; reboot #\n\x1b[2J\uFFFD" {
			t.Errorf("%v, %+v", err, tables)
		}
	})
}

func FuzzMessage(f *testing.F) {
	attr := func(typ uint16, data ...byte) []byte {
		b := make([]byte, 4, 4+len(data))
		binary.NativeEndian.PutUint16(b, uint16(4+len(data)))
		binary.NativeEndian.PutUint16(b[2:], typ)
		b = append(b, data...)
		return append(b, make([]byte, (4-len(b)%4)%4)...)
	}
	f.Add([]byte{2, 0, 0, 0})
	for _, name := range []string{"ct", "meta", "payload", "cmp", "bitwise", "range", "lookup", "immediate", "nat", "redir", "connlimit", "log", "objref", "match", "dynset", "counter"} {
		var data []byte
		for i := range uint16(12) {
			data = append(data, attr(i, 0, 0, 0, byte(i))...)
		}
		e := slices.Concat(attr(1, []byte(name+"\x00")...), attr(2, data...))
		rule := slices.Concat([]byte{2, 0, 0, 0}, attr(unix.NFTA_RULE_CHAIN, 'c'), attr(unix.NFTA_RULE_EXPRESSIONS, attr(1, e...)...), attr(unix.NFTA_RULE_USERDATA, 0, 200, 'x'))
		f.Add(rule)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, whole := range []bool{false, true} {
			fuzzMessage(t, b, whole)
		}
	})
}

func fuzzMessage(t *testing.T, b []byte, whole bool) {
	var m message
	if !m.parse(b) {
		return
	}
	r := reader{whole: whole, links: &linkNames{}, byName: map[tableName]int{}}
	table := host.NFTTable{Whole: true, Chains: []host.NFTChain{{Name: "c"}}}
	r.addChain(&table, &m)
	addObject(&table, &m)
	r.addSet(&table, &m)
	list := elementList{intervals: whole, whole: true}
	each(m.attrs[attrListElements], list.add)
	elements := list.elements()
	for e, err := range elements.All() {
		if err != nil {
			t.Errorf("%v", err)
		}
		if e.Last != nil && !e.Any && len(e.Key) == len(e.Last) && string(e.Last) < string(e.Key) {
			t.Errorf("an interval that ends before it begins: %x-%x", e.Key, e.Last)
		}
	}
	if elements.Len() != len(list.single) {
		t.Errorf("%d elements of %d", elements.Len(), len(list.single))
	}
	set := host.NFTSet{Name: "__set0", KeyType: uint32(m.number(unix.NFTA_SET_KEY_TYPE)), KeyLen: 4, Elements: elements}
	r.texts = texts{family: "inet", links: r.links, sets: map[string]*host.NFTSet{"__set0": &set}}
	r.addRule(&table, nil, &m)
	r.texts.setText("__set0", &set)
	for _, i := range table.Items {
		if i.Kind == "" || len(i.Uses) == 0 || !slices.ContainsFunc(i.Uses, func(u string) bool { return nftables.Module(u) != "" }) {
			t.Errorf("kept for nothing: %+v", i)
		}
		if s := i.Name + i.Text + i.Chain; s != strings.ToValidUTF8(s, "\uFFFD") {
			t.Errorf("not valid UTF-8: %q", s)
		}
	}
	for _, c := range table.Chains {
		for _, rule := range c.Rules {
			if !whole || rule.Text != strings.ToValidUTF8(rule.Text, "\uFFFD") {
				t.Errorf("%+v", rule)
			}
		}
	}
}
