package schema_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

func load(t testing.TB, hcl string, vars schema.Vars, f *schema.Facts) *schema.Config {
	t.Helper()
	config, diags := schema.Load([]schema.Source{{Name: "main.hcl", Content: []byte(hcl)}}, vars, f)
	if diags.HasErrors() {
		t.Fatal(text(t, diags))
	}
	return config
}

func desired(t testing.TB, config *schema.Config, host string) declared.Desired {
	t.Helper()
	d, diags := config.For(host)
	if diags.HasErrors() {
		t.Fatal(text(t, diags))
	}
	return d
}

func TestEverything(t *testing.T) {
	hcl := `conntrack "all" {
  hosts          = ["*"]
  mode           = "notrack"
  stateful_rules = "remove"
  allow_risk     = ["memory", "nat", "memory"]
  init_scripts   = ["/etc/init.d/iptables"]
  notrack "t" {
    protocol    = 17
    local       = ["192.0.2.0/24", "192.0.2.0/24", "2001:db8::1"]
    remote      = "198.51.100.1"
    local_port  = ["90-100", 80, "80", "95-110", 110]
    interface   = "eth+"
    direction   = "in"
  }
  accept "f" {
    protocol  = "icmpv6"
    direction = "forward"
    remote    = ["::/0", "0.0.0.0/0"]
  }
  accept "any" {
    protocol = "all"
    remote   = ["0.0.0.0/0", "10.0.0.0/8", "2001:db8::/32"]
  }
  accept "null" {
    protocol = null
    remote   = null
    families = ["ipv6"]
  }
  files {
    sysctl       = "/etc/sysctl.d/10-ct.conf"
    modprobe     = "/etc/modprobe.d/ct.conf"
    modules_load = "/etc/modules-load.d/ct.conf"
    rules_v4     = "/etc/v4"
    rules_v6     = "/etc/v6"
  }
}
`
	both := []host.Family{host.IPv4, host.IPv6}
	at := func(line int) declared.Pos { return declared.Pos{File: "main.hcl", Line: line} }
	want := declared.Desired{
		Block: "all", Source: at(1), Mode: declared.Notrack, ModeSource: at(3),
		StatefulRules: declared.RemoveStateful,
		AllowRisk:     []declared.Risk{declared.RiskNAT, declared.RiskMemory},
		Families:      both,
		InitScripts:   []string{"/etc/init.d/iptables"},
		Files: declared.Files{
			Sysctl: "/etc/sysctl.d/10-ct.conf", Modprobe: "/etc/modprobe.d/ct.conf",
			ModulesLoad: "/etc/modules-load.d/ct.conf", RulesV4: "/etc/v4", RulesV6: "/etc/v6",
		},
		Notrack: []declared.Traffic{{
			Name: "t", Protocol: "udp", Source: at(7),
			Local:      []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			Remote:     []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")},
			LocalPorts: []host.PortRange{{From: 80, To: 80}, {From: 90, To: 110}},
			Interface:  "eth+", Direction: declared.In, Families: []host.Family{host.IPv4},
		}},
		Accept: []declared.Traffic{
			{Name: "f", Protocol: "ipv6-icmp", Direction: declared.Forward, Families: []host.Family{host.IPv6}, Source: at(15)},
			{
				Name: "any", Direction: declared.Both, Families: both, Source: at(20),
				Remote: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2001:db8::/32")},
			},
			{Name: "null", Direction: declared.Both, Families: []host.Family{host.IPv6}, Source: at(24)},
		},
	}
	got := desired(t, load(t, hcl, schema.Vars{}, nil), "h")
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back declared.Desired
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, back, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("does not survive JSON:\n%s", diff)
	}
}

func TestTunedDefaults(t *testing.T) {
	tests := []struct {
		hcl           string
		max, hashsize int64
	}{
		{"max = 524288", 524288, 131072},
		{"max = 3", 3, 1},
		{"max = 2147483647\n  hashsize = 2147483647", 2147483647, 2147483647},
		{"max = \"1000\"\n  hashsize = null", 1000, 250},
		{"max = max(524288, host.cpus * 65536)", 1048576, 262144},
		{"max = host.conntrack.max * 2\n  hashsize = host.conntrack.hashsize + host.conntrack.count", 524288, 66536},
		{"max = startswith(host.name, \"h\") && length(host.name) == 1 ? 8 : 4", 8, 2},
	}
	for _, tt := range tests {
		got := desired(t, load(t, tuned(tt.hcl), schema.Vars{}, facts("h")), "h")
		if got.Max.Value != tt.max || got.Hashsize.Value != tt.hashsize || got.Max.Source.Line != 3 {
			t.Errorf("%s: max %v, hashsize %v", tt.hcl, *got.Max, *got.Hashsize)
		}
	}
}

