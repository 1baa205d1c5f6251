package internal_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/suggest"
	"github.com/ctplan/ctplan/providers/iptables"
	"github.com/ctplan/ctplan/providers/nft"
	"github.com/ctplan/ctplan/schema"
)

// hostile are strings that want out of where they stand.
var hostile = []string{"web-1", "a b", "x\ny = 1", `" } conntrack "z" { #`, "${host.name}", "%{ if true }", "*", "[a-z]", `\`, "Ünïcode", "\x1b[31m", "a.b.", "é", strings.Repeat("l", 300), "\u202e"}

// randomHost is a firewall as people write them, on two interfaces, with
// connections that may or may not fit it.
func randomHost(r *rand.Rand) *snapshot.Snapshot {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	s := &snapshot.Snapshot{FormatVersion: planner.FormatVersion, Host: host.Host{
		Name: hostile[r.IntN(len(hostile))], Kernel: pick("6.1.0-30-amd64", "5.10.0-32-amd64", "3.10.0-1160.el7.x86_64", "odd"), CPUs: 4, PageSize: 4096, PointerSize: 8,
		Memory: []int64{0, 64 << 20, 512 << 20, 2 << 30, 64 << 30}[r.IntN(5)],
	}}
	s.Conntrack = host.Conntrack{Kind: host.ConntrackBuiltin, Loaded: true, InitialNetns: true, Hashsize: 512, Max: 1 << r.IntN(22), Count: int64(r.IntN(1 << 20))}
	s.Conntrack.Drops = int64(r.IntN(2))
	s.Sysctls = map[string]host.Sysctl{"net.netfilter.nf_conntrack_max": {Value: fmt.Sprint(s.Conntrack.Max), Writable: true}}
	c := &host.Connections{Sockets: []host.Socket{}, Addresses: []host.Address{}, Bridged: r.IntN(8) == 0}
	s.Connections = c
	c.Anonymised = r.IntN(6) == 0
	if r.IntN(2) == 0 {
		c.Ephemeral = host.PortRange{From: 15000, To: 61000}
	}
	lan, wan := "eth1", pick("eth0", "wan+", "a:b", "ppp0")
	for _, f := range host.Families {
		own, peers := "192.0.2.1/24", []string{"192.0.2.9", "198.51.100.7", "198.51.100.8", "8.8.8.8", "10.0.0.9"}
		inner, zero := "10.0.0.1/8", "0.0.0.0/0"
		if f == host.IPv6 {
			own, peers = "2001:db8::1/64", []string{"2001:db8::9", "2001:db8:5::7", "2620:fe::fe", "fd00::9"}
			inner, zero = "fd00::1/64", "::/0"
		}
		c.Addresses = append(c.Addresses, host.Address{Interface: wan, Prefix: netip.MustParsePrefix(own)}, host.Address{Interface: lan, Prefix: netip.MustParsePrefix(inner)})
		c.Routes = append(c.Routes, host.Route{Prefix: netip.MustParsePrefix(own).Masked(), Interface: wan}, host.Route{Prefix: netip.MustParsePrefix(inner).Masked(), Interface: lan}, host.Route{Prefix: netip.MustParsePrefix(zero), Interface: wan})
		s.Rules = append(s.Rules, snapshot.Rules{Family: f, Backend: host.NFT, Primary: true, Version: "1.8.9", Text: firewall(r, f, wan, lan, netip.MustParsePrefix(inner).Masked().String(), peers)})
		addr := func(p string) netip.Addr { return netip.MustParsePrefix(p).Addr() }
		us := []netip.Addr{addr(own), addr(inner)}
		for range r.IntN(40) {
			proto := []uint8{6, 6, 6, 17, 17, 1, 47, 132}[r.IntN(8)]
			if proto == 1 && f == host.IPv6 {
				proto = 58
			}
			port := []uint16{21, 22, 53, 80, 443, 8080, 50051, 123}[r.IntN(8)]
			a, b := netip.MustParseAddr(peers[r.IntN(len(peers))]), us[r.IntN(2)]
			switch r.IntN(4) {
			case 0:
				a, b = b, a
			case 1:
				a, b = netip.MustParseAddr(peers[len(peers)-1]), netip.MustParseAddr(peers[r.IntN(len(peers)-1)])
			}
			flow := host.Flow{Protocol: proto, Status: host.StatusSeenReply | host.StatusAssured | host.StatusConfirmed, TCPState: 3}
			flow.Orig = host.Tuple{Src: a, Dst: b}
			if proto != 1 && proto != 58 && proto != 47 {
				flow.Orig.SrcPort, flow.Orig.DstPort = uint16(1024+r.IntN(60000)), port
				if r.IntN(8) == 0 {
					flow.Orig.SrcPort, flow.Orig.DstPort = port, uint16(1024+r.IntN(60000)) // picked up in the middle
				}
				if r.IntN(8) == 0 {
					flow.Status |= host.StatusExpected
					flow.Orig.DstPort = uint16(1024 + r.IntN(60000))
					if r.IntN(2) == 0 {
						flow.Orig.SrcPort = 20
					}
				}
			}
			if proto != 6 {
				flow.TCPState = 0
			}
			flow.Reply = host.Tuple{Src: flow.Orig.Dst, Dst: flow.Orig.Src, SrcPort: flow.Orig.DstPort, DstPort: flow.Orig.SrcPort}
			c.Flows = append(c.Flows, flow)
			if r.IntN(3) == 0 {
				c.Sockets = append(c.Sockets, host.Socket{Protocol: 6, Local: netip.AddrPortFrom(us[0], port), Remote: netip.AddrPortFrom(netip.MustParseAddr(peers[0]), uint16(1024+r.IntN(60000)))})
			}
		}
		for _, port := range []uint16{22, 53, 443, 5353, 40000}[:r.IntN(6)] {
			c.Sockets = append(c.Sockets, host.Socket{Protocol: []uint8{6, 17}[r.IntN(2)], Local: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Listening: true, Dual: true})
		}
	}
	c.Total = int64(len(c.Flows))
	return s
}

// firewall is a ruleset on connection state.
func firewall(r *rand.Rand, f host.Family, wan, lan, inner string, peers []string) string {
	maybe := func(text string) string {
		if r.IntN(2) == 0 {
			return ""
		}
		return text + "\n"
	}
	policy := func() string { return []string{"ACCEPT", "DROP", "DROP"}[r.IntN(3)] }
	icmp := "icmp"
	if f == host.IPv6 {
		icmp = "ipv6-icmp"
	}
	remark := ` -m comment --comment "` + strings.NewReplacer(`\`, ``, `"`, ``, "\n", "").Replace(hostile[r.IntN(len(hostile)-3)]) + `"`
	if f == host.IPv6 && r.IntN(4) == 0 {
		return "" // no table at all
	}
	var b strings.Builder
	b.WriteString("*filter\n:INPUT " + policy() + " [0:0]\n:FORWARD " + policy() + " [0:0]\n:OUTPUT " + policy() + " [0:0]\n:office - [0:0]\n")
	b.WriteString(maybe("-A INPUT -i lo -j ACCEPT") + maybe("-A INPUT -s "+peers[1]+" -j DROP"))
	b.WriteString(maybe("-A INPUT -m state --state RELATED,ESTABLISHED"+remark+" -j ACCEPT") + maybe("-A INPUT -m conntrack --ctstate INVALID -j DROP"))
	b.WriteString(maybe("-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT") + maybe("-A INPUT -s "+inner+" -j office") + maybe("-A office -p tcp -m multiport --dports 80,443,8080 -m state --state NEW -j ACCEPT"))
	b.WriteString(maybe("-A INPUT -s "+peers[2]+" -j REJECT") + maybe("-A INPUT -i "+lan+" -p udp -m udp --dport 53 -j ACCEPT") + maybe("-A INPUT -p "+icmp+" -j ACCEPT"))
	b.WriteString(maybe("-A INPUT -p tcp -m tcp --dport 443 -m state --state NEW -m limit --limit 5/sec -j ACCEPT") + maybe("-A INPUT -p tcp -m tcp --dport 21 -m state --state NEW -j ACCEPT"))
	b.WriteString(maybe("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT") + maybe("-A FORWARD -i "+lan+" -m state --state NEW -j ACCEPT") + maybe("-A FORWARD -s "+inner+" -p tcp -j ACCEPT") + maybe("-A FORWARD -j DROP"))
	b.WriteString(maybe("-A OUTPUT -o lo -j ACCEPT") + maybe("-A OUTPUT -m state --state NEW,RELATED,ESTABLISHED -j ACCEPT") + maybe("-A OUTPUT -m state --state ESTABLISHED -j ACCEPT") + maybe("-A OUTPUT -j REJECT"))
	b.WriteString("COMMIT\n")
	if r.IntN(4) == 0 {
		b.WriteString("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" + maybe("-A PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp") + maybe("-A PREROUTING -p udp -j CT --notrack") + "COMMIT\n")
	}
	return b.String()
}

