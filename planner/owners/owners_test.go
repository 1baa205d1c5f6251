package owners

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/carrier"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// rule is a rule of a table with this name, alone in its chain.
func rule(l *host.Live, family, table, chain, hook string, handle uint64) *verdict.RuleRef {
	t := host.NFTTable{Family: family, Name: table, Whole: true, Chains: []host.NFTChain{{Name: chain, Hook: hook, Policy: "drop"}}}
	ref := &verdict.RuleRef{Family: host.IPv4, Native: family, Table: table, Chain: chain, Handle: handle, Policy: "drop"}
	if handle != 0 {
		t.Chains[0].Rules = []host.NFTRule{{Handle: handle, Text: "drop"}}
		ref.Text = "drop"
	}
	if base, _, ok := strings.Cut(chain, "_deny"); ok {
		t.Chains = append(t.Chains, host.NFTChain{Name: base})
	}
	l.NFT = append(l.NFT, t)
	return ref
}

// conf is what boot makes of one file.
func conf(path, content string) host.NFTConf {
	return nftconf.Load([]string{path}, []host.NFTFile{{File: host.File{Path: path, Content: content}}})
}

func TestToLetThrough(t *testing.T) {
	dns := Packets{Family: host.IPv4, Proto: protocol.UDP, Ports: host.PortRange{From: 53, To: 53}, Untracked: true}
	ssh := Packets{Family: host.IPv4, Proto: protocol.TCP, Ports: host.PortRange{From: 22, To: 22}, ToPort: true}
	for name, tt := range map[string]struct {
		family, table, chain, hook string
		handle                     uint64
		packets                    Packets
		file                       string
		text                       string
		commands                   []string
	}{
		"a rule that a file loads": {
			"inet", "fw", "in", "input", 7, dns, "table inet fw {\n\tchain in {\n\t\tdrop\n\t}\n}\n",
			"for good by `meta nfproto ipv4 ct state untracked udp sport 53 accept` before /etc/nftables.conf:3",
			[]string{"nft insert rule inet fw in position 7 meta nfproto ipv4 ct state untracked udp sport 53 accept"},
		},
		"a policy": {
			"ip", "fw", "in", "input", 0, ssh, "table fw {\n\tchain in {\n\t\tpolicy drop\n\t}\n}\n",
			"by `tcp dport 22 accept` as the last of the chain at /etc/nftables.conf:2", []string{"nft add rule ip fw in tcp dport 22 accept"},
		},
		"a rule that was added": {
			"inet", "fw", "in", "input", 7, ssh, "table inet fw {\n\tchain in {\n\t}\n}\n",
			"tcp dport 22 accept` where that rule comes from: no file that nftables.service loads has it", []string{"nft insert rule inet fw in position 7 meta nfproto ipv4 tcp dport 22 accept"},
		},
		"a policy that was set": {
			"ip", "fw", "in", "input", 0, ssh, "table ip fw {\n\tchain in {\n\t}\n}\n",
			"where that policy comes from", []string{"nft add rule ip fw in tcp dport 22 accept"},
		},
		"a table of nobody known": {
			"ip", "fw", "in", "input", 7, ssh, "", "no file that nftables.service loads has it", []string{"nft insert rule ip fw in position 7 tcp dport 22 accept"},
		},
		"a name that nft cannot write":    {"ip", "fw; flush ruleset", "in", "input", 7, ssh, "", "accept it in the chain", nil},
		"a chain that knows no state":     {"netdev", "fw", "in", "ingress", 7, dns, "", "accept it in the chain of nftables that drops it, netdev fw in, where", nil},
		"who makes its table again":       {"ip", "kube-proxy", "firewall-check", "", 7, ssh, "", "which kube-proxy makes and makes again", nil},
		"a table of docker":               {"ip", "docker-bridges", "filter-forward__docker0", "", 7, ssh, "", "which docker makes", nil},
		"a table of fail2ban":             {"inet", "f2b-table", "f2b-chain", "input", 7, ssh, "", "which fail2ban makes", nil},
		"what comes before firewalld's":   {"inet", "firewalld", "filter_INPUT", "input", 7, ssh, "", "no words for what comes before its zones", nil},
		"what firewalld refuses, as told": {"inet", "firewalld", "filter_IN_work_deny", "", 7, ssh, "", "on purpose, in zone work", nil},
		"a policy of firewalld": {"inet", "firewalld", "filter_IN_policy_mine", "", 7, ssh, "", "in its policy mine", []string{
			`firewall-cmd --policy=mine --add-rich-rule='rule family="ipv4" port port="22" protocol="tcp" accept'`,
			`firewall-cmd --permanent --policy=mine --add-rich-rule='rule family="ipv4" port port="22" protocol="tcp" accept'`,
		}},
		"a zone that a shell would run": {"inet", "firewalld", "filter_IN_$(reboot)", "", 7, ssh, "", "in its zone $(reboot)", []string{
			`firewall-cmd '--zone=$(reboot)' --add-rich-rule='rule family="ipv4" port port="22" protocol="tcp" accept'`,
			`firewall-cmd --permanent '--zone=$(reboot)' --add-rich-rule='rule family="ipv4" port port="22" protocol="tcp" accept'`,
		}},
	} {
		var l host.Live
		ref := rule(&l, tt.family, tt.table, tt.chain, tt.hook, tt.handle)
		l.NFTConf = conf("/etc/nftables.conf", tt.file)
		got := ToLetThrough(declared.Desired{Firewall: declared.IPTables}, &l, ref, []Cut{{ref, tt.packets}}, "")
		if !strings.Contains(got.Text, tt.text) || !slices.Equal(got.Commands, tt.commands) {
			t.Errorf("%s: %q\n%s", name, got.Text, strings.Join(got.Commands, "\n"))
		}
		// Where ctplan's own rules go to that table, its accept block is enough.
		got = ToLetThrough(declared.Desired{Firewall: declared.NFTables}, &l, ref, []Cut{{ref, tt.packets}}, "add an accept block")
		if ours := l.NFT[0].Family != "bridge" && carrier.TakesRules(&l.NFT[0]) && l.NFT[0].Chains[0].Hook != "ingress"; ours != (got.Text == "add an accept block" && len(got.Commands) == 0) {
			t.Errorf("%s, where nftables carries ctplan's rules: %q\n%s", name, got.Text, strings.Join(got.Commands, "\n"))
		}
	}
}

func TestWhere(t *testing.T) {
	var l host.Live
	ref := rule(&l, "ip", "fw", "in", "input", 7)
	l.NFTConf = conf("/etc/nft", "table fw { chain in {\ndrop\n} ; }\ntable by { chain hand { policy drop; }; }\n")
	firewalld := rule(&l, "inet", "firewalld", "filter_INPUT", "input", 9)
	besides := rule(&l, "ip", "by", "hand", "input", 8)
	for want, r := range map[string]*verdict.RuleRef{
		"x (added by hand, in no file that nftables.service loads)": besides,
		"x (nftables.service, /etc/nft:2)":                          ref, "x (made by firewalld)": firewalld, "x": {Family: host.IPv4, Chain: "INPUT"},
	} {
		if got := Where(&l, r, "x"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := Where(&l, nil, "no rule"); got != "no rule" {
		t.Errorf("no rule: %q", got)
	}
}
