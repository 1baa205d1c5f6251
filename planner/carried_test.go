package planner

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// untrackedNow are rules that keep all of TCP out of tracking, beside others on
// states: who bans somebody does so for what is untracked too.
const untrackedNow = "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:CTPLAN-PREROUTING -\n:CTPLAN-OUTPUT -\n-A PREROUTING -j CTPLAN-PREROUTING\n-A OUTPUT -j CTPLAN-OUTPUT\n-A CTPLAN-PREROUTING -p tcp -j CT --notrack\n-A CTPLAN-OUTPUT -p tcp -j CT --notrack\nCOMMIT\n" +
	"*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT -s 10.0.0.66 -j DROP\n-A INPUT -s 10.0.0.77 -m limit --limit 1/sec -j ACCEPT\n-A INPUT -s 10.0.0.77 -j DROP\n-A INPUT -p tcp -m state --state UNTRACKED -j ACCEPT\n-A INPUT -p tcp --syn -m state --state NEW -j ACCEPT\nCOMMIT\n"

func openSocket(local, remote string) host.Socket {
	return host.Socket{Protocol: protocol.TCP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

func tracking() declared.Desired {
	d := untrackTCP(nil)
	d.Chains, d.StatefulRules = nil, declared.RefuseStateful
	return d
}

// TestCarried: of the connections that only sockets know, those that today's rules
// let through for sure are put in and kept; who is banned is not, nor is anything
// for which there is no room, and without carrying over nobody knows.
func TestCarried(t *testing.T) {
	sockets := []host.Socket{
		{Protocol: protocol.TCP, Local: netip.MustParseAddrPort("0.0.0.0:22"), Listening: true},
		openSocket("10.0.0.1:22", "10.0.0.9:5000"),
		openSocket("10.0.0.1:40000", "10.0.0.8:443"),
		openSocket("10.0.0.1:22", "10.0.0.66:5000"),
		openSocket("10.0.0.1:22", "10.0.0.77:5000"),
	}
	d := tracking()
	p := impactPlan(t, d, untrackedNow, host.Connections{Sockets: sockets})
	if got := groupsOf(p); p.Impact.Carried != 2 || !slices.Contains(got, "kept tcp/22 in 1") || !slices.Contains(got, "kept tcp/443 out 1") {
		t.Errorf("%d carried over: %q", p.Impact.Carried, got)
	}
	d.NoCarry = true
	if p := impactPlan(t, d, untrackedNow, host.Connections{Sockets: sockets}); p.Impact.Carried != 0 || p.Impact.Unknown == 0 {
		t.Errorf("carried over though nobody shall be: %+v", p.Impact)
	}
	d.NoCarry = false

	rules := carrying(t, d, untrackedNow, sockets)
	put := func(room int64) (ports []uint16, full int64) {
		o := carry.NewOver(rules, sockets, room)
		if err := o.Rest(func(f *host.Flow) error {
			ports = append(ports, f.Orig.DstPort)
			if f.Reply.Src != f.Orig.Dst || f.Reply.DstPort != f.Orig.SrcPort {
				t.Errorf("the reply is not the original turned around: %+v", f)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return ports, o.Full
	}
	if got, full := put(100); !slices.Equal(got, []uint16{22, 443}) || full != 0 {
		t.Errorf("put in: %v, %d without room", got, full)
	}
	if got, full := put(1); !slices.Equal(got, []uint16{22}) || full != 1 {
		t.Errorf("put in where one fits: %v, %d without room", got, full)
	}

	saved := func(s string, left uint32) uint32 {
		f := tracked(t, s)
		timeout, ok := carry.NewOver(rules, sockets, 100).Saved(&f, left)
		if !ok {
			return 0
		}
		return timeout
	}
	for s, want := range map[string]uint32{
		"tcp 10.0.0.9:5000 10.0.0.1:22":  carry.Short, // its socket is open
		"tcp 10.0.0.9:5001 10.0.0.1:22":  0,           // it has none
		"tcp 10.0.0.66:5000 10.0.0.1:22": 0,           // banned since
		"tcp 10.0.0.9:5001 10.0.1.7:22":  700,         // routed
	} {
		if got := saved(s, 700); got != want {
			t.Errorf("saved %s: put in for %d s, want %d", s, got, want)
		}
	}
}

func carrying(t *testing.T, d declared.Desired, rules string, sockets []host.Socket) *carry.Rules {
	t.Helper()
	c := host.Connections{Sockets: sockets}
	l := testHost(parseLines(t, host.IPv4, rules))
	p := impactPlan(t, d, rules, c)
	c.Addresses = []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}, {Interface: "eth1", Prefix: netip.MustParsePrefix("10.0.1.1/24")}}
	c.Routes = []host.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}}
	l.Connections = &c
	return Carrying(d, l, change.StepsOf(p.Changes), nil)
}

// TestTakenOut: entries leave by what the rules say of both ways, for sure; never
// by the port alone.
func TestTakenOut(t *testing.T) {
	d := untrackTCP(map[string][]string{"INPUT": {"-p tcp -j ACCEPT"}})
	for i := range d.Chains {
		if d.Chains[i].Table == "raw" {
			words := []string{"-s", "10.0.0.0/24", "-p", "tcp", "--dport", "22", "-j", "CT", "--notrack"}
			if d.Chains[i].Hook == "OUTPUT" {
				words = []string{"-d", "10.0.0.0/24", "-p", "tcp", "--sport", "22", "-j", "CT", "--notrack"}
			}
			d.Chains[i].Rules[0].Words, d.Chains[i].Rules[0].Text = words, strings.Join(words, " ")
		}
	}
	rules := carrying(t, d, statefulInput, nil)
	for s, want := range map[string]bool{
		"tcp 10.0.0.9:5000 10.0.0.1:22":  true,
		"tcp 10.9.0.9:5000 10.0.0.1:22":  false, // of others
		"tcp 10.0.0.9:5000 10.0.0.1:443": false,
		"tcp 10.0.0.1:5000 10.0.0.9:22":  false, // the host's own, the other way
		"udp 10.0.0.9:5000 10.0.0.1:22":  false,
	} {
		f := tracked(t, s)
		if got := rules.Leaves(&f); got != want {
			t.Errorf("%s leaves: %v", s, got)
		}
		f.Status &^= host.StatusSeenReply | host.StatusAssured
		if got := rules.Leaves(&f); got != want {
			t.Errorf("%s, unanswered, leaves: %v", s, got)
		}
	}
	p := impactPlan(t, d, statefulInput, host.Connections{Flows: []host.Flow{tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22"), tracked(t, "tcp 10.9.0.9:5000 10.0.0.1:22")}})
	if got := p.Impact.Table; got == nil || got.TakenOut != 1 || got.Left != 1 || got.Entries != 2 {
		t.Errorf("told of the table: %+v", got)
	}
}

// TestPickedUp: an entry without an answer that tracking has picked up in the
// middle of a connection is no SYN next.
func TestPickedUp(t *testing.T) {
	const rules = "*filter\n:INPUT DROP\n:OUTPUT ACCEPT\n-A INPUT -p tcp --syn -m state --state NEW -j ACCEPT\nCOMMIT\n"
	d := untrackTCP(map[string][]string{"INPUT": {"-p tcp -j ACCEPT"}})
	for state, want := range map[uint8]string{1: "kept tcp/22 in 1", 3: "gained tcp/22 in 1"} {
		f := tracked(t, "tcp 10.0.0.9:5000 10.0.0.1:22")
		f.Status, f.TCPState = host.StatusConfirmed, state
		if got := groupsOf(impactPlan(t, d, rules, host.Connections{Flows: []host.Flow{f}})); !slices.Equal(got, []string{want}) {
			t.Errorf("state %d: %q, want %q", state, got, want)
		}
	}
}

// TestRoutedIsUnknown: a way back that has routed traffic tracked again says that
// nobody knows of what was opened meanwhile.
func TestRoutedIsUnknown(t *testing.T) {
	for forward, want := range map[string]bool{"ACCEPT": true, "DROP": false} {
		l := testHost(parseLines(t, host.IPv4, strings.Replace(untrackedNow, ":OUTPUT ACCEPT\n-A INPUT -m", ":FORWARD DROP\n:OUTPUT ACCEPT\n-A FORWARD -p tcp -j "+forward+"\n-A INPUT -m", 1)))
		l.Connections = &host.Connections{
			Addresses: []host.Address{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.1/24")}, {Interface: "eth1", Prefix: netip.MustParsePrefix("10.0.1.1/24")}},
			Routes:    []host.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("10.0.1.0/24"), Interface: "eth1"}},
		}
		changes := Diff(tracking(), l).Changes
		p := Plan{Mode: declared.GoingBack, Changes: changes}.Judged(declared.Desired{}, l, change.StepsOf(changes), strings.Fields)
		said := slices.ContainsFunc(p.Warnings, func(w change.Warning) bool { return strings.HasPrefix(w.Text, "routed connections") })
		if said != want {
			t.Errorf("FORWARD %s: said %v, want %v: %+v", forward, said, want, p.Warnings)
		}
	}
}