// checkSuggestion holds what is written against what was meant, and its plan
// against what was promised.
func checkSuggestion(t *testing.T, s *snapshot.Snapshot, mode declared.Mode) suggest.Suggestion {
	t.Helper()
	live, err := s.Live()
	if err != nil {
		t.Fatal(err)
	}
	got, err := suggest.Suggest(live, suggest.Options{Mode: mode, Render: render})
	if err != nil {
		t.Fatal(err)
	}
	hcl, desired := reload(t, got.Declaration, s)
	want := got.Desired
	want.Chains, want.Native = nil, nil
	sameDesired(t, hcl, want, desired)
	render(&desired, live)
	plan := planner.Diff(desired, live)
	if plan.Blocked() != got.Blocked {
		t.Fatalf("blocked: %v, suggested as %v\n%s\n%+v", plan.Blocked(), got.Blocked, hcl, plan.Blocks)
	}
	for _, b := range plan.Blocks {
		if b.Risk == declared.RiskMemory {
			t.Fatalf("suggested more than the memory bears: %s\n%s", b.Why, hcl)
		}
	}
	if plan.Impact != nil && len(plan.Impact.Exposed) > 0 && !slices.ContainsFunc(plan.Blocks, func(b change.Block) bool { return b.Risk == declared.RiskExposed }) {
		t.Fatalf("opens what is refused today: %+v\n%s\n%s\n%s", plan.Impact.Exposed, hcl, s.Rules[0].Text, s.Rules[1].Text)
	}
	if plan.Impact != nil && plan.Impact.Lost > 0 && !got.Blocked {
		t.Fatalf("loses %d connections in silence\n%s", plan.Impact.Lost, hcl)
	}
	if again, err := suggest.Suggest(live, suggest.Options{Mode: mode, Render: render}); err != nil || !reflect.DeepEqual(again, got) {
		t.Fatalf("not the same twice: %v\n%s", err, cmp.Diff(string(schema.Write(got.Declaration)), string(schema.Write(again.Declaration))))
	}
	return got
}

