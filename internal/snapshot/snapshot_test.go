package snapshot

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/iptables"
)

// sample is a host with one of everything.
func sample() *Snapshot {
	return &Snapshot{
		FormatVersion: planner.FormatVersion,
		Host: host.Host{
			Name: "web-1", MachineID: "m", BootID: "b", Kernel: "6.1.0-18-amd64",
			CPUs: 4, Memory: 8 << 30, PageSize: 4096, PointerSize: 8,
		},
		Conntrack: host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: 65536, InitialNetns: true, Count: 12, Max: 262144},
		Modules: []host.Module{
			{Name: "nf_conntrack", Refs: 2, By: []string{"xt_conntrack"}},
			{Name: "xt_conntrack", Refs: 1},
		},
		Sysctls: map[string]host.Sysctl{
			"net.netfilter.nf_conntrack_max":   {Value: "262144", Writable: true},
			"net.netfilter.nf_conntrack_count": {Value: "12"},
		},
		Rules: []Rules{
			{Family: host.IPv4, Backend: host.NFT, Primary: true, Version: "1.8.9", Text: "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -m comment --comment \"a \\\"b\\\"\" -j ACCEPT\nCOMMIT\n"},
			{Family: host.IPv4, Backend: host.Legacy, Primary: false, Version: "1.8.9", Text: "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -o lo -j ACCEPT\nCOMMIT\n"},
			{Family: host.IPv6, Backend: host.NFT, Primary: true, Version: "1.8.9", Text: ""},
		},
		NFT: []host.NFTTable{{Family: "inet", Name: "fw", Drops: true, Whole: true,
			Chains: []host.NFTChain{{Name: "in", Type: "filter", Hook: "input", Priority: -10, Policy: "drop",
				Rules: []host.NFTRule{{Handle: 7, Text: "ct state \x1b[2J new", Exprs: host.NFTProgram{{Name: "ct", Dst: 1}, {Name: "cmp", Src: 1, Data: host.Hex{8, 0, 0, 0}}}}}}},
			Sets:  []host.NFTSet{{Name: "s", Flags: host.NFTSetInterval, KeyType: 7, KeyLen: 4, Elements: "0a000000-0affffff c0000201~"}},
			Items: []host.NFTItem{{Kind: "rule", Chain: "in", Handle: 7, Text: "ct state \x1b[2J new", Uses: []string{"ct", "cmp"}}}}},
		Namespaces: []Namespace{{Inode: 4026532567, Path: "/run/netns/blue", PID: 77, Command: "nginx",
			NFT:   []host.NFTTable{{Family: "ip", Name: "nat", Items: []host.NFTItem{{Kind: "chain", Name: "POSTROUTING", Uses: []string{"chain nat"}}}}},
			Rules: []Rules{{Family: host.IPv4, Backend: host.Legacy, Text: "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n"}}}},
		Files: []File{
			{KindSysctl, host.File{Path: "/etc/sysctl.conf", Exists: true, Content: "net.ipv4.ip_forward = 1\n", Mode: 0o644}, "/etc/sysctl.d/99-sysctl.conf"},
			{KindModprobe, host.File{Path: "/etc/modprobe.d/netfilter.conf"}, ""},
			{KindModulesLoad, host.File{Path: "/etc/modules-load.d/netfilter.conf"}, ""},
			{KindInitScript, host.File{Path: "/etc/init.d/iptables", Exists: true, Content: "#!/bin/bash\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # common\n", Mode: 0o755, Target: "/etc/rc.d/init.d/iptables"}, ""},
			{KindInitConfig, host.File{Path: "/etc/sysconfig/iptables-config", Exists: true, Content: "IPTABLES_MODULES=\"nf_conntrack_ftp\"\n", Mode: 0o600}, ""},
			{KindRulesV4, host.File{Path: "/etc/sysconfig/iptables", Exists: true, Content: "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n", Mode: 0o600, Xattrs: map[string]string{"security.selinux": "c3lzdGVt"}}, ""},
			{KindScript, host.File{Path: "/etc/rc.local", Exists: true, Content: "modprobe nf_conntrack\n"}, ""},
			{KindInitramfs, host.File{Path: "/etc/initramfs-tools/modules", Exists: true, Content: "nf_conntrack\n"}, ""},
			{KindNFTables, host.File{Path: "/etc/nftables.conf", Exists: true, Content: "ct state new\n"}, ""},
		},
		Boot:  &host.Boot{Init: host.InitSysv, Services: []string{"iptables"}, Cmdline: []string{"nf_conntrack.hashsize=1024"}},
		Notes: []string{"ip6tables is not installed: IPv6 rules were not read"},
	}
}

