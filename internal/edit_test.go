package internal_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

// An editor is the way from a file's bytes through a provider's parser and the
// planner to the bytes that apply writes.
type editor struct {
	kind snapshot.Kind
	path string
	seed []string
	// foreign takes what ctplan may change out of the content. What is left must
	// be the same before and after.
	foreign func(content string) string
}

var editors = []editor{
	{snapshot.KindSysctl, "/etc/sysctl.conf", []string{
		"# a comment\nnet.ipv4.ip_forward = 1\n-net.netfilter.nf_conntrack_max=65536 # \n",
		"net/netfilter/nf_conntrack_max = 1\nnet.netfilter.nf_conntrack_max=2\n; end",
		"net.ipv4.tcp_syncookies=1",
		"\tnet.nf_conntrack_max =\t1 \r\n\n\n",
	}, withoutLines("conntrack")},
	{snapshot.KindModprobe, "/etc/modprobe.d/netfilter.conf", []string{
		"options nf_conntrack hashsize=100 expect_hashsize=20\n",
		"# x\noptions nf-conntrack acct=1 \\\n  hashsize=7 \\\n\ttstamp=1\nblacklist pcspkr\n",
		"install nf_conntrack /bin/false\ninstall usb /bin/true",
		"blacklist nf_conntrack\nalias a b",
	}, func(s string) string {
		s = strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\\") // continued by nothing
		return withoutLines("conntrack", "hashsize")(strings.ReplaceAll(s, "\\\n", ""))
	}},
	{snapshot.KindModulesLoad, "/etc/modules-load.d/netfilter.conf", []string{
		"# modules\nloop\nnf_conntrack\n", "nf-conntrack\nnf_conntrack_ftp", ";\n\n",
	}, withoutLines("nf_", "nf-", "ip_", "ip-", "ip6", "xt_", "xt-")},
	{snapshot.KindInitScript, "/etc/init.d/iptables", []string{
		"#!/bin/bash\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6\nstop() { :; }\n",
		"NF_MODULES_COMMON=(\n\tx_tables\n\t'nf_nat' \"nf_conntrack\"\n)\n",
		"NF_MODULES_COMMON=(x_tables)\n", "NF_MODULES_COMMON=()\n", "NF_MODULES_COMMON=(a $b)\n", "echo",
	}, nil},
	{snapshot.KindInitConfig, "/etc/sysconfig/iptables-config", []string{
		"IPTABLES_MODULES=\"nf_conntrack_ftp ip_nat_ftp\"\nIPTABLES_SYSCTL_LOAD_LIST=\"\" # none\n",
		"IPTABLES_MODULES=''", "IPTABLES_MODULES=nf_conntrack_ftp\nIPTABLES_SYSCTL_LOAD_LIST=\".bridge-nf\"\n", "# nothing\n",
	}, nil},
	{snapshot.KindRulesV4, "/etc/iptables/rules.v4", []string{
		"*filter\n:INPUT DROP [1:2]\n[3:4] -A INPUT -i lo -j ACCEPT\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n# end",
		"# by hand\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j NOTRACK\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:CTPLAN-INPUT - [0:0]\n-A INPUT -j CTPLAN-INPUT\n-A CTPLAN-INPUT -j DROP\nCOMMIT\n",
		"# nat\n*nat\n:POSTROUTING ACCEPT [0:0]\n:mynat - [0:0]\n-A POSTROUTING -j mynat\n-A mynat -j MASQUERADE\nCOMMIT\n# filter\n*filter\nCOMMIT\n*nat\nCOMMIT",
		"*filter\n:x - [0:0]\n-A INPUT -m comment --comment \"it's \\\"state\\\"\" -j x\nCOMMIT\n*filter\nCOMMIT\n", "",
	}, foreignRules},
}

// withoutLines returns a function that takes out the lines that hold one of the
// words.
func withoutLines(words ...string) func(string) string {
	return func(s string) string {
		var kept []string
		for _, line := range strings.Split(strings.TrimSuffix(s, "\n"), "\n") {
			if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
				kept = append(kept, line)
			}
		}
		return strings.Trim(strings.Join(kept, "\n"), "\n")
	}
}

var stateWords = regexp.MustCompile(`CTPLAN-|state|conn|helper|CT\b|TRACK|nat|REDIRECT|MASQ|recent|cluster|synproxy|SYNPROXY`)

