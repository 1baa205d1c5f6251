package internal_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/importer"
	"github.com/ctplan/ctplan/planner/xtables"
	"github.com/ctplan/ctplan/schema"
)

// nothing is a host of which nothing is known.
var nothing host.Live

// applied is the snapshot after a plan was carried out on it: tables as the
// planner models them, files as they are written.
func applied(t *testing.T, s *snapshot.Snapshot, d declared.Desired) *snapshot.Snapshot {
	t.Helper()
	live, err := s.For(d.Files, d.InitScripts).Live()
	if err != nil {
		t.Fatal(err)
	}
	out := *s
	out.Connections, live.Connections = nil, nil
	out.Rules, out.Files, out.Sysctls = nil, nil, map[string]host.Sysctl{}
	for k, v := range s.Sysctls {
		out.Sysctls[k] = v
	}
	plan := planner.Diff(d, live)
	if plan.Blocked() {
		t.Fatalf("blocked: %+v", plan.Blocks)
	}
	tables := map[string][]string{}
	files := map[string]host.File{}
	for _, c := range plan.Changes {
		switch c := c.(type) {
		case *change.RulesChange:
			tables[string(c.Family)+c.Table] = c.After
		case *change.FileChange:
			files[c.After.Path] = c.After
		case *change.SysctlChange, *change.HashsizeChange:
			setSize(&out, c)
		case *change.ModuleChange:
			t.Fatalf("a module on a kernel that has it built in: %+v", c)
		}
	}
	for i, r := range s.Rules {
		var text strings.Builder
		names := []string{}
		for _, table := range live.Rulesets[i].Tables {
			names = append(names, table.Name)
		}
		for _, name := range append(names, "filter", "raw") {
			lines, ok := tables[string(r.Family)+name]
			delete(tables, string(r.Family)+name)
			if !ok {
				model := xtables.Model(live.Rulesets[i], name)
				if lines = model.Lines(); !contains(names, name) {
					continue
				}
				names = without(names, name)
			}
			text.WriteString("*" + name + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n")
		}
		r = snapshot.Rules{Family: r.Family, Backend: r.Backend, Primary: r.Primary, Version: r.Version, Text: text.String()}
		out.Rules = append(out.Rules, r)
	}
	for _, f := range s.Files {
		if after, ok := files[f.File.Path]; ok {
			f.File = after
			delete(files, after.Path)
		}
		out.Files = append(out.Files, f)
	}
	for path, f := range files {
		kind := snapshot.KindSysctl
		switch {
		case strings.Contains(path, "modprobe"):
			kind = snapshot.KindModprobe
		case strings.Contains(path, "modules"):
			kind = snapshot.KindModulesLoad
		}
		out.Files = append(out.Files, snapshot.File{Kind: kind, File: f})
	}
	return &out
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func without(list []string, s string) (out []string) {
	for _, l := range list {
		if l != s {
			out = append(out, l)
		}
	}
	return out
}

// checkImport imports the host that a declaration was carried out on: nothing
// is left to plan, and the rules are the same.
func checkImport(t *testing.T, s *snapshot.Snapshot, want declared.Desired) {
	t.Helper()
	after := applied(t, s, want)
	live, err := after.Live()
	if err != nil {
		t.Fatalf("%v\n%s", err, after.Rules[0].Text)
	}
	direct := live
	if again := planner.Diff(want, direct); !again.Empty() {
		t.Fatalf("the declaration itself is not carried out: %+v %+v", again.Changes, again.Blocks)
	}
	got := importer.Import(live, render)
	hcl, desired := reload(t, got.Declaration, after)
	if !got.Plan.Empty() {
		t.Fatalf("not empty:\n%s\n%s", hcl, after.Rules[0].Text)
	}
	render(&desired, live)
	if plan := planner.Diff(desired, live); !plan.Empty() {
		t.Fatalf("loaded again, its plan is not empty: %+v %+v\n%s", plan.Changes, plan.Blocks, hcl)
	}
	keys := func(d declared.Desired) (out []string) {
		for _, c := range d.Chains {
			for _, r := range c.Rules {
				out = append(out, string(c.Family)+" "+c.Table+" "+c.Name+" "+xtables.Key(r.Words))
			}
		}
		return out
	}
	if diff := cmp.Diff(keys(want), keys(desired)); diff != "" {
		t.Fatalf("other rules (-declared +imported):\n%s\n%s", diff, hcl)
	}
	if want.Mode != desired.Mode {
		t.Fatalf("mode %q imported as %q\n%s", want.Mode, desired.Mode, hcl)
	}
}

// TestImportExamples carries out every example and imports the host.
func TestImportExamples(t *testing.T) {
	hosts := map[string][]string{"fleet": {"api-1", "web-1", "nat-1", "db-1"}}
	paths, err := filepath.Glob("../examples/*.hcl")
	if err != nil || len(paths) == 0 {
		t.Fatal(err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".hcl")
		list := hosts[name]
		if list == nil {
			list = []string{"host-1"}
		}
		for _, host := range list {
			t.Run(name+"/"+host, func(t *testing.T) {
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				s := plainHost(host, "")
				config, diags := schema.Load([]schema.Source{{Name: path, Content: content}}, schema.Vars{}, &schema.Facts{Host: s.Host, Conntrack: s.Conntrack})
				if diags.HasErrors() {
					t.Fatal(diags.Err())
				}
				want, diags := config.For(host)
				if diags.HasErrors() {
					t.Fatal(diags.Err())
				}
				if want.Mode == declared.Unmanaged {
					t.Skip("not managed")
				}
				render(&want, nothing)
				checkImport(t, s, want)
			})
		}
	}
}

// plainHost has iptables for both families, and no rules but these.
func plainHost(name, rules string) *snapshot.Snapshot {
	s := &snapshot.Snapshot{FormatVersion: planner.FormatVersion, Host: host.Host{Name: name, Kernel: "6.1.0-30-amd64", CPUs: 4, Memory: 16 << 30, PageSize: 4096, PointerSize: 8}}
	s.Conntrack = host.Conntrack{Kind: host.ConntrackBuiltin, Loaded: true, InitialNetns: true, Hashsize: 65536, Max: 65536}
	s.Sysctls = map[string]host.Sysctl{"net.netfilter.nf_conntrack_max": {Value: "65536", Writable: true}}
	for name, seconds := range map[string]string{"tcp_timeout_established": "432000", "udp_timeout": "30", "udp_timeout_stream": "120", "generic_timeout": "600", "tcp_timeout_time_wait": "120"} {
		s.Sysctls["net.netfilter.nf_conntrack_"+name] = host.Sysctl{Value: seconds, Writable: true}
	}
	for _, f := range host.Families {
		s.Rules = append(s.Rules, snapshot.Rules{Family: f, Backend: host.NFT, Primary: true, Version: "1.8.9", Text: rules})
	}
	s.Files = []snapshot.File{{Kind: snapshot.KindSysctl, File: host.File{Path: "/etc/sysctl.conf", Exists: true, Mode: 0o644, Content: "net.ipv4.ip_forward = 1\n"}}}
	return s
}

// TestImport carries out declarations made by chance.
func TestImport(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 9))
		t.Run(fmt.Sprint(seed), func(t *testing.T) { importRandom(t, r) })
	}
}