// desired are declarations to plan the sample for, one a mode.
func desired() []declared.Desired {
	all := []declared.Desired{
		{Mode: declared.Unmanaged},
		{Mode: declared.Disabled, StatefulRules: declared.RemoveStateful},
		{Mode: declared.Tuned, Max: &declared.Setting{Value: 524288}, Hashsize: &declared.Setting{Value: 131072}},
		{Mode: declared.Notrack, StatefulRules: declared.RemoveStateful,
			Notrack: []declared.Traffic{{Name: "t", Protocol: "tcp", Direction: declared.Both, Families: host.Families}}},
	}
	for i := range all {
		all[i].Families = host.Families
		all[i].Chains = iptables.Render(all[i], host.Live{})
	}
	return all
}

// mangle puts hostile bytes into the places where a host can have them.
func mangle(rng *rand.Rand, s *Snapshot) {
	nasty := []string{"\xff\xfe", "\x00", "\u2028", "\x1b[2J", "<&>", `"\`, "\u202e", "{\"base64\":\"\"}", "é", "\r\n", strings.Repeat("x", 300)}
	bytesOf := func() string {
		var b strings.Builder
		for range rng.IntN(4) {
			b.WriteString(nasty[rng.IntN(len(nasty))])
		}
		return b.String()
	}
	for i := range s.Files {
		f := &s.Files[i].File
		f.Path += strings.NewReplacer("\x00", "", "\r\n", "").Replace(bytesOf())
		f.Exists = rng.IntN(2) == 0
		f.Content = bytesOf() + f.Content + bytesOf()
		f.Mode, f.UID, f.GID = rng.Uint32()&0o7777, rng.IntN(70000), rng.IntN(70000)
		f.Target = bytesOf()
		if rng.IntN(2) == 0 {
			f.Xattrs = map[string]string{"user." + strings.ToValidUTF8(bytesOf(), ""): bytesOf()}
		}
	}
	for i := range s.Rules {
		if rng.IntN(2) == 0 {
			s.Rules[i].Text = strings.Replace(s.Rules[i].Text, "-A INPUT", "-A INPUT -m comment --comment \"\xff<é>\" ", 1)
		}
	}
	s.Notes = append(s.Notes, strings.ToValidUTF8(bytesOf(), "?"))
	if rng.IntN(3) == 0 {
		s.Modules = nil
	}
}

func roundTrip(t testing.TB, s *Snapshot) *Snapshot {
	t.Helper()
	var b bytes.Buffer
	if err := s.Encode(&b); err != nil {
		t.Fatal(err)
	}
	back, err := Decode(&b)
	if err != nil {
		t.Fatalf("decoding what was encoded: %v", err)
	}
	return back
}

// unread leaves out what a snapshot remembers of how it was read.
var unread = cmp.Options{cmpopts.IgnoreUnexported(Rules{}), cmpopts.EquateComparable(netip.Prefix{})}

// TestRoundTrip holds the promise of the package: a snapshot file loses
// nothing, so the plan from it is the plan from the host.
func TestRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		s := sample()
		if seed > 0 {
			mangle(rand.New(rand.NewPCG(seed, 0)), s)
		}
		back := roundTrip(t, s)
		if d := cmp.Diff(s, back, unread); d != "" {
			t.Fatalf("seed %d: round trip (-want +got):\n%s", seed, d)
		}
		if changed := Compare(s, back); len(changed) > 0 {
			t.Fatalf("seed %d: facts differ: %q", seed, changed)
		}
		here, err := s.Live()
		if err != nil {
			t.Fatal(err)
		}
		there, err := back.Live()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range desired() {
			want, got := planner.Diff(d, here), planner.Diff(d, there)
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("seed %d, mode %q: plan (-host +snapshot):\n%s", seed, d.Mode, diff)
			}
		}
	}
}

// TestLive sees to it that every kind of file reaches its parser.
func TestLive(t *testing.T) {
	l, err := sample().Live()
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case len(l.Rulesets) != 3 || !l.Rulesets[0].Primary || l.Rulesets[1].Backend != host.Legacy:
		t.Errorf("rulesets %+v", l.Rulesets)
	case len(l.Rulesets[0].Tables[0].Rules) != 2:
		t.Errorf("rules %+v", l.Rulesets[0].Tables[0].Rules)
	case len(l.SysctlFiles) != 1 || l.SysctlFiles[0].Entries[0].Key != "net.ipv4.ip_forward":
		t.Errorf("sysctl files %+v", l.SysctlFiles)
	case len(l.ModprobeFiles) != 1 || len(l.ModulesLoad) != 1:
		t.Errorf("modprobe.d %+v, modules-load.d %+v", l.ModprobeFiles, l.ModulesLoad)
	case len(l.InitScripts) != 1 || len(l.InitScripts[0].Array.Words) != 3:
		t.Errorf("init scripts %+v", l.InitScripts)
	case len(l.InitConfigs) != 1 || l.InitConfigs[0].Modules == nil:
		t.Errorf("init configs %+v", l.InitConfigs)
	case len(l.Scripts) != 2 || len(l.Scripts[1].Loads) != 1:
		t.Errorf("scripts %+v", l.Scripts)
	case len(l.Initramfs) != 1 || len(l.Initramfs[0].Entries) != 1:
		t.Errorf("initramfs %+v", l.Initramfs)
	case len(l.NFTFiles) != 1 || len(l.NFTFiles[0].Lines) != 1:
		t.Errorf("rules files of nft %+v", l.NFTFiles)
	case len(l.NFT) != 1 || len(l.Namespaces) != 1 || len(l.Namespaces[0].NFT) != 1 || len(l.Namespaces[0].Rulesets[0].Tables) != 1:
		t.Errorf("nftables %+v, namespaces %+v", l.NFT, l.Namespaces)
	case len(l.SavedRules) != 1 || l.SavedRules[0].Family != host.IPv4 || l.SavedRules[0].File == nil:
		t.Errorf("saved rules %+v", l.SavedRules)
	}
}

// TestLiveBrokenSaved: a rules file that cannot be read is the planner's to
// refuse, and no reason to plan nothing.
func TestLiveBrokenSaved(t *testing.T) {
	s := sample()
	s.Files[5].File.Content = "*filter\n-I INPUT -j ACCEPT\nCOMMIT\n"
	l, err := s.Live()
	if err != nil {
		t.Fatal(err)
	}
	if r := l.SavedRules[0]; r.Refusal == "" || r.RefusalLine != 2 || r.File == nil {
		t.Errorf("got %+v, want a refusal at line 2", r)
	}
}

func TestDecodeRefuses(t *testing.T) {
	var whole bytes.Buffer
	if err := sample().Encode(&whole); err != nil {
		t.Fatal(err)
	}
	good := whole.String()
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the sample has no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, test := range map[string]struct{ text, want string }{
		"empty":           {"", "empty"},
		"truncated":       {good[:len(good)/2], "truncated"},
		"no version":      {"{}", "no format_version"},
		"next version":    {edit(`"format_version": 1`, `"format_version": 2`), "format version 2"},
		"unknown field":   {edit(`"host": {`, `"extra": 1, "host": {`), "extra"},
		"deep unknown":    {edit(`"path":`, `"pth": "", "path":`), "pth"},
		"trailing":        {good + "{}", "after top-level value"},
		"array":           {"[1]", "not a ctplan snapshot"},
		"binary":          {"\x7fELF\x00", "not a ctplan snapshot"},
		"no host":         {edit(`"name": "web-1"`, `"name": ""`), "host.name"},
		"page size 0":     {edit(`"page_size": 4096`, `"page_size": 0`), "page_size"},
		"page size 4097":  {edit(`"page_size": 4096`, `"page_size": 4097`), "page_size"},
		"pointer size":    {edit(`"pointer_size": 8`, `"pointer_size": 0`), "pointer_size"},
		"no cpu":          {edit(`"cpus": 4`, `"cpus": 0`), "cpus"},
		"kind":            {edit(`"kind": "module"`, `"kind": "maybe"`), "conntrack.kind"},
		"negative":        {edit(`"hashsize": 65536`, `"hashsize": -1`), "negative"},
		"too large":       {edit(`"memory": 8589934592`, `"memory": 99999999999999999999`), "memory"},
		"fraction":        {edit(`"cpus": 4`, `"cpus": 1.5`), "cpus"},
		"family":          {edit(`"family": "ipv6"`, `"family": "ipx"`), `family "ipx"`},
		"backend":         {edit(`"backend": "legacy"`, `"backend": "ebpf"`), `backend "ebpf"`},
		"twice":           {edit(`"backend": "legacy"`, `"backend": "nft"`), "twice"},
		"two primaries":   {edit(`"primary": false`, `"primary": true`), "twice"},
		"nft family":      {edit(`"family": "inet"`, `"family": "x"`), `nftables: family "x"`},
		"pid":             {edit(`"pid": 77`, `"pid": -1`), "pid -1"},
		"file kind":       {edit(`"kind": "sysctl"`, `"kind": "passwd"`), "kind"},
		"relative path":   {edit(`"/etc/sysctl.conf"`, `"etc/sysctl.conf"`), "path"},
		"climbing path":   {edit(`"/etc/sysctl.conf"`, `"/etc/../sysctl.conf"`), "path"},
		"NUL in path":     {edit(`"/etc/sysctl.conf"`, `"/etc/\u0000"`), "path"},
		"module newline":  {edit(`"nf_conntrack"`, `"nf\nconntrack"`), "module name"},
		"sysctl climbing": {edit(`"net.netfilter.nf_conntrack_max"`, `"net/../../x"`), "sysctl name"},
		"bad base64":      {edit(`"net.ipv4.ip_forward = 1\n"`, `{"base64":"%"}`), "base64"},
		"no base64":       {edit(`"net.ipv4.ip_forward = 1\n"`, `{}`), "base64"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(strings.NewReader(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// endless is a reader without an end.
type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	e.n += len(p)
	return copy(p, bytes.Repeat([]byte(" "), len(p))), nil
}

func TestDecodeStops(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 256 MiB")
	}
	_, err := Decode(&endless{})
	if err == nil || !strings.Contains(err.Error(), "256 MiB") {
		t.Errorf("got %v", err)
	}
}

// TestCompare changes one fact at a time: each is found, by its address and
// by no other.
func TestCompare(t *testing.T) {
	for _, test := range []struct {
		address string
		change  func(*Snapshot)
	}{
		{"host.name", func(s *Snapshot) { s.Host.Name = "web-2" }},
		{"host.machine_id", func(s *Snapshot) { s.Host.MachineID = "x" }},
		{"host.boot_id", func(s *Snapshot) { s.Host.BootID = "x" }},
		{"host.kernel", func(s *Snapshot) { s.Host.Kernel = "6.2" }},
		{"host.cpus", func(s *Snapshot) { s.Host.CPUs++ }},
		{"host.memory", func(s *Snapshot) { s.Host.Memory++ }},
		{"conntrack.kind", func(s *Snapshot) { s.Conntrack.Kind = host.ConntrackBuiltin }},
		{"conntrack.loaded", func(s *Snapshot) { s.Conntrack.Loaded = false }},
		{"conntrack.hashsize", func(s *Snapshot) { s.Conntrack.Hashsize++ }},
		{"conntrack.max", func(s *Snapshot) { s.Conntrack.Max++ }},
		{"module.nf_conntrack", func(s *Snapshot) { s.Modules[0].By = nil }},
		{"module.xt_conntrack", func(s *Snapshot) { s.Modules = s.Modules[:1] }},
		{"module.nf_nat", func(s *Snapshot) { s.Modules = append(s.Modules, host.Module{Name: "nf_nat"}) }},
		{"sysctl.net.netfilter.nf_conntrack_max", func(s *Snapshot) {
			s.Sysctls["net.netfilter.nf_conntrack_max"] = host.Sysctl{Value: "1", Writable: true}
		}},
		{"sysctl.net.netfilter.nf_conntrack_max", func(s *Snapshot) {
			s.Sysctls["net.netfilter.nf_conntrack_max"] = host.Sysctl{Value: "262144"}
		}},
		{"iptables.ipv4.filter", func(s *Snapshot) { s.Rules[0].Text = strings.Replace(s.Rules[0].Text, "22", "23", 1) }},
		{"iptables.ipv4.filter", func(s *Snapshot) { s.Rules[0].Text = strings.Replace(s.Rules[0].Text, "INPUT DROP", "INPUT ACCEPT", 1) }},
		{"iptables.ipv4.legacy.raw", func(s *Snapshot) { s.Rules[1].Text = strings.Replace(s.Rules[1].Text, "-o lo", "-o eth0", 1) }},
		{"iptables.ipv6.nat", func(s *Snapshot) { s.Rules[2].Text = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n" }},
		{"iptables.ipv6.backend", func(s *Snapshot) { s.Rules[2].Backend = host.Legacy }},
		{"iptables.ipv4.backend", func(s *Snapshot) { s.Rules[0].Incompatible = []string{"raw"} }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT[0].Items[0].Handle++ }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT[0].Chains[0].Rules[0].Exprs[1].Data[0]++ }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT[0].Chains[0].Priority++ }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT[0].Sets[0].Elements = "0a000000" }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT[0].Dormant = true }},
		{"nftables.inet.fw", func(s *Snapshot) { s.NFT = nil }},
		{"nftables", func(s *Snapshot) { s.NFTUnread = "it keeps changing" }},
		{"netns.4026532567", func(s *Snapshot) { s.Namespaces = nil }},
		{"netns.4026532567", func(s *Snapshot) { s.Namespaces[0].NFT = nil }},
		{"netns.4026532567", func(s *Snapshot) { s.Namespaces[0].Rules[0].Text = "" }},
		{"file./etc/sysctl.conf", func(s *Snapshot) { s.Files[0].File.Content += "\n" }},
		{"file./etc/sysctl.conf", func(s *Snapshot) { s.Files[0].File.Mode = 0o600 }},
		{"file./etc/sysctl.conf", func(s *Snapshot) { s.Files[0].File.UID = 1 }},
		{"file./etc/modprobe.d/netfilter.conf", func(s *Snapshot) { s.Files[1].File.Exists = true }},
		{"file./etc/init.d/iptables", func(s *Snapshot) { s.Files[3].File.Target = "/elsewhere" }},
		{"file./etc/sysconfig/iptables", func(s *Snapshot) { s.Files[5].File.Xattrs = nil }},
	} {
		s := sample()
		test.change(s)
		want := []string{test.address}
		if got := Compare(sample(), s); !slices.Equal(got, want) {
			t.Errorf("Compare = %q, want %q", got, want)
		}
		if got := Compare(s, sample()); !slices.Equal(got, want) {
			t.Errorf("Compare the other way round = %q, want %q", got, want)
		}
	}
}

// TestVolatile changes what changes by itself: no plan goes stale by that.
func TestVolatile(t *testing.T) {
	s := sample()
	s.Conntrack.Count = 99
	s.Sysctls["net.netfilter.nf_conntrack_count"] = host.Sysctl{Value: "99"}
	s.Modules[0].Refs = 77
	s.Modules[0], s.Modules[1] = s.Modules[1], s.Modules[0]
	s.Rules[0].Text = "# Generated by iptables-save v1.8.9 on Sun Nov 22 2026\n" +
		strings.Replace(strings.ReplaceAll(s.Rules[0].Text, "[0:0]", "[12:3456]"), "-A INPUT", "[5:300] -A INPUT", 1) +
		"*nat\n:PREROUTING ACCEPT [1:2]\n:OUTPUT ACCEPT [3:4]\nCOMMIT\n"
	s.Notes = nil
	s.Namespaces[0].PID, s.Namespaces[0].Command = 78, "other"
	s.NFT[0].Sets[0].Elements = "0a000000-0affffff c0000207~" // one has gone after its time, another has come
	s.Links = map[string]uint32{"veth7": 12}
	if got := Compare(sample(), s); len(got) > 0 {
		t.Errorf("Compare = %q, want none", got)
	}
}

func TestForAndMissing(t *testing.T) {
	s := sample()
	files := declared.Files{RulesV4: "/srv/rules", Sysctl: "/etc/sysctl.conf"}
	if got, want := s.Missing(files, []string{"/etc/init.d/iptables", "/opt/init"}), []string{"/opt/init", "/srv/rules"}; !slices.Equal(got, want) {
		t.Errorf("Missing = %q, want %q", got, want)
	}
	for _, f := range s.For(files, []string{"/opt/init"}).Files {
		if f.Kind == KindRulesV4 || f.Kind == KindInitScript {
			t.Errorf("%s is still there", f.File.Path)
		}
	}
	if s.For(declared.Files{}, nil) != s || len(s.Files) != 9 {
		t.Error("For changed the snapshot")
	}
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	if err := sample().Encode(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	for seed := range uint64(4) {
		s := sample()
		mangle(rand.New(rand.NewPCG(seed, 1)), s)
		b.Reset()
		if err := s.Encode(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		back := roundTrip(t, s)
		if d := cmp.Diff(s, back, unread, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("round trip (-want +got):\n%s", d)
		}
		if changed := Compare(s, back); len(changed) > 0 {
			t.Fatalf("facts differ: %q", changed)
		}
		l, err := s.Live()
		if err != nil {
			return
		}
		for _, d := range desired() {
			planner.Diff(d, l) // must not panic, whatever the snapshot says
		}
	})
}

func TestHostFacts(t *testing.T) {
	for list, want := range map[string]int64{"0": 1, "0-3": 4, "0-3,6,8-9": 7} {
		if got := countCPUs(list); got != want {
			t.Errorf("countCPUs(%q) = %d, want %d", list, got, want)
		}
	}
	for _, list := range []string{"", "x", "3-1", "0-"} {
		if got := countCPUs(list); got < 1 {
			t.Errorf("countCPUs(%q) = %d", list, got)
		}
	}
	if got, err := memTotal("MemTotal:       16384 kB"); err != nil || got != 16<<20 {
		t.Errorf("memTotal = %d, %v", got, err)
	}
	for _, line := range []string{"", "MemTotal: x kB", "MemFree: 1 kB", "MemTotal: 99999999999999999999 kB"} {
		if got, err := memTotal(line); err == nil {
			t.Errorf("memTotal(%q) = %d", line, got)
		}
	}
}

func ExampleCompare() {
	before, after := sample(), sample()
	after.Conntrack.Count++ // not a fact
	after.Files[0].File.Content = ""
	fmt.Println(Compare(before, after))
	// Output: [file./etc/sysctl.conf]
}

// TestForeignModules holds facts to the modules that a plan can be about:
// reading rules can load others.
func TestForeignModules(t *testing.T) {
	tracked := host.Module{Name: "nf_conntrack", By: []string{"nf_nat"}}
	a := &Snapshot{Modules: []host.Module{tracked, {Name: "nf_nat"}, {Name: "libcrc32c", By: []string{"nf_conntrack"}}}}
	b := &Snapshot{Modules: []host.Module{tracked, {Name: "nf_nat"}, {Name: "nf_tables"}, {Name: "libcrc32c", By: []string{"nf_conntrack", "nf_tables"}}}}
	if diff := Compare(a, b); len(diff) > 0 {
		t.Errorf("modules without a bearing on tracking differ: %q", diff)
	}
	b.Modules[1].By = []string{"iptable_nat"}
	b.Modules = append(b.Modules, host.Module{Name: "iptable_nat"})
	if want, diff := []string{"module.iptable_nat", "module.nf_nat"}, Compare(a, b); !slices.Equal(diff, want) {
		t.Errorf("a new user of nf_nat makes %q differ, want %q", diff, want)
	}
}
