package internal_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/sizes"
	"github.com/ctplan/ctplan/planner/suggest"
	"github.com/ctplan/ctplan/providers/iptables"
)

// connected is a server at 192.0.2.1/24 and 192.0.2.2/24 on eth0 and 10.0.0.1/24
// on eth1, which drops by default, with rules between and connections as
// "proto src dst". The ipset admins is 198.51.100.64/28 and 203.0.113.9.
func connected(t *testing.T, rules string, flows ...string) *snapshot.Snapshot {
	t.Helper()
	s := plainHost("h", "")
	s.Rules[0].Text = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n" + rules + "COMMIT\n"
	c := &host.Connections{Sockets: []host.Socket{}}
	for _, a := range []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.1/24")}, {Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.2/24")}, {Interface: "eth1", Prefix: netip.MustParsePrefix("10.0.0.1/24")}} {
		c.Addresses = append(c.Addresses, a)
		c.Routes = append(c.Routes, host.Route{Prefix: a.Prefix.Masked(), Interface: a.Interface})
	}
	c.Routes = append(c.Routes, host.Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"})
	for _, text := range flows {
		w := strings.Fields(text)
		proto, _ := protocol.Number(w[0])
		if len(w) == 2 { // a socket that listens
			c.Sockets = append(c.Sockets, host.Socket{Protocol: proto, Local: netip.MustParseAddrPort(w[1]), Listening: true})
			continue
		}
		a, b := netip.MustParseAddrPort(w[1]), netip.MustParseAddrPort(w[2])
		f := host.Flow{Protocol: proto, Status: host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed, Orig: host.Tuple{Src: a.Addr(), Dst: b.Addr(), SrcPort: a.Port(), DstPort: b.Port()}}
		f.Reply = host.Tuple{Src: b.Addr(), Dst: a.Addr(), SrcPort: b.Port(), DstPort: a.Port()}
		switch w[len(w)-1] {
		case "data":
			f.Status |= host.StatusExpected
		case "silent": // nobody has answered
			f.Status = host.StatusConfirmed
		}
		if proto == 6 {
			f.TCPState = 3
		}
		c.Flows = append(c.Flows, f)
	}
	c.Sets = map[string]*host.IPSet{"admins": {Type: "hash:net", Prefixes: []host.IPSetEntry{{Prefix: netip.MustParsePrefix("198.51.100.64/28")}, {Prefix: netip.MustParsePrefix("203.0.113.9/32")}}}}
	c.Total = int64(len(c.Flows))
	s.Connections = c
	return s
}

