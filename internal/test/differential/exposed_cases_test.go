package differential

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/impact"
	"github.com/ctplan/ctplan/planner/verdict"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/nft"
	"github.com/ctplan/ctplan/schema"
)

// exposedCase is a firewall as people write them, with what is declared for it.
// What newly gets in must be told in any case.
type exposedCase struct {
	name  string
	rules string // of filter behind the policies; "INPUT DROP" first sets one
	nft   string // of a table of nftables' own
	hcl   string // blocks; mode = "disabled" where it begins so; "": notrack of all
	// blocks are parts of the reasons to be blocked, in any order; asks those of
	// warnings about what a block opens. None of either: nothing is exposed.
	blocks, asks []string
	// burst is a port to which one stranger sends eight SYNs: some are refused
	// today, and none then.
	burst uint16
	rated bool // today's rules let in so many: that more get in is not told
}

// The firewalls. vin leads to 10.1.0.0/24 and vout to 10.2.0.0/24 and the world.
var exposedCases = []exposedCase{
	{name: "a database that outsiders are refused", rules: "-A INPUT ! -s 10.1.0.0/24 -p tcp -m tcp --dport 3306 -m state --state NEW -j DROP", blocks: []string{"anybody may now reach tcp/3306 on this host"}},
	{name: "the guard of an SSH port", rules: "-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --set --name SSH\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 4 --name SSH -j DROP",
		blocks: []string{"anybody may now reach tcp/22 on this host, of which today's rule refuses some"}, burst: 22},
	{name: "the guard, ahead of an accept that is declared", rules: "INPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --set --name SSH2\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 4 --name SSH2 -j DROP\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT",
		hcl: `notrack "all" {} accept "ssh" { protocol = "tcp" local_port = 22 }`, asks: []string{`accept "ssh" opens what is refused today: anybody may now reach tcp/22 on this host, of which`}, burst: 22},
	{name: "a REJECT on ESTABLISHED opens nothing: its first packets pass today", rules: "INPUT DROP\n-A INPUT -p tcp -m tcp --dport 7005 -m state --state ESTABLISHED -j REJECT\n-A INPUT -p tcp -m tcp --dport 7005 -j ACCEPT"},
	{name: "a -g on NEW that untracked packets pass by", rules: "-A INPUT -p tcp -m state --state NEW -g office\n-A INPUT -p udp -j DROP\n-A office -p tcp -m tcp --dport 80 -j ACCEPT\n-A office -j DROP", blocks: []string{"every port of tcp but 80 on this host"}},
	{name: "a port that an accept opens, ahead of a REJECT", rules: "-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 7005 -j REJECT", hcl: `notrack "all" {} accept "a0" { protocol = "tcp" local_port = 7005 }`,
		asks: []string{`accept "a0" opens what is refused today: anybody may now reach tcp/7005 on this host. Today this keeps it out: -A INPUT -p tcp -m tcp --dport 7005 -j REJECT`}},
	{name: "a blacklist of NEW", rules: "INPUT DROP\n-A INPUT -s 198.18.0.0/15 -m state --state NEW -j DROP\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", blocks: []string{"198.18.0.0/15 may now reach tcp/80 on this host"}},
	{name: "a blacklist without states keeps out", rules: "INPUT DROP\n-A INPUT -s 198.18.0.0/15 -j DROP\n-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT"},
	{name: "a blacklist behind the rule on states", rules: "INPUT DROP\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -s 198.18.0.0/15 -j DROP\n-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -j ACCEPT",
		hcl: `notrack "all" {} accept "web" { protocol = "tcp" local_port = 80 }`, asks: []string{"198.18.0.0/15 may now reach tcp/80 on this host"}},
	{name: "an ipset of NEW", rules: "-A INPUT -m set --match-set nets src -m state --state NEW -j DROP", blocks: []string{"may now reach every port of tcp"}},
	{name: "a set of countries that may come, NEW", rules: "-A INPUT -p tcp -m multiport --dports 80,443 -m set ! --match-set hosts src -m conntrack --ctstate NEW -j DROP", blocks: []string{"anybody may now reach tcp/80 and 443 on this host"}},
	{name: "a set of countries in nft, as an accept for NEW in iptables goes", rules: "INPUT DROP\n-A INPUT -p tcp -m tcp --dport 443 -m state --state NEW -j ACCEPT", nft: "set land { type ipv4_addr; flags interval; elements = { 10.1.0.0/24, 10.2.0.0/24 }; }\nchain in { type filter hook input priority -10; policy accept; tcp dport 443 ip saddr != @land ct state new drop; }",
		hcl: `notrack "all" {} accept "web" { protocol = "tcp" local_port = 443 }`, asks: []string{`accept "web" opens what is refused today: anybody may now reach tcp/443`}},
	{name: "the same without states keeps out", rules: "INPUT DROP\n-A INPUT -p tcp -m tcp --dport 443 -m state --state NEW -j ACCEPT", nft: "set land { type ipv4_addr; flags interval; elements = { 10.1.0.0/24, 10.2.0.0/24, 198.18.0.0/15, 203.0.113.0/24 }; }\nchain in { type filter hook input priority -10; policy accept; tcp dport 443 ip saddr != @land drop; }",
		hcl: `notrack "all" {} accept "web" { protocol = "tcp" local_port = 443 }`},
	{name: "nft alone refuses NEW", nft: "chain in { type filter hook input priority 0; policy accept; iifname \"vout\" tcp dport { 3306, 8080 } ct state new drop; }", rules: "-A INPUT -m state --state ESTABLISHED -j ACCEPT", blocks: []string{"anybody may now reach tcp/3306 and 8080 on this host through vout"}},
	{name: "nft: a map of verdicts by state", nft: "chain in { type filter hook input priority 0; policy accept; ct state vmap { established : accept, related : accept, invalid : drop, new : jump fresh }; }\nchain fresh { tcp dport 22 accept; drop; }", rules: "-A INPUT -m state --state ESTABLISHED -j ACCEPT",
		blocks: []string{"anybody may now reach every port of tcp but 22"}},
	{name: "port knocking", rules: "-A INPUT -p tcp -m tcp --dport 7005 -m recent --set --name KNOCK -j DROP\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent ! --rcheck --seconds 30 --name KNOCK -j DROP", blocks: []string{"anybody may now reach tcp/22 on this host, of which"}},
	{name: "a SYN limit by state", rules: "-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -m limit --limit 1/min --limit-burst 2 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -j DROP", blocks: []string{"anybody may now reach tcp/80 on this host, of which"}, burst: 80},
	{name: "a SYN limit without state stays", rules: "-A INPUT -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 1/min --limit-burst 2 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 --tcp-flags FIN,SYN,RST,ACK SYN -j DROP\n-A INPUT -m state --state INVALID -j DROP"},
	{name: "an accept with a rate opens nothing new when it is declared", rules: "INPUT DROP\n-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -m limit --limit 1/min --limit-burst 2 -j ACCEPT", hcl: `notrack "all" {} accept "web" { protocol = "tcp" local_port = 80 }`, rated: true},
	{name: "hashlimit above", rules: "-A INPUT -p tcp -m tcp --dport 443 -m conntrack --ctstate NEW -m hashlimit --hashlimit-above 1/min --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name web -j DROP", blocks: []string{"anybody may now reach tcp/443 on this host, of which"}, burst: 443},
	{name: "so many connections at once", rules: "-A INPUT -p tcp -m tcp --dport 80 -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr -j REJECT --reject-with tcp-reset"}, // blocked by connection_limits
	{name: "bogus flags begin nothing", rules: "-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -m state --state NEW -j DROP\n-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -m state --state NEW,INVALID -j DROP\n-A INPUT -m state --state INVALID -j DROP"},
	{name: "! --syn NEW begins nothing", rules: "-A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m state --state NEW -j DROP"},
	{name: "a management network", rules: "-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -g admin\n-A admin -s 10.1.0.0/24 -j ACCEPT\n-A admin -j LOG --log-prefix \"ssh \"\n-A admin -j REJECT", blocks: []string{"anybody may now reach tcp/22 on this host"}},
	{name: "a management interface", rules: "-A INPUT ! -i vin -p tcp -m multiport --dports 22,8080 -m state --state NEW -j DROP", blocks: []string{"anybody may now reach tcp/22 and 8080 on this host through vout"}},
	{name: "a log before the drop", rules: "-A INPUT -p tcp -m tcp --dport 3306 -m state --state NEW -j logdrop\n-A logdrop -m limit --limit 5/min -j LOG\n-A logdrop -j DROP", blocks: []string{"anybody may now reach tcp/3306 on this host"}},
	{name: "a chain that is entered on NEW", rules: "-A INPUT -m conntrack --ctstate NEW -j fresh\n-A fresh -p udp -m udp --dport 53 -j RETURN\n-A fresh -p udp -j DROP", blocks: []string{"anybody may now reach every port of udp but 53 on this host"}},
	{name: "REJECT with reset", rules: "-A INPUT -p tcp -m tcp --dport 113 -m state --state NEW -j REJECT --reject-with tcp-reset", blocks: []string{"anybody may now reach tcp/113 on this host"}},
	{name: "a host that lets all in", rules: "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT"},
	{name: "a host that lets all in, by rule", rules: "INPUT DROP\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -j ACCEPT"},
	{name: "a host that lets in what is NEW", rules: "INPUT DROP\n-A INPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT", hcl: `notrack "all" {} accept "all" {}`},
	{name: "what is not NEW, untracked included", rules: "INPUT DROP\n-A INPUT -m conntrack ! --ctstate NEW,INVALID -j ACCEPT", blocks: []string{"anybody may now reach every port of tcp"}},
	{name: "ping is refused by state", rules: "-A INPUT -p icmp -m state --state NEW -j DROP", blocks: []string{"anybody may now reach ping (icmp) on this host"}},
	{name: "ping that an accept opens", rules: "INPUT DROP\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", hcl: `notrack "all" {} accept "icmp" { protocol = "icmp" }`, asks: []string{`accept "icmp" opens what is refused today: anybody may now reach ping (icmp)`}},
	{name: "answers by source port", rules: "INPUT DROP\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", hcl: `notrack "all" {} accept "dns" { protocol = "udp" remote_port = 53 remote = "10.2.0.12" }`, asks: []string{"10.2.0.12 may now reach every port of udp from source port 53 on this host"}},
	{name: "answers of TCP, and no beginning", rules: "INPUT DROP\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT", hcl: `notrack "all" {} accept "web" { protocol = "tcp" remote_port = 443 initiator = "local" }`},
	{name: "a router that refuses what is NEW from outside", rules: "-A FORWARD -i vout -m state --state NEW -j DROP", blocks: []string{"anybody may now reach every port of tcp, every port of udp, ping (icmp) and every other protocol on hosts behind this one"}},
	{name: "a router's forward accept", rules: "FORWARD DROP\n-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i vin -j ACCEPT", hcl: `notrack "through" { direction = "forward" } accept "web" { direction = "forward" protocol = "tcp" remote_port = 443 initiator = "local" remote = "10.2.0.0/24" }`},
	{name: "a notrack block that leaves the database alone", rules: "-A INPUT ! -s 10.1.0.0/24 -p tcp -m tcp --dport 3306 -m state --state NEW -j DROP", hcl: `notrack "web" { protocol = "tcp" local_port = 80 }`},
	{name: "disabled: the rule goes", rules: "-A INPUT ! -s 10.1.0.0/24 -p tcp -m tcp --dport 3306 -m state --state NEW -j DROP", hcl: `disabled`, blocks: []string{"anybody may now reach tcp/3306 on this host"}},
	{name: "disabled: a foreign NOTRACK goes last", rules: "FORWARD DROP\n-A FORWARD -i vin -m state --state NEW -j ACCEPT\nraw\n-A PREROUTING -p udp -j CT --notrack\n-A OUTPUT -p udp -j CT --notrack", hcl: `disabled`},
	{name: "other protocols", rules: "-A INPUT -p gre -m state --state NEW -j DROP", blocks: []string{"anybody may now reach gre on this host"}},
	{name: "by mark and comment", rules: "-A INPUT -p tcp -m tcp --dport 8080 -m state --state NEW -m comment --comment \"only inside, -j DROP\" -m mark ! --mark 0x1 -j DROP", blocks: []string{"anybody may now reach tcp/8080 on this host"}},
}

