package planner

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

var tcpBothWays = []string{"raw PREROUTING -p tcp -j CT --notrack", "raw OUTPUT -p tcp -j CT --notrack"}

func sixToo(lines ...string) []string {
	out := slices.Clone(lines)
	for _, l := range lines {
		out = append(out, "6:"+strings.ReplaceAll(l, "-p icmp ", "-p ipv6-icmp "))
	}
	return out
}

func TestICMPErrors(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
	const router = "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -s 10.0.1.0/24 -j ACCEPT\nCOMMIT\n"
	accepts := []string{"filter INPUT -p tcp -j ACCEPT", "filter FORWARD -p tcp -j ACCEPT"}
	for _, tt := range []struct {
		name   string
		d      declared.Desired
		v4, v6 string
		want   []string
	}{
		{"dropped in both families", declaring(sixToo(append(accepts[:1], tcpBothWays...)...)...), rules, rules,
			[]string{"warn iptables.ipv4.filter … fragmentation-needed … today by -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT … dropped by: policy DROP of INPUT … accept \"icmp\"", "warn iptables.ipv6.filter … packet-too-big … ipv6-icmp"}},
		{"accepted by a block", declaring(sixToo(append([]string{"filter INPUT -p icmp -j ACCEPT"}, tcpBothWays...)...)...), rules, rules, nil},
		{"accepted by a foreign rule for the type", declaring(tcpBothWays...), strings.Replace(rules, "COMMIT", "-A INPUT -p icmp -m icmp --icmp-type 3 -j ACCEPT\nCOMMIT", 1), "", nil},
		{"another type does not help", declaring(tcpBothWays...), strings.Replace(rules, "COMMIT", "-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT\nCOMMIT", 1), "", []string{"warn iptables.ipv4.filter … fragmentation-needed"}},
		{"dropped today", declaring(tcpBothWays...), strings.Replace(rules, "RELATED,", "", 1), "", nil},
		{"nothing leaves tracking", declaring("filter INPUT -p tcp -j ACCEPT"), rules, "", nil},
		{"everything leaves it, ICMP too", declaring("raw PREROUTING -j CT --notrack", "raw OUTPUT -j CT --notrack", "filter INPUT -p icmp -j ACCEPT"), rules, "", nil},
		{"routed", declaring(append([]string{"filter FORWARD -p tcp -j ACCEPT"}, tcpBothWays...)...), router, "", []string{"warn iptables.ipv4.filter … routed … policy DROP of FORWARD … direction = \"forward\""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, p := symmetryOf(t, tt.d, tt.v4, tt.v6, twoNetworks(host.Connections{}))
			if fault := contained(found, tt.want...); fault != "" {
				t.Errorf("%s\n%s\n%+v", fault, strings.Join(found, "\n"), p.Warnings)
			}
		})
	}
}

// TestNeighbours: a rule that lets in what is UNTRACKED is the one that
// carries neighbour discovery, and goes with connection tracking.
func TestNeighbours(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,UNTRACKED -j ACCEPT\nCOMMIT\n"
	d := declared.Desired{Block: "t", Source: declared.Pos{File: "t.hcl", Line: 1}, Mode: declared.Disabled, Families: host.Families, StatefulRules: declared.RemoveStateful}
	found, _ := symmetryOf(t, d, openInput, rules, twoNetworks(host.Connections{}))
	if fault := contained(found, "block related iptables.ipv6.filter: policy DROP of INPUT … neighbour discovery … ipv6-icmp", "warn iptables.ipv6.filter … packet-too-big", "warn module.nf_conntrack"); fault != "" {
		t.Errorf("%s\n%s", fault, strings.Join(found, "\n"))
	}
	d.Chains = declaring("6:filter INPUT -p ipv6-icmp -j ACCEPT").Chains
	found, _ = symmetryOf(t, d, openInput, rules, twoNetworks(host.Connections{}))
	if fault := contained(found, "warn module.nf_conntrack"); fault != "" {
		t.Errorf("with the accept: %s\n%s", fault, strings.Join(found, "\n"))
	}
}

