package planner

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// TestTrackingWork shows that what only tracking can do goes with its own word
// alone, and not with stateful_rules = "remove".
func TestTrackingWork(t *testing.T) {
	for _, tt := range []struct {
		table, rule string
		risk        declared.Risk
	}{
		{"filter", "INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460", declared.RiskSYNProxy},
		{"filter", "FORWARD -p tcp -m state --state UNTRACKED -j SYNPROXY", declared.RiskSYNProxy},
		{"filter", "INPUT -p tcp -m tcp --dport 80 -m connlimit --connlimit-above 20 --connlimit-mask 32 -j REJECT", declared.RiskConnectionLimits},
		{"filter", "INPUT -p tcp -m connlimit --connlimit-upto 5 -j ACCEPT", declared.RiskConnectionLimits},
		{"mangle", "FORWARD -p tcp -m connbytes --connbytes 1000000 --connbytes-dir both --connbytes-mode bytes -j MARK --set-xmark 0x3/0xffffffff", declared.RiskConnectionBytes},
		{"mangle", "PREROUTING -p tcp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", declared.RiskConnectionMarks},
		{"mangle", "OUTPUT -p tcp -m connmark --mark 0x2 -j ACCEPT", declared.RiskConnectionMarks},
		{"mangle", "POSTROUTING -p tcp -j CONNSECMARK --save", declared.RiskConnectionMarks},
		{"mangle", "PREROUTING -p tcp -j HMARK --hmark-tuple ct --hmark-mod 8", declared.RiskConnectionMarks},
		{"filter", "INPUT -p tcp -m connlabel --label 3 -j ACCEPT", declared.RiskConnectionMarks},
		{"raw", "PREROUTING -p tcp -j CT --zone 5", declared.RiskZones},
		{"raw", "PREROUTING -p tcp -j CT --zone-orig 5", declared.RiskZones},
		{"raw", "PREROUTING -p tcp -m tcp --dport 22 -j CT --timeout long", declared.RiskRuleTimeouts},
		{"raw", "PREROUTING -p tcp -m tcp --dport 111 -j CT --helper rpc", declared.RiskRelated},
		{"filter", "INPUT -p tcp -m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1 -j ACCEPT", declared.RiskClusters},
		{"filter", "FORWARD -p tcp -m ipvs --vdir REPLY -j ACCEPT", declared.RiskIPVS},
		{"filter", "FORWARD -p tcp -m state --state ESTABLISHED -j FLOWOFFLOAD", declared.RiskFlowtables},
	} {
		for _, mode := range []declared.Mode{declared.Notrack, declared.Disabled} {
			l := host.Live{Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true}}
			text := "*" + tt.table + "\n:" + strings.Fields(tt.rule)[0] + " ACCEPT\n-A " + tt.rule + "\nCOMMIT\n"
			l.Rulesets = []host.Ruleset{parseLines(t, host.IPv4, text)}
			plan := func(risks ...declared.Risk) (got []declared.Risk, removed bool) {
				d := notrackTCP(declared.RemoveStateful)
				if d.Mode = mode; mode == declared.Disabled {
					d.Chains, d.Notrack = nil, nil
				}
				d.AllowRisk = risks
				p := Diff(d, l)
				for _, b := range p.Blocks {
					if b.Risk != declared.RiskOneSided {
						got = append(got, b.Risk)
					}
				}
				for _, s := range Steps(p) {
					if s.Rules == nil {
						continue
					}
					for _, sec := range s.Rules.Sections {
						for _, op := range sec.Ops {
							removed = removed || strings.HasSuffix(tt.rule, op.Rule) && op.Rule != ""
						}
					}
				}
				return got, removed
			}
			if got, removed := plan(); !slices.Equal(got, []declared.Risk{tt.risk}) || removed {
				t.Errorf("%s, %s: blocked by %q, removed %v", mode, tt.rule, got, removed)
			}
			if got, removed := plan(tt.risk); len(got) > 0 || !removed {
				t.Errorf("%s, %s, accepted: blocked by %q, removed %v", mode, tt.rule, got, removed)
			}
		}
	}
	// What the notrack blocks leave alone goes on as it is.
	l := host.Live{Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true}}
	l.Rulesets = []host.Ruleset{parseLines(t, host.IPv4, "*filter\n:INPUT ACCEPT\n-A INPUT -p udp -m connlimit --connlimit-above 20 -j REJECT\nCOMMIT\n")}
	if p := Diff(notrackTCP(declared.RemoveStateful), l); p.Blocked() {
		t.Errorf("blocked: %+v", p.Blocks)
	}
}