// foreignRules are the lines of rules that ctplan has no business with. Headers
// and policies may be added, so they do not count.
func foreignRules(s string) string {
	var kept []string
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		if strings.Contains(line, "-A") && !stateWords.MatchString(line) || strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

var modes = []string{`
conntrack "x" {
  mode = "tuned"
  max  = 200000
  hashsize = 50000
  timeouts = { udp = 20 }
}
`, `
conntrack "x" {
  mode = "notrack"
  stateful_rules = "remove"
  notrack "tcp" { protocol = "tcp" }
  accept "web" {
    protocol   = "tcp"
    local_port = 80
  }
}
`, `
conntrack "x" {
  mode = "disabled"
  stateful_rules = "remove"
  allow_risk = ["nat", "init_script"]
  accept "web" {
    protocol   = "tcp"
    local_port = 80
  }
}
`}

// FuzzEditors puts whatever bytes where ctplan edits files, and holds that an
// edit changes nothing but what it is about, keeps the file's metadata, and is
// not made twice.
func FuzzEditors(f *testing.F) {
	for e, editor := range editors {
		for _, seed := range editor.seed {
			for m := range modes {
				f.Add(uint8(e), uint8(m), seed)
			}
		}
	}
	machine := host.Host{Name: "h", Kernel: "6.1.0", CPUs: 4, Memory: 8 << 30, PageSize: 4096, PointerSize: 8}
	conntrack := host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: 65536, InitialNetns: true, Max: 65536}
	var desired []declared.Desired
	for _, hcl := range modes {
		conf, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, schema.Vars{}, &schema.Facts{Host: machine, Conntrack: conntrack})
		if diags.HasErrors() {
			f.Fatal(diags)
		}
		d, diags := conf.For(machine.Name)
		if diags.HasErrors() {
			f.Fatal(diags)
		}
		render(&d, host.Live{})
		desired = append(desired, d)
	}

	f.Fuzz(func(t *testing.T, which, mode uint8, content string) {
		editor, d := editors[int(which)%len(editors)], desired[int(mode)%len(desired)]
		file := host.File{
			Path: editor.path, Exists: true, Content: content, Mode: 0o4751, UID: 12, GID: 34,
			Target: "/real", Xattrs: map[string]string{"user.x": "\x00y"},
		}
		edit := func(file host.File) *change.FileChange {
			s := snapshot.Snapshot{
				Host: machine, Conntrack: conntrack, Modules: []host.Module{},
				Sysctls: map[string]host.Sysctl{
					"net.netfilter.nf_conntrack_max":         {Value: "65536", Writable: true},
					"net.netfilter.nf_conntrack_udp_timeout": {Value: "30", Writable: true},
				},
				Rules: []snapshot.Rules{{Family: host.IPv4, Backend: host.NFT, Primary: true}, {Family: host.IPv6, Backend: host.NFT, Primary: true}},
				Files: []snapshot.File{{Kind: editor.kind, File: file}},
			}
			live, err := s.Live()
			if err != nil {
				t.Skip(err)
			}
			for _, c := range planner.Diff(d, live).Changes {
				if c, ok := c.(*change.FileChange); ok && c.Before.Path == file.Path {
					return c
				}
			}
			return nil
		}
		change := edit(file)
		if change == nil {
			return
		}
		after := change.After
		if !after.Exists || after.Mode != file.Mode || after.UID != file.UID || after.GID != file.GID ||
			after.Target != file.Target || !maps.Equal(after.Xattrs, file.Xattrs) || after.Path != file.Path {
			t.Errorf("the metadata changed: %+v", after)
		}
		if editor.foreign != nil {
			if was, is := editor.foreign(content), editor.foreign(after.Content); was != is {
				t.Errorf("what is no business of ctplan's was\n%q\nand is\n%q", was, is)
			}
		} else if was, is := middle(content, appended.ReplaceAllString(after.Content, "$1")); !words.MatchString(was) || !words.MatchString(is) {
			t.Errorf("more than words of a list changed: %q became %q", was, is)
		}
		if again := edit(after); again != nil {
			t.Errorf("a second edit changes\n%q\ninto\n%q", after.Content, again.After.Content)
		}
	})
}

var (
	words    = regexp.MustCompile("^[^=()#;$`]*$")
	appended = regexp.MustCompile(`(^|\n)(?:IP6?TABLES_\w+="[\w.]+"\n){1,2}$`)
)

// middle is what is left of two texts without what they begin and end with
// alike.
func middle(a, b string) (string, string) {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	a, b = a[i:], b[i:]
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}