// TestSuggestedBlocks: how wide a block is, kind by kind.
func TestSuggestedBlocks(t *testing.T) {
	const in, out, established = "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT\n", "-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT\n", "-A OUTPUT -m state --state ESTABLISHED -j ACCEPT\n"
	icmp := "icmp 192.0.2.9:0 192.0.2.1:0"
	many := func(format string, n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf(format, i+1))
		}
		return list
	}
	for _, tt := range []struct {
		name  string
		rules string
		flows []string
		want  []string // blocks beside that for ICMP, by rules of CTPLAN-INPUT and CTPLAN-FORWARD
	}{
		{"a port that is open to the world", in + out + "-A INPUT -p tcp -m tcp --dport 443 -m state --state NEW -j ACCEPT\n", many("tcp 198.51.100.%d:5000 192.0.2.1:443", 3),
			[]string{"-p tcp -m tcp --dport 443 -m comment --comment tcp-443-in -j ACCEPT"}},
		{"a port that is open to a network, of which one address is connected", in + out + "-A INPUT -s 10.0.0.0/8 -j office\n-A office -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\n", []string{"tcp 10.0.0.9:5000 10.0.0.1:22"},
			[]string{"-s 10.0.0.0/8 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT"}},
		{"a port that is open on one interface", in + out + "-A INPUT -i eth1 -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\n", []string{"tcp 10.0.0.9:5000 10.0.0.1:22"},
			[]string{"-i eth1 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT"}},
		{"neighbouring ports, and others", in + out + "-A INPUT -p tcp -m state --state NEW -j ACCEPT\n", []string{"tcp 198.51.100.7:5000 192.0.2.1:80", "tcp 198.51.100.7:5000 192.0.2.1:81", "tcp 198.51.100.7:5000 192.0.2.1:443"},
			[]string{"-p tcp -m multiport --dports 80:81,443 -m comment --comment tcp-in -j ACCEPT"}},
		{"what is open where nobody may open another", in + out, []string{"tcp 198.51.100.7:5000 192.0.2.1:8080", "tcp 0.0.0.0:8080"},
			[]string{"-s 198.51.100.7/32 -p tcp -m tcp --dport 8080 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-8080-in -j ACCEPT"}},
		{"a few servers", in + out, many("tcp 192.0.2.1:33000 198.51.100.%d:443", 3),
			[]string{"-s 198.51.100.1/32 -p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-443-out -j ACCEPT", "-s 198.51.100.2/31 -p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-443-out -j ACCEPT"}},
		{"many servers", in + out, many("tcp 192.0.2.1:33000 198.51.100.%d:443", 9),
			[]string{"-p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-443-out -j ACCEPT"}},
		{"many servers of the one network that may be called", in + established + "-A OUTPUT -d 198.51.100.0/24 -m state --state NEW -j ACCEPT\n", many("tcp 192.0.2.1:33000 198.51.100.%d:443", 9),
			[]string{"-s 198.51.100.0/24 -p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-443-out -j ACCEPT"}},
		{"a UDP client stays tracked: its answers show no state", in + out, []string{"udp 192.0.2.1:33000 198.51.100.7:53", "udp 0.0.0.0:40000"}, nil},
		{"a UDP client whose answers everybody may send keeps to its own ports, less those that are shut", in + out + "-A INPUT -p udp -m multiport --dports 30000:39999,40001:65535 -m state --state NEW -j ACCEPT\n", []string{"udp 192.0.2.1:33000 198.51.100.7:53", "udp 0.0.0.0:40000"},
			[]string{"-s 198.51.100.7/32 -p udp -m udp --sport 53 -m multiport --dports 32768:39999,40001:60999 -m comment --comment udp-53-out -j ACCEPT"}},
		{"a UDP server that is picked up the wrong way round", in + out + "-A INPUT -p udp -m udp --dport 53 -m state --state NEW -j ACCEPT\n", []string{"udp 192.0.2.1:53 198.51.100.7:40000", "udp 192.0.2.1:53"},
			[]string{"-p udp -m udp --dport 53 -m comment --comment udp-53-in -j ACCEPT"}},
		{"a service with no connection", in + out + "-A INPUT -p tcp -m tcp --dport 25 -m state --state NEW -m limit --limit 5/sec -j ACCEPT\n", []string{"tcp 0.0.0.0:25"},
			[]string{"-p tcp -m tcp --dport 25 -m comment --comment tcp-25-in -j ACCEPT"}},
		{"a service for a range of addresses", in + out + "-A INPUT -p tcp -m tcp --dport 22 -m iprange --src-range 203.0.113.8-203.0.113.19 -m state --state NEW -j ACCEPT\n", []string{"tcp 0.0.0.0:22"},
			[]string{"-s 203.0.113.8/29 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT", "-s 203.0.113.16/30 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT"}},
		{"a service for the members of a set", in + out + "-A INPUT -p tcp -m tcp --dport 22 -m set --match-set admins src -m state --state NEW -j ACCEPT\n", []string{"tcp 0.0.0.0:22"},
			[]string{"-s 198.51.100.64/28 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT", "-s 203.0.113.9/32 -p tcp -m tcp --dport 22 -m comment --comment tcp-22-in -j ACCEPT"}},
		{"a service on the second address of an interface", in + out + "-A INPUT -d 192.0.2.2/32 -p tcp -m tcp --dport 443 -m state --state NEW -j ACCEPT\n", []string{"tcp 0.0.0.0:443"},
			[]string{"-d 192.0.2.2/32 -p tcp -m tcp --dport 443 -m comment --comment tcp-443-in -j ACCEPT"}},
		{"what is sent to a group", in + out + "-A INPUT -p vrrp -m state --state NEW -j ACCEPT\n-A INPUT -p udp -m udp --dport 67 -m state --state NEW -j ACCEPT\n", []string{"vrrp 192.0.2.9:0 224.0.0.18:0 silent", "udp 0.0.0.0:68 255.255.255.255:67 silent"},
			[]string{"-p udp -m udp --dport 67 -m comment --comment udp-67-in -j ACCEPT", "-p vrrp -m comment --comment vrrp-in -j ACCEPT"}},
		{"a rate for everybody, with words in its comment", in + out + "-A INPUT -p tcp -m tcp --dport 25 -m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name smtp -m comment --comment \"-m set or -m owner\" -j ACCEPT\n", []string{"tcp 0.0.0.0:25"},
			[]string{"-p tcp -m tcp --dport 25 -m comment --comment tcp-25-in -j ACCEPT"}},
		{"a rate for special packets", in + out + "-A INPUT -p tcp -m tcp --dport 25 --tcp-option 8 -m state --state NEW -m limit --limit 5/sec -j ACCEPT\n", []string{"tcp 0.0.0.0:25"}, nil},
		{"a service that drops those who come too often", in + out + "-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 4 --name SSH --mask 255.255.255.255 --rsource -j DROP\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\n",
			[]string{"tcp 0.0.0.0:22"}, nil}, // its rules are translated
		{"a service behind a chain that drops some", in + out + "-A INPUT -m string --string attack --algo bm -j office\n-A office -j DROP\n-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT\n", []string{"tcp 198.51.100.7:5000 192.0.2.1:22", "tcp 0.0.0.0:22"},
			nil},
		{"a service of everybody, less networks that nobody has", "-A INPUT -s 192.0.0.0/24 -j DROP\n-A INPUT -s 198.51.100.0/24 -j DROP\n-A INPUT -s 203.0.113.0/24 -j DROP\n" + in + out + "-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -j ACCEPT\n", []string{"tcp 0.0.0.0:80"},
			[]string{"-p tcp -m tcp --dport 80 -m comment --comment tcp-80-in -j ACCEPT"}},
		{"a service that is closed today stays closed", in + out, []string{"tcp 0.0.0.0:25"}, nil},
		{"passive FTP", in + out + "-A INPUT -p tcp -m tcp --dport 21 -m state --state NEW -j ACCEPT\n", []string{"tcp 198.51.100.7:5000 192.0.2.1:21", "tcp 198.51.100.7:5001 192.0.2.1:45000 data", "tcp 0.0.0.0:21"},
			[]string{"-p tcp -m tcp --dport 21 -m comment --comment tcp-21-in -j ACCEPT", "-p tcp -m tcp --dport 32768:60999 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment ftp-data-in -j ACCEPT",
				"-p tcp -m tcp --sport 1024:65535 --dport 20 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment ftp-data-out -j ACCEPT"}},
		{"routed, from one network", "-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -s 10.0.0.0/24 -m state --state NEW -j ACCEPT\n" + in + out, []string{"tcp 10.0.0.9:5000 198.51.100.7:443"},
			[]string{"-s 10.0.0.0/24 -d 198.51.100.7/32 -p tcp -m tcp --dport 443 -m comment --comment tcp-443-forward -j ACCEPT",
				"-s 198.51.100.7/32 -d 10.0.0.0/24 -p tcp -m tcp --sport 443 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment tcp-443-forward -j ACCEPT"}},
		{"what is accepted without state needs nothing", in + out + "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n-A OUTPUT -p tcp -m tcp --sport 22 -j ACCEPT\n", []string{"tcp 198.51.100.7:5000 192.0.2.1:22"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := tt.rules + "-A INPUT -p icmp -j ACCEPT\n-A FORWARD -p icmp -j ACCEPT\n"
			s := connected(t, rules, append(tt.flows, icmp)...)
			s.Rules[0].Text = strings.Replace(s.Rules[0].Text, ":OUTPUT DROP [0:0]\n", ":OUTPUT DROP [0:0]\n:office - [0:0]\n", 1)
			got := checkSuggestion(t, s, declared.Notrack)
			if got.Blocked != (tt.name == "passive FTP") { // its data ports are shut today
				t.Errorf("blocked: %q", got.Remains)
			}
			var have []string
			for _, c := range iptables.Render(got.Desired, host.Live{}) {
				for _, r := range c.Rules {
					if c.Family == host.IPv4 && (c.Hook == "INPUT" || c.Hook == "FORWARD") && !strings.Contains(r.Text, "--comment icmp -j") {
						have = append(have, r.Text)
					}
				}
			}
			if strings.Join(have, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

// TestSuggestedMode: which mode fits, and what rules it out.
func TestSuggestedMode(t *testing.T) {
	const plain = "-A INPUT -m state --state ESTABLISHED -j ACCEPT\n"
	propose := func(s *snapshot.Snapshot, mode declared.Mode) (suggest.Suggestion, error) {
		live, err := s.Live()
		if err != nil {
			t.Fatal(err)
		}
		return suggest.Suggest(live, suggest.Options{Mode: mode, Render: render})
	}
	if got, err := propose(connected(t, plain), ""); err != nil || got.Desired.Mode != declared.Disabled {
		t.Errorf("nothing speaks against disabled: %q, %v", got.Desired.Mode, err)
	}
	held := connected(t, plain)
	held.Conntrack.Kind = host.ConntrackModule
	held.Modules = []host.Module{{Name: "nf_conntrack", Refs: 1, By: []string{"openvswitch"}}, {Name: "openvswitch", Refs: 1}}
	if got, err := propose(held, ""); err != nil || got.Desired.Mode != declared.Notrack || !strings.Contains(got.Notes[declared.NoteHead][0], "openvswitch") {
		t.Errorf("a module that is held: %q, %v, %q", got.Desired.Mode, err, got.Notes[declared.NoteHead])
	}
	nat := connected(t, plain)
	nat.Rules[1].Text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
	if got, err := propose(nat, ""); err != nil || got.Desired.Mode != declared.Tuned {
		t.Errorf("nat: %q, %v", got.Desired.Mode, err)
	}
	var refused *suggest.NATError
	if _, err := propose(nat, declared.Disabled); !errors.As(err, &refused) || refused.Total != 1 {
		t.Errorf("disabled with nat: %v", err)
	}
	nat.Connections = nil
	if _, err := propose(nat, declared.Tuned); err != nil {
		t.Errorf("tuned needs no connections: %v", err)
	}
	if _, err := propose(nat, ""); !errors.Is(err, suggest.ErrNoConnections) {
		t.Errorf("without connections: %v", err)
	}
}

// TestSuggestedSizes: the arithmetic, and that it ends where memory does.
func TestSuggestedSizes(t *testing.T) {
	for _, tt := range []struct {
		name          string
		conntrack     host.Conntrack
		memory        int64
		kernel        string
		readings      []suggest.Reading
		max, hashsize int64
	}{
		{"twice what is tracked", host.Conntrack{Count: 100000, Max: 200000}, 64 << 30, "4.19.0", nil, 262144, 65536},
		{"four times a table that was full", host.Conntrack{Count: 100, Max: 262144, Drops: 1}, 64 << 30, "4.19.0", nil, 1048576, 262144},
		{"a bucket an entry", host.Conntrack{Count: 400000, Max: 262144}, 64 << 30, "6.1.0", nil, 1048576 * 2, 1048576 * 2},
		{"no less than today", host.Conntrack{Count: 5, Max: 500000}, 64 << 30, "4.19.0", nil, 500000, 125000},
		{"no less than the kernel's own", host.Conntrack{Count: 5, Max: 1000}, 64 << 30, "6.1.0", nil, 262144, 262144},
		{"an hour of growth", host.Conntrack{Count: 100, Max: 1000}, 64 << 30, "4.19.0", []suggest.Reading{{Count: 100}, {After: 10 * time.Second, Count: 2100}}, 2097152, 524288},
		{"a quarter of the memory", host.Conntrack{Count: 400000, Max: 400000}, 256 << 20, "4.19.0", nil, 173856, 43464},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := plainHost("h", "")
			tt.conntrack.Kind, tt.conntrack.Loaded, tt.conntrack.InitialNetns = host.ConntrackBuiltin, true, true
			s.Conntrack, s.Host.Memory, s.Host.Kernel = tt.conntrack, tt.memory, tt.kernel
			live, err := s.Live()
			if err != nil {
				t.Fatal(err)
			}
			got, err := suggest.Suggest(live, suggest.Options{Mode: declared.Tuned, Render: render, Readings: tt.readings})
			if err != nil {
				t.Fatal(err)
			}
			if got.Desired.Max.Value != tt.max || got.Desired.Hashsize.Value != tt.hashsize {
				t.Errorf("max %d, hashsize %d, want %d, %d\n%q", got.Desired.Max.Value, got.Desired.Hashsize.Value, tt.max, tt.hashsize, got.Notes["max"])
			}
			if bytes := sizes.TableBytes(got.Desired.Max.Value, got.Desired.Hashsize.Value, 8); bytes > tt.memory/4 {
				t.Errorf("%d bytes of %d", bytes, tt.memory)
			}
			reload(t, got.Declaration, s)
		})
	}
}