// firewall is the ruleset of the case, as iptables-restore reads it.
func (c *exposedCase) firewall() string {
	policy := map[string]string{"INPUT": "ACCEPT", "FORWARD": "ACCEPT"}
	table := map[string]string{}
	at, chains := "filter", map[string]bool{}
	for line := range strings.SplitSeq(c.rules, "\n") {
		w := strings.Fields(line)
		switch {
		case len(w) == 2:
			policy[w[0]] = w[1]
		case len(w) == 1:
			at = w[0]
		case len(w) > 2:
			table[at] += line + "\n"
			if at == "filter" && strings.ToUpper(w[1]) != w[1] {
				chains[w[1]] = true
			}
		}
	}
	text := fmt.Sprintf("*filter\n:INPUT %s [0:0]\n:FORWARD %s [0:0]\n:OUTPUT ACCEPT [0:0]\n", policy["INPUT"], policy["FORWARD"])
	for name := range chains {
		text += ":" + name + " - [0:0]\n"
	}
	return text + table["filter"] + "COMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + table["raw"] + "COMMIT\n"
}

// declares is the case's HCL as values.
func declares(t *testing.T, blocks string, more string) declared.Desired {
	t.Helper()
	mode := "notrack"
	if rest, ok := strings.CutPrefix(blocks, "disabled"); ok {
		mode, blocks = "disabled", rest
	} else if blocks == "" {
		blocks = `notrack "all" {}`
	}
	blocks = strings.NewReplacer("{} ", "{}\n", "} accept", "}\naccept", " { ", " {\n", " } ", "\n}\n").Replace(blocks + " ")
	for _, name := range []string{"protocol", "local_port", "remote_port", "remote", "initiator", "direction"} {
		blocks = strings.ReplaceAll(blocks, " "+name+" = ", "\n"+name+" = ")
	}
	hcl := fmt.Sprintf("conntrack \"x\" {\nmode = %q\nstateful_rules = \"remove\"\nfamilies = [\"ipv4\"]\n%s\n%s}\n", mode, more, blocks)
	config, diags := schema.Load([]schema.Source{{Name: "x.hcl", Content: []byte(hcl)}}, schema.Vars{}, &schema.Facts{})
	if len(diags.List()) > 0 {
		t.Fatalf("%v\n%s", diags.List(), hcl)
	}
	d, diags := config.For("x")
	if len(diags.List()) > 0 {
		t.Fatalf("%v\n%s", diags.List(), hcl)
	}
	d.Chains = iptables.Render(d, host.Live{})
	return d
}