func TestHelpers(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\n-A INPUT -p icmp -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 21 -m conntrack --ctstate NEW -j ACCEPT\n" +
		"-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
	const assigned = rules + "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp\nCOMMIT\n"
	const client = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p icmp -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
	listens := host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("10.0.0.1:21"), Listening: true}}}
	control := []string{"filter INPUT -p tcp -m tcp --dport 21 -j ACCEPT", "filter OUTPUT -p tcp -m tcp --sport 21 -j ACCEPT"}
	passive := []string{"filter INPUT -p tcp -m tcp --dport 49152:50175 -j ACCEPT", "filter OUTPUT -p tcp -m tcp --sport 49152:50175 -j ACCEPT"}
	active := []string{"filter OUTPUT -p tcp -m tcp --sport 20 --dport 1024:65535 -j ACCEPT", "filter INPUT -p tcp -m tcp --sport 1024:65535 --dport 20 -j ACCEPT"}
	module := []host.Module{{Name: "nf_conntrack"}, {Name: "nf_conntrack_ftp"}}
	all := slices.Concat(tcpBothWays, control, passive, active)
	for _, tt := range []struct {
		name    string
		lines   []string
		rules   string
		c       host.Connections
		modules []host.Module
		helper  string // the sysctl
		want    []string
	}{
		{"a rule assigns it, both kinds are missing", slices.Concat(tcpBothWays, control), assigned, host.Connections{}, nil, "0",
			[]string{"block related … -A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp … ftp-passive, ftp-active … accept \"ftp-passive\" … local_port = \"49152-65535\" … initiator = \"remote\" … accept \"ftp-active\" … local_port = 20"}},
		{"the active kind is missing", slices.Concat(tcpBothWays, control, passive), assigned, host.Connections{}, nil, "0", []string{"block related … accept \"ftp-active\""}},
		{"all are there", all, assigned, host.Connections{}, nil, "0", nil},
		{"the module with a server", slices.Concat(tcpBothWays, control, active), rules, listens, module, "1", []string{"block related … a service that listens on tcp/21 in … accept \"ftp-passive\""}},
		{"the module alone is a warning", slices.Concat(tcpBothWays, control), rules, host.Connections{}, module, "1", []string{"warn iptables.ipv4.filter: the module nf_conntrack_ftp … ftp-passive, ftp-active"}},
		{"the module assigned to nothing is no use", slices.Concat(tcpBothWays, control), rules, listens, module, "0", nil},
		{"a data connection that a helper let in", slices.Concat(tcpBothWays, control, active, []string{"filter INPUT -p tcp -m tcp --dport 50001 -j ACCEPT", "filter OUTPUT -p tcp -m tcp --sport 50001 -j ACCEPT"}), rules,
			host.Connections{Sockets: listens.Sockets, Flows: []host.Flow{expected(t, "tcp 10.0.0.9:4000 10.0.0.1:50001")}}, nil, "0", []string{"block related … accept \"ftp-passive\""}},
		{"tcp stays tracked", []string{"raw PREROUTING -p udp -j CT --notrack", "raw OUTPUT -p udp -j CT --notrack"}, assigned, host.Connections{}, nil, "0", nil},
		{"a client of others", slices.Concat(tcpBothWays, []string{"filter INPUT -p tcp -m tcp --sport 21 ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"}), client, host.Connections{Flows: []host.Flow{tracked(t, "tcp 10.0.0.1:4000 54.1.1.1:21")}}, module, "1",
			[]string{"block related … connections that are open on tcp/21 out … accept \"ftp-passive\" with protocol = \"tcp\", remote_port = \"1024-65535\", initiator = \"local\" … accept \"ftp-active\" with protocol = \"tcp\", remote_port = 20, local_port = \"1024-65535\", initiator = \"remote\""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := testHost(parseLines(t, host.IPv4, tt.rules))
			l.Modules, l.Connections = tt.modules, twoNetworks(tt.c)
			if tt.modules != nil {
				l.Conntrack.Kind = host.ConntrackModule
			}
			l.Sysctls["net.netfilter.nf_conntrack_helper"] = host.Sysctl{Value: tt.helper}
			p := Diff(declaring(tt.lines...), l)
			found := symmetryFindings(p)
			if fault := contained(found, tt.want...); fault != "" {
				t.Errorf("%s\n%s", fault, strings.Join(found, "\n"))
			}
			if len(tt.want) > 0 && strings.Contains(tt.name, "missing") {
				d := declaring(tt.lines...)
				d.AllowRisk = []declared.Risk{declared.RiskRelated}
				if p := Diff(d, l); slices.ContainsFunc(p.Blocks, func(b change.Block) bool { return b.Risk == declared.RiskRelated }) {
					t.Errorf("allow_risk does not lift it: %+v", p.Blocks)
				}
			}
		})
	}
}

// expected is a connection that a helper let in.
func expected(t *testing.T, text string) host.Flow {
	f := tracked(t, text)
	f.Status |= host.StatusExpected
	return f
}