// reload writes a declaration and loads it as plan would.
func reload(t *testing.T, d declared.Declaration, s *snapshot.Snapshot) (string, declared.Desired) {
	t.Helper()
	hcl := schema.Write(d)
	src := schema.Source{Name: "host.hcl", Content: hcl}
	formatted, diags := schema.Format(src)
	if diags.HasErrors() {
		t.Fatalf("%v\n%s", diags.Err(), hcl)
	}
	if !bytes.Equal(formatted, hcl) {
		t.Fatalf("not laid out:\n%s", cmp.Diff(string(hcl), string(formatted)))
	}
	for _, r := range string(hcl) {
		if r != '\n' && r < ' ' || r == 0x7f || r == '\u202e' || r == '\u2028' {
			t.Fatalf("%q in\n%s", r, hcl)
		}
	}
	if _, diags := schema.Load([]schema.Source{src}, schema.Vars{}, nil); len(diags.List()) > 0 {
		t.Fatalf("validate says %v\n%s", diags.List(), hcl)
	}
	config, diags := schema.Load([]schema.Source{src}, schema.Vars{}, &schema.Facts{Host: s.Host, Conntrack: s.Conntrack})
	if len(diags.List()) > 0 {
		t.Fatalf("%v\n%s", diags.List(), hcl)
	}
	desired, diags := config.For(s.Host.Name)
	if len(diags.List()) > 0 || desired.Mode == declared.Unmanaged {
		t.Fatalf("for %q: %v, mode %q\n%s", s.Host.Name, diags.List(), desired.Mode, hcl)
	}
	return string(hcl), desired
}

func sameDesired(t *testing.T, hcl string, want, got declared.Desired) {
	t.Helper()
	opts := []cmp.Option{cmpopts.IgnoreTypes(declared.Pos{}), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, got, opts...); diff != "" {
		t.Fatalf("written and loaded again (-want +got):\n%s\n%s", diff, hcl)
	}
}

var suggestModes = []declared.Mode{declared.Unmanaged, declared.Disabled, declared.Notrack, declared.Tuned}

// TestSuggest: whatever the firewall and its connections, what is suggested is
// valid, and its plan loses nothing and opens nothing. Where a mode that is asked
// for cannot have both, it is blocked; left to itself, suggest finds one that can.
func TestSuggest(t *testing.T) {
	lost, flows := 0, 0
	blocked, counts := map[declared.Mode]int{}, map[declared.Mode]int{}
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 5))
		s := randomHost(r)
		mode := suggestModes[r.IntN(4)]
		got := checkSuggestion(t, s, mode)
		counts[got.Desired.Mode]++
		if got.Blocked {
			blocked[mode]++
		}
		if got.Blocked && (mode == declared.Unmanaged || mode == declared.Tuned) {
			t.Errorf("seed %d: %q\n%s\n%s", seed, got.Remains, s.Rules[0].Text, s.Rules[1].Text)
		}
		// Without the accept blocks there is something to lose, or this shows nothing.
		bare := got.Desired
		bare.Accept = nil
		render(&bare, host.Live{})
		live, _ := s.Live()
		if p := planner.Diff(bare, live); p.Impact != nil && p.Impact.Lost > 0 {
			lost++
			flows += int(p.Impact.Lost)
		}
	}
	t.Logf("proposed: %v; blocked where the mode was asked for: %v", counts, blocked)
	if blocked[declared.Notrack] > 15 {
		t.Errorf("%d proposals for notrack are blocked", blocked[declared.Notrack])
	}
	t.Logf("%d of 120 hosts would have lost %d connections", lost, flows)
	if lost < 40 {
		t.Errorf("only %d hosts had anything to lose", lost)
	}
}