// wide is a firewall that lets all through.
const wide = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"

// TestExposedCases: firewalls as people write them, on both backends and with
// nftables' own rules, with packets before and after.
func TestExposedCases(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		l := newLab(t, nil)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		l.defaultRoutes()
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			for _, c := range exposedCases {
				t.Run(string(b)+"/"+c.name, func(t *testing.T) { l.exposedCase(t, b, c) })
				l.load(host.IPv4, wide)
				if c.nft != "" {
					check(t, exec.Command("nft", "delete", "table", "ip", "own").Run())
				}
			}
		}
	})
}

// plans plans for the rules as they stand now.
func (l *lab) plans(t *testing.T, b host.Backend, d declared.Desired) planner.Plan {
	t.Helper()
	return planner.Diff(d, l.liveNow(b))
}

func (l *lab) exposedCase(t *testing.T, b host.Backend, c exposedCase) {
	l.load(host.IPv4, c.firewall())
	if c.nft != "" {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader("table ip own {\n" + strings.ReplaceAll(c.nft, "; ", ";\n") + "\n}\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	d := declares(t, c.hcl, "")
	plan := l.plans(t, b, d)
	var blocked, asked []string
	for _, block := range plan.Blocks {
		if block.Risk == declared.RiskExposed {
			blocked = append(blocked, block.Why)
		}
	}
	for _, w := range plan.Warnings {
		if strings.Contains(w.Text, "opens what is refused today") {
			asked = append(asked, w.Text)
		}
	}
	missing := func(have, want []string) bool {
		return len(want) == 0 && len(have) > 0 || slices.ContainsFunc(want, func(w string) bool {
			return !slices.ContainsFunc(have, func(h string) bool { return strings.Contains(h, w) })
		})
	}
	if missing(blocked, c.blocks) || missing(asked, c.asks) {
		t.Errorf("blocked %q, want %q\nasked %q, want %q\n%s", blocked, c.blocks, asked, c.asks, c.firewall())
	}
	knocks := l.knocks(host.IPv4)
	l.arrive(knocks, func(k *knock, seen bool) { k.before = seen }, func(*knock) bool { return false })
	before := l.burst(c.burst)
	l.apply(host.IPv4, planner.Diff(func() declared.Desired { d := d; d.AllowRisk = declared.Risks; return d }(), l.liveNow(b)))
	l.arrive(knocks, func(k *knock, seen bool) { k.after = seen }, func(*knock) bool { return false })
	news := 0
	for _, k := range knocks {
		if k.before || !k.after || c.rated {
			continue
		}
		news++
		if !slices.ContainsFunc(plan.Impact.Exposed, func(e impact.Exposure) bool { return tells(e, k) }) {
			t.Errorf("gets in untold: %s\n%+v\n%s", k, plan.Impact.Exposed, l.save(host.IPv4))
			break
		}
	}
	if whole := len(c.blocks)+len(c.asks) > 0 && c.burst == 0 && !strings.Contains(c.rules, "recent") && !strings.Contains(c.rules, "connlimit"); whole && news == 0 && !strings.Contains(c.rules, "--dport 113") && !strings.Contains(c.rules, "gre") && !strings.Contains(c.hcl, "remote_port = 53") {
		t.Errorf("nothing gets in that did not before\n%s", l.save(host.IPv4))
	}
	if after := l.burst(c.burst); c.burst > 0 && (before == 8 || after != 8) {
		t.Errorf("of eight in a row %d get in before, and %d after", before, after)
	}
}

func (l *lab) liveNow(b host.Backend) host.Live {
	live := l.live(l.parse(b, host.IPv4, l.save(host.IPv4)))
	live.Connections.Sets = l.sets
	live.NFT = must(nft.Read(func(_, table string) bool { return table != "own" }))(l.t)
	live.Links = must(nft.Links())(l.t)
	return live
}

// burst is how many of eight SYNs in a row get in, from somebody new.
func (l *lab) burst(port uint16) (n int) {
	if port == 0 {
		return 0
	}
	var all []*knock
	for range 8 {
		all = append(all, &knock{packet: verdict.Packet{Hook: verdict.HookInput, In: outside, Protocol: unix.IPPROTO_TCP, TCPFlags: verdict.TCPSyn, Tuple: host.Tuple{Src: netip.MustParseAddr("192.0.2.7"), Dst: hostOut[host.IPv4], DstPort: port}}})
	}
	l.arrive(all, func(k *knock, seen bool) { k.after = seen }, func(*knock) bool { return false })
	for _, k := range all {
		if k.after {
			n++
		}
	}
	return n
}

// TestExposedRemedies: what a reason says keeps somebody out, keeps them out.
func TestExposedRemedies(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		l := newLab(t, nil)
		l.wire = newWire(t)
		l.defaultRoutes()
		for _, b := range []host.Backend{host.NFT, host.Legacy} {
			ns.Use(b)
			c := exposedCase{rules: "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n-A INPUT ! -s 10.1.0.0/24 -p tcp -m tcp --dport 3306 -m state --state NEW -m comment --comment \"not from 'outside'\" -j DROP"}
			mysql := func(fromNear bool) *knock {
				k := &knock{packet: verdict.Packet{Hook: verdict.HookInput, In: outside, Protocol: unix.IPPROTO_TCP, TCPFlags: verdict.TCPSyn, Tuple: host.Tuple{Src: netip.MustParseAddr("192.0.2.7"), Dst: hostOut[host.IPv4], DstPort: 3306}}}
				if fromNear {
					k.packet.In, k.packet.Src, k.packet.Dst = inside, near(host.IPv4, 0), hostIn[host.IPv4]
				}
				return k
			}
			reaches := func() (in, out bool) {
				both := []*knock{mysql(true), mysql(false)}
				l.arrive(both, func(k *knock, seen bool) { k.after = seen }, func(*knock) bool { return false })
				return both[0].after, both[1].after
			}
			exposed := func(p planner.Plan) *change.Block {
				for i := range p.Blocks {
					if p.Blocks[i].Risk == declared.RiskExposed {
						return &p.Blocks[i]
					}
				}
				return nil
			}
			l.load(host.IPv4, c.firewall())
			d := declares(t, "", "")
			block := exposed(l.plans(t, b, d))
			if block == nil || len(block.Commands) != 1 || !strings.HasPrefix(block.Commands[0], "iptables -I INPUT 2 ") {
				t.Fatalf("%+v", block)
			}
			// Accepted, it happens.
			l.apply(host.IPv4, l.plans(t, b, declares(t, "", "allow_risk = [\"exposed\"]\n")))
			if in, out := reaches(); !in || !out {
				t.Errorf("%s: accepted, inside %v and outside %v reach it", b, in, out)
			}
			// A narrower block leaves it alone.
			l.load(host.IPv4, c.firewall())
			p := l.plans(t, b, declares(t, `notrack "web" { protocol = "tcp" local_port = 80 }`, ""))
			l.apply(host.IPv4, p)
			if in, out := reaches(); exposed(p) != nil || !in || out {
				t.Errorf("%s: left tracked, inside %v and outside %v reach it; %+v", b, in, out, exposed(p))
			}
			// So does a translation of the rule.
			l.load(host.IPv4, c.firewall())
			translated := d
			translated.StatefulRules = declared.TranslateStateful
			p = l.plans(t, b, translated)
			l.apply(host.IPv4, p)
			if in, out := reaches(); p.Blocked() || !in || out {
				t.Errorf("%s: translated, inside %v and outside %v reach it; %+v\n%s", b, in, out, p.Blocks, l.save(host.IPv4))
			}
			// And the rule's twin.
			l.load(host.IPv4, c.firewall())
			if out, err := exec.Command("sh", "-c", block.Commands[0]).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", block.Commands[0], err, out)
			}
			p = l.plans(t, b, d)
			l.apply(host.IPv4, p)
			if in, out := reaches(); p.Blocked() || !in || out {
				t.Errorf("%s: with its twin, inside %v and outside %v reach it; %+v\n%s", b, in, out, p.Blocks, l.save(host.IPv4))
			}
			l.load(host.IPv4, wide)
		}
	})
}