func TestOneFamily(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT ACCEPT\n-A INPUT -p icmp -j ACCEPT\n-A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -j ACCEPT\nCOMMIT\n"
	six := strings.ReplaceAll(rules, "-p icmp", "-p ipv6-icmp")
	both := sixToo(tcpBothWays...)
	web := declared.Traffic{Name: "web", Protocol: "tcp", LocalPorts: []host.PortRange{{From: 80, To: 80}}, Direction: declared.Both, Initiator: declared.RemoteSide, Families: []host.Family{host.IPv4}}
	with := func(lines []string, accept ...declared.Traffic) declared.Desired {
		d := declaring(lines...)
		for _, t := range accept { // its rule is the last one
			t.Source = declared.Pos{File: "t.hcl", Line: 10 + len(lines) - 1}
			d.Accept = append(d.Accept, t)
		}
		return d
	}
	local, remote, dhcp := web, web, web
	local.Local, local.Families = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, host.Families
	remote.Remote, remote.Families = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, host.Families
	dhcp.Protocol, dhcp.LocalPorts, dhcp.RemotePorts = "udp", []host.PortRange{{From: 68, To: 68}}, []host.PortRange{{From: 67, To: 67}}
	four := append(slices.Clone(both), "filter INPUT -p tcp -m tcp --dport 80 -j ACCEPT")
	for _, tt := range []struct {
		name string
		d    declared.Desired
		c    host.Connections
		want []string
	}{
		{"families", with(four, web), host.Connections{}, []string{"accept \"web\" covers ipv4 alone: over ipv6, tcp/80 in … dropped by: policy DROP of INPUT … add \"ipv6\""}},
		{"addresses of this host", with(four, local), host.Connections{}, []string{"accept \"web\" covers ipv4 alone … name IPv6 addresses"}},
		{"who may come is one family's", with(four, remote), host.Connections{}, nil},
		{"dhcp is", with(append(slices.Clone(both), "filter INPUT -p udp -m udp --sport 67 --dport 68 -j ACCEPT"), dhcp), host.Connections{}, nil},
		{"both", with(append(slices.Clone(both), "6:filter INPUT -p tcp -m tcp --dport 80 -j ACCEPT", "filter INPUT -p tcp -m tcp --dport 80 -j ACCEPT")), host.Connections{}, nil},
		{"the impact says so", with(four, web), host.Connections{Sockets: []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("[2001:db8::1]:80"), Listening: true}}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found, _ := symmetryOf(t, tt.d, rules, six, twoNetworks(tt.c))
			if fault := contained(found, tt.want...); fault != "" {
				t.Errorf("%s\n%s", fault, strings.Join(found, "\n"))
			}
		})
	}

	// A notrack block of one family, with a service in the other.
	d := declaring(tcpBothWays[0], tcpBothWays[1], "filter INPUT -p tcp -j ACCEPT", "6:filter INPUT -p tcp -j ACCEPT")
	for _, line := range []int{10, 11} {
		d.Notrack = append(d.Notrack, declared.Traffic{Name: "tcp", Protocol: "tcp", Direction: declared.Both, Families: []host.Family{host.IPv4}, Source: declared.Pos{File: "t.hcl", Line: line}})
	}
	d.Notrack = d.Notrack[:1]
	dual := []host.Socket{{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("[::]:80"), Listening: true, Dual: true}}
	found, _ := symmetryOf(t, d, rules, six, twoNetworks(host.Connections{Sockets: dual}))
	if fault := contained(found, "notrack \"tcp\" covers ipv4 alone: over ipv6, tcp stays tracked, as -A INPUT -p tcp -m state --state RELATED,ESTABLISHED -j ACCEPT asks for … add \"ipv6\""); fault != "" {
		t.Errorf("notrack: %s\n%s", fault, strings.Join(found, "\n"))
	}
	if found, _ = symmetryOf(t, d, rules, six, twoNetworks(host.Connections{})); len(found) != 0 {
		t.Errorf("nothing listens: %s", strings.Join(found, "\n"))
	}
}

// TestLooseStates: packets that leave tracking match what is not about a
// state that they are in.
func TestLooseStates(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m conntrack ! --ctstate NEW,INVALID -j ACCEPT\nCOMMIT\n"
	_, p := symmetryOf(t, declaring(tcpBothWays...), rules, "", twoNetworks(host.Connections{}))
	if len(p.Impact.Exposed) != 1 || !strings.Contains(p.Impact.Exposed[0].What, "anybody may now reach every port of tcp") || p.Impact.Exposed[0].Rule != "-A INPUT -m conntrack ! --ctstate NEW,INVALID -j ACCEPT" {
		t.Errorf("%+v", p.Impact.Exposed)
	}
	if _, p = symmetryOf(t, declaring(tcpBothWays...), strings.Replace(rules, "NEW,INVALID", "NEW,INVALID,UNTRACKED", 1), "", twoNetworks(host.Connections{})); len(p.Impact.Exposed) != 0 {
		t.Errorf("%+v", p.Impact.Exposed)
	}
}