// TestPrecedence: defaults, environment, files, flags; later ones win.
func TestPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	f1, f2 := file("1", "n = 3\n"), file("2", "n = 4\n")
	env := []string{"PATH=/bin", "CTPLAN_VAR_n=2", "CTPLAN_VAR_other=x"}
	hcl := "variable \"n\" {\n  type = number\n  default = 1\n  description = \"A number.\"\n}\n" + tuned("max = var.n")
	tests := []struct {
		vars schema.Vars
		want int64
	}{
		{schema.Vars{}, 1},
		{schema.Vars{Env: env}, 2},
		{schema.Vars{Env: env, Files: []string{f1}}, 3},
		{schema.Vars{Env: env, Files: []string{f1, f2}}, 4},
		{schema.Vars{Env: env, Files: []string{f1, f2}, Flags: []string{"n=5"}}, 5},
		{schema.Vars{Env: env, Files: []string{f2}, Flags: []string{"n=5", "n=6"}}, 6},
	}
	digests := map[string]bool{}
	for _, tt := range tests {
		config := load(t, hcl, tt.vars, nil)
		if got := desired(t, config, "h").Max.Value; got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.vars, got, tt.want)
		}
		digests[config.Digest()] = true
	}
	if len(digests) != len(tests) {
		t.Errorf("%d digests for %d sets of values", len(digests), len(tests))
	}
	if a, b := load(t, hcl, schema.Vars{}, nil).Digest(), load(t, hcl, schema.Vars{}, facts("x")).Digest(); a != b {
		t.Error("the digest depends on the host")
	}
	if a, b := load(t, hcl, schema.Vars{}, nil).Digest(), load(t, hcl+"#", schema.Vars{}, nil).Digest(); a == b {
		t.Error("the digest does not depend on the source")
	}
}

func TestComplexVariable(t *testing.T) {
	hcl := `variable "rules" {
  type = object({
    addresses = list(string)
    port      = optional(number, 443)
  })
}
variable "raw" {}
locals {
  all  = flatten([local.some, ["192.0.2.2"]])
  some = [for a in var.rules.addresses : a if a != ""]
}
conntrack "x" {
  mode = "disabled"
  accept "a" {
    protocol    = "tcp"
    remote      = local.all
    remote_port = var.rules.port
    local_port  = var.raw
  }
}
`
	got := desired(t, load(t, hcl, schema.Vars{Flags: []string{`rules={addresses=["192.0.2.1",""]}`, "raw=1-2"}}, nil), "h").Accept[0]
	if len(got.Remote) != 2 || got.RemotePorts[0].From != 443 || got.LocalPorts[0] != (host.PortRange{From: 1, To: 2}) {
		t.Errorf("%+v", got)
	}
}

// TestWithoutFacts: what depends on a host is no error, and what does not is
// still checked.
func TestWithoutFacts(t *testing.T) {
	unknown := []string{
		tuned("max = host.cpus * 1000"),
		tuned("max = 5\n  timeouts = { udp = host.cpus }"),
		tuned("max = host.memory > 1 ? 5 : 6\n  hosts = [host.name]"),
		traffic("protocol = host.kernel == \"x\" ? \"tcp\" : \"udp\"\nlocal_port = 80\ninitiator = \"local\""),
		traffic("protocol = \"tcp\"\nlocal_port = [host.cpus]\nremote = [\"192.0.2.${host.cpus}\"]"),
		traffic("interface = host.name\nlocal = [host.name]\nremote = \"2001:db8::1\""),
		"locals {\n  a = host.cpus > 4 ? \"tuned\" : \"notrack\"\n}\nconntrack \"x\" {\n  mode = local.a\n  max = 5\n}\n",
	}
	for _, hcl := range unknown {
		config := load(t, hcl, schema.Vars{}, nil)
		if _, diags := config.For("h"); !diags.HasErrors() || !strings.Contains(diags.Err().Error(), "depends on facts") {
			t.Errorf("%s\n%v", hcl, diags.Err())
		}
	}
	_, diags := schema.Load([]schema.Source{{Name: "m", Content: []byte(tuned("max = host.cpus\n  hashsize = 0"))}}, schema.Vars{}, nil)
	if got := diags.List(); len(got) != 1 || got[0].Line != 4 || got[0].Column != 14 || got[0].EndColumn != 15 || got[0].Severity != "error" {
		t.Errorf("%+v", got)
	}
}

func TestEmptyHostsMatchNone(t *testing.T) {
	config, diags := schema.Load([]schema.Source{{Name: "m", Content: []byte(tuned("max = 1\n  hosts = []"))}}, schema.Vars{}, nil)
	if diags.HasErrors() || len(diags.List()) != 1 || diags.List()[0].Severity != "warning" {
		t.Fatal(text(t, diags))
	}
	if d := desired(t, config, "h"); d.Mode != declared.Unmanaged || !slices.Equal(d.Families, host.Families) {
		t.Errorf("%+v", d)
	}
}

func BenchmarkLoad(b *testing.B) {
	sources, err := schema.ReadSources("../examples/notrack.hcl")
	if err != nil {
		b.Fatal(err)
	}
	f := facts("h")
	for b.Loop() {
		config, diags := schema.Load(sources, schema.Vars{}, f)
		if diags.HasErrors() {
			b.Fatal(diags.Err())
		}
		config.For("h")
	}
}

func BenchmarkDigest(b *testing.B) {
	sources, _ := schema.ReadSources("../examples/fleet.hcl")
	config, diags := schema.Load(sources, schema.Vars{}, nil)
	if diags.HasErrors() {
		b.Fatal(diags.Err())
	}
	for b.Loop() {
		config.Digest()
	}
}