// TestSuggestKeepsWork: what only tracking can do is not thrown away by what is
// suggested, and the plan for that is not blocked.
func TestSuggestKeepsWork(t *testing.T) {
	for i, rule := range []string{
		"-A INPUT -p tcp -m tcp --dport 80 -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --mss 1460",
		"-A INPUT -p tcp -m tcp --dport 80 -m connlimit --connlimit-above 20 --connlimit-mask 32 --connlimit-saddr -j REJECT --reject-with icmp-port-unreachable",
		"-A FORWARD -m connbytes --connbytes 1000000 --connbytes-mode bytes --connbytes-dir both -j DROP",
		"-A OUTPUT -m connmark --mark 0x2 -j ACCEPT",
		"-A INPUT -p udp -j CONNMARK --set-xmark 0x1/0xffffffff",
	} {
		for seed := range uint64(12) {
			s := randomHost(rand.New(rand.NewPCG(seed, uint64(i))))
			s.Rules[0].Text = strings.Replace(s.Rules[0].Text, "COMMIT", rule+"\nCOMMIT", 1)
			got := checkSuggestion(t, s, declared.Unmanaged)
			live, err := s.Live()
			if err != nil {
				t.Fatal(err)
			}
			if got.Blocked {
				t.Errorf("seed %d, %s: %q", seed, rule, got.Remains)
			}
			for _, c := range planner.Diff(got.Desired, live).Changes {
				if c, ok := c.(*change.RulesChange); ok && strings.Contains(strings.Join(c.Before, "\n"), rule) && !strings.Contains(strings.Join(c.After, "\n"), rule) {
					t.Errorf("seed %d: what is suggested, mode %s, takes away %s", seed, got.Desired.Mode, rule)
				}
			}
		}
	}
}

func FuzzSuggest(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint8(seed), "-A INPUT -j ACCEPT", "host")
	}
	f.Add(uint64(1), uint8(1), "-A INPUT -m state --state NEW -m comment --comment \"x } y\" -j DROP", "a\"b")
	f.Fuzz(func(t *testing.T, seed uint64, mode uint8, rule, name string) {
		s := randomHost(rand.New(rand.NewPCG(seed, 5)))
		if strings.ContainsAny(rule, "\n\r\x00") || strings.ContainsAny(name, "\x00\n/") || name == "" || len(rule) > 200 {
			return
		}
		s.Host.Name = strings.ToValidUTF8(name, "?")
		s.Rules[0].Text = strings.Replace(s.Rules[0].Text, "COMMIT", rule+"\nCOMMIT", 1)
		live, err := s.Live()
		if err != nil {
			return
		}
		if _, err := suggest.Suggest(live, suggest.Options{Mode: suggestModes[mode%4], Render: render}); err != nil {
			return
		}
		checkSuggestion(t, s, suggestModes[mode%4])
	})
}

// TestSuggestAnonymised: from a snapshot that hides addresses comes a
// suggestion that shows none of them, and loses as little.
func TestSuggestAnonymised(t *testing.T) {
	for seed := range uint64(25) {
		s := randomHost(rand.New(rand.NewPCG(seed, 6)))
		s.Connections.Anonymised = false
		for _, mode := range []declared.Mode{declared.Unmanaged, declared.Disabled, declared.Notrack} {
			hidden := *s
			hidden.Anonymise(nil)
			got := checkSuggestion(t, &hidden, mode)
			text := string(schema.Write(got.Declaration)) + strings.Join(got.Remains, "\n")
			if strings.Contains(text, "8.8.8.8") {
				t.Fatalf("seed %d shows an address that nothing names:\n%s", seed, text)
			}
			if got.Desired.Mode != declared.Tuned && !strings.Contains(text, "stand-ins") {
				t.Fatalf("seed %d does not say that addresses are stand-ins:\n%s", seed, text)
			}
			if got.Blocked && mode == declared.Unmanaged {
				t.Errorf("seed %d: %q", seed, got.Remains)
			}
		}
	}
}

// render turns what is declared into rules.
func render(d *declared.Desired, l host.Live) {
	d.Chains, d.Native = iptables.Render(*d, l), nft.Render(*d)
}