func importRandom(t *testing.T, r *rand.Rand) {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	var b strings.Builder
	mode := pick("notrack", "disabled", "tuned")
	fmt.Fprintf(&b, "conntrack \"x\" {\n mode = %q\n", mode)
	if mode == "tuned" {
		fmt.Fprintf(&b, " max = %d\n", 1000+r.IntN(1<<20))
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, " hashsize = %d\n", 1000+r.IntN(1<<18))
		}
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, " timeouts = { tcp_established = %d, udp = 30 }\n", 60+r.IntN(100000))
		}
		if r.IntN(3) == 0 {
			b.WriteString(" files {\n  sysctl = \"/etc/sysctl.d/90-conntrack.conf\"\n }\n")
		}
	} else if r.IntN(2) == 0 {
		b.WriteString(" stateful_rules = \"remove\"\n")
	}
	if mode != "tuned" && r.IntN(4) == 0 {
		fmt.Fprintf(&b, " families = [%q]\n", pick("ipv4", "ipv6"))
	}
	for i := range r.IntN(5) + 1 {
		kind := "accept"
		if mode == "notrack" && i == 0 {
			kind = "notrack"
		} else if mode == "notrack" {
			kind = pick("accept", "accept", "notrack")
		}
		if mode == "tuned" {
			break
		}
		fmt.Fprintf(&b, " %s %q {\n", kind, fmt.Sprintf("%s%d", pick("a", "web.", "x_y-"), i))
		proto := pick("", "tcp", "tcp", "udp", "icmp", "gre", "sctp", "200", "udplite", "icmpv6")
		if proto != "" {
			fmt.Fprintf(&b, "  protocol = %q\n", proto)
		}
		ported := proto == "tcp" || proto == "udp" || proto == "sctp" || proto == "udplite"
		lists := []string{`22`, `"1024-65535"`, `[80, 443]`, `[1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33]`, `["20-21", 80, "8000-9000"]`}
		if ported && r.IntN(2) == 0 {
			fmt.Fprintf(&b, "  local_port = %s\n", pick(lists...))
		}
		if ported && r.IntN(3) == 0 {
			fmt.Fprintf(&b, "  remote_port = %s\n", pick(lists...))
		}
		v4 := proto == "icmp" || strings.Contains(b.String(), `families = ["ipv4"]`)
		v6 := proto == "icmpv6" || strings.Contains(b.String(), `families = ["ipv6"]`)
		addrs := []string{`"192.0.2.1"`, `["198.51.100.0/24", "203.0.113.7"]`}
		if v6 {
			addrs = []string{`"2001:db8::/32"`}
		} else if !v4 {
			addrs = append(addrs, `["192.0.2.0/24", "2001:db8::1"]`, `["0.0.0.0/0", "2001:db8::1"]`)
		}
		if v4 != v6 || !v4 {
			if r.IntN(3) == 0 {
				fmt.Fprintf(&b, "  remote = %s\n", pick(addrs...))
			}
			if r.IntN(6) == 0 {
				fmt.Fprintf(&b, "  local = %s\n", pick(addrs...))
			}
		}
		if r.IntN(4) == 0 {
			fmt.Fprintf(&b, "  interface = %q\n", pick("eth0", "tun+", "lo"))
		}
		direction := pick("both", "both", "both", "in", "out", "forward")
		fmt.Fprintf(&b, "  direction = %q\n", direction)
		if proto == "tcp" && kind == "accept" && r.IntN(2) == 0 && direction != "forward" {
			fmt.Fprintf(&b, "  initiator = %q\n", pick("local", "remote"))
		}
		b.WriteString(" }\n")
	}
	b.WriteString("}\n")
	s := plainHost("h", pick("", "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"))
	if r.IntN(2) == 0 { // it routes
		for _, f := range host.Families {
			s.Sysctls[host.Forwarding(f, "all")] = host.Sysctl{Value: "1"}
		}
	}
	config, diags := schema.Load([]schema.Source{{Name: "x.hcl", Content: []byte(b.String())}}, schema.Vars{}, &schema.Facts{Host: s.Host, Conntrack: s.Conntrack})
	if diags.HasErrors() {
		return // no such traffic, such as ICMP over IPv6 alone
	}
	want, _ := config.For("h")
	render(&want, host.Live{Sysctls: s.Sysctls})
	defer func() {
		if t.Failed() {
			t.Log(b.String())
		}
	}()
	checkImport(t, s, want)
}