// TestNativeTrackingWork is the same for rules of nftables' own, which stay and
// find nothing.
func TestNativeTrackingWork(t *testing.T) {
	data := func(s string) host.Hex { b, _ := hex.DecodeString(s); return b }
	proto := func(n string) []host.NFTExpr {
		return []host.NFTExpr{{Name: "meta", Key: 16, Dst: 1}, {Name: "cmp", Src: 1, Data: data(n)}}
	}
	for _, tt := range []struct {
		name  string
		uses  []string
		exprs []host.NFTExpr
		risk  declared.Risk
	}{
		{"synproxy", []string{"synproxy"}, []host.NFTExpr{{Name: "synproxy"}}, declared.RiskSYNProxy},
		{"ct count over 5", []string{"connlimit"}, []host.NFTExpr{{Name: "connlimit"}}, declared.RiskConnectionLimits},
		{"add @m { ip saddr ct count over 5 }", []string{"dynset", "connlimit"}, []host.NFTExpr{{Name: "dynset"}}, declared.RiskConnectionLimits},
		{"meta mark set ct mark", []string{"ct", "meta"}, []host.NFTExpr{{Name: "ct", Key: 3, Dst: 1}, {Name: "meta", Key: 3, Src: 1, Sets: true}}, declared.RiskConnectionMarks},
		{"ct bytes > 5", []string{"ct"}, []host.NFTExpr{{Name: "ct", Key: 15, Dst: 1}}, declared.RiskConnectionBytes},
		{"ct zone set 5", []string{"ct"}, []host.NFTExpr{{Name: "ct", Key: 17, Src: 1, Sets: true}}, declared.RiskZones},
		{"ct timeout set \"x\"", []string{"ct timeout"}, []host.NFTExpr{{Name: "objref", Key: 7}}, declared.RiskRuleTimeouts},
		{"flow add @f", []string{"flow_offload"}, []host.NFTExpr{{Name: "flow_offload"}}, declared.RiskFlowtables},
		{"-m connbytes", []string{"match connbytes"}, []host.NFTExpr{{Name: "match"}}, declared.RiskConnectionBytes},
		{"ct state established accept", []string{"ct"}, []host.NFTExpr{{Name: "ct", Key: 0, Dst: 1}}, ""},
	} {
		for _, n := range []string{"", "06", "11"} { // of any protocol, of TCP, of UDP
			exprs := tt.exprs
			if n != "" {
				exprs = append(proto(n), exprs...)
			}
			for _, whole := range []bool{true, false} {
				table := host.NFTTable{Family: "inet", Name: "t", Whole: whole, Chains: []host.NFTChain{{Name: "in", Hook: "input", Type: "filter", Policy: "accept"}},
					Items: []host.NFTItem{{Kind: "rule", Chain: "in", Handle: 4, Text: tt.name, Uses: tt.uses}}}
				if whole {
					table.Chains[0].Rules = []host.NFTRule{{Handle: 4, Text: tt.name, Exprs: exprs}}
				}
				l := host.Live{Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true}, NFT: []host.NFTTable{table}}
				p := Diff(notrackTCP(declared.RemoveStateful), l)
				var got declared.Risk
				for _, b := range p.Blocks {
					if b.Risk != declared.RiskOneSided {
						got = b.Risk
					}
				}
				want := tt.risk
				if n == "11" && whole {
					want = ""
				}
				if got != want {
					t.Errorf("%s (protocol %q, whole %v): blocked by %q, want %q", tt.name, n, whole, got, want)
				}
			}
		}
	}
}

// TestTrackingServices are those that work with the table without a rule.
func TestTrackingServices(t *testing.T) {
	for _, mode := range []declared.Mode{declared.Notrack, declared.Disabled, declared.Tuned} {
		l := host.Live{Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true}, Sysctls: map[string]host.Sysctl{host.SysctlIPVSConntrack: {Value: "1"}},
			Boot: &host.Boot{Init: host.InitSystemd, Running: []string{"conntrackd"}, Services: []string{"conntrackd"}}}
		d := notrackTCP(declared.RemoveStateful)
		if d.Mode = mode; mode != declared.Notrack {
			d.Chains, d.Notrack = nil, nil
		}
		if mode == declared.Tuned {
			d = tuned(1000, 1000)
		}
		var got []declared.Risk
		for _, b := range Diff(d, l).Blocks {
			if b.Risk == declared.RiskIPVS || b.Risk == declared.RiskConntrackd {
				got = append(got, b.Risk)
			}
		}
		want := []declared.Risk{declared.RiskIPVS, declared.RiskConntrackd}
		if mode == declared.Tuned {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: blocked by %q", mode, got)
		}
	}
}