// FuzzImport: whatever a host looks like, what is imported can be loaded, and
// says truly whether its plan is empty.
func FuzzImport(f *testing.F) {
	for _, rules := range []string{
		"-A CTPLAN-INPUT -s 10.0.0.1/32 -i eth+ -p tcp -m tcp --dport 22 ! --tcp-flags FIN,SYN,RST,ACK SYN -m comment --comment \"a } b\" -j ACCEPT",
		"-A CTPLAN-FORWARD -o eth0 -p udp -j ACCEPT\n-A CTPLAN-FORWARD -i eth0 -p udp -j ACCEPT\n-A CTPLAN-INPUT -m comment --comment x -j ACCEPT\n-A CTPLAN-OUTPUT -m comment --comment y -j ACCEPT",
		"-A CTPLAN-INPUT -p icmp -j ACCEPT\n-A INPUT -s ::ffff:1.2.3.4 -m state --state NEW -j DROP",
		"COMMIT\n*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n:CTPLAN-PREROUTING -\n-A PREROUTING -j CTPLAN-PREROUTING\n-A CTPLAN-PREROUTING -i a:b -p 200 -j CT --notrack\n-A OUTPUT -p tcp --sport 0:65535 -j NOTRACK",
	} {
		f.Add(rules, "h", "net.netfilter.nf_conntrack_max = 5", "options nf_conntrack hashsize=7\ninstall nf_conntrack /bin/false", int64(1), int64(0))
	}
	f.Fuzz(func(t *testing.T, rules, name, sysctls, modprobe string, limit, hashsize int64) {
		if name == "" || strings.ContainsAny(name, "\x00/\n") {
			return
		}
		s := plainHost(strings.ToValidUTF8(name, "?"), "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT DROP [0:0]\n:CTPLAN-INPUT - [0:0]\n:CTPLAN-OUTPUT - [0:0]\n:CTPLAN-FORWARD - [0:0]\n-A INPUT -j CTPLAN-INPUT\n"+rules+"\nCOMMIT\n")
		s.Conntrack.Max, s.Conntrack.Hashsize = limit, hashsize
		s.Sysctls["net.netfilter.nf_conntrack_max"] = host.Sysctl{Value: fmt.Sprint(limit), Writable: true}
		s.Files[0].File.Content = sysctls
		s.Files = append(s.Files, snapshot.File{Kind: snapshot.KindModprobe, File: host.File{Path: "/etc/modprobe.d/x.conf", Exists: true, Mode: 0o644, Content: modprobe}},
			snapshot.File{Kind: snapshot.KindSysctl, File: host.File{Path: "/etc/sysctl.d/" + strings.ReplaceAll(s.Host.Name, ".", "") + ".conf", Exists: true, Content: sysctls}})
		live, err := s.Live()
		if err != nil {
			return
		}
		got := importer.Import(live, render)
		hcl, desired := reload(t, got.Declaration, s)
		render(&desired, live)
		if plan := planner.Diff(desired, live); plan.Empty() != got.Plan.Empty() || plan.Blocked() != got.Plan.Blocked() {
			t.Fatalf("imported as empty %v, blocked %v; loaded again it is %v, %v\n%s", got.Plan.Empty(), got.Plan.Blocked(), plan.Empty(), plan.Blocked(), hcl)
		}
	})
}
