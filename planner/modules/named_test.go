package modules

import (
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

func TestNamed(t *testing.T) {
	old := host.ModuleTree{Release: "4.18.0", Tracks: []string{"nf_conntrack", "nf_conntrack_ipv4", "xt_conntrack"}, Aliases: []host.ModuleAlias{{Name: "ip_conntrack", Module: "nf_conntrack"}, {Name: "nf_conntrack_[0-9]", Module: "nf_conntrack_ipv4"}}}
	now := host.ModuleTree{Release: "6.1.0", Tracks: []string{"nf_conntrack", "openvswitch"}, Aliases: []host.ModuleAlias{{Name: "ip_conntrack", Module: "nf_conntrack"}}}
	builtin := host.ModuleTree{Release: "6.6.0", Builtin: true, Tracks: []string{"nf_conntrack_ftp"}}
	for _, tt := range []struct {
		name, module, unsure, gone string
		trees                      []host.ModuleTree
	}{
		{"nf_conntrack", "nf_conntrack", "", "", []host.ModuleTree{old, now}},
		{"ip_conntrack", "nf_conntrack", "", "", []host.ModuleTree{old, now}},
		{"nf_conntrack_2", "nf_conntrack_ipv4", "", "", []host.ModuleTree{old}},
		{"nf_conntrack_ipv4", "nf_conntrack_ipv4", "kernel 4.18.0 loads it by nf_conntrack_ipv4, and kernel 6.1.0", "", []host.ModuleTree{old, now}},
		{"openvswitch", "openvswitch", "kernel 6.1.0 loads it by openvswitch, and kernel 4.18.0", "", []host.ModuleTree{old, now}},
		{"nf_conntrack_ipv4", "", "", "6.1.0", []host.ModuleTree{now}},
		{"loop", "", "", "", []host.ModuleTree{now}},
		{"nf_conntrack", "", "", "", []host.ModuleTree{builtin}},
		{"nf_conntrack_ipv4", "nf_conntrack_ipv4", "", "", nil}, // nothing is known of the kernels
		{"ip_conntrack", "nf_conntrack", "", "", nil},
		{"loop", "", "", "", nil},
	} {
		n := Named(host.Live{Trees: tt.trees}, tt.name)
		if n.Module != tt.module || n.Gone != tt.gone || (n.Unsure == "") != (tt.unsure == "") || !strings.HasPrefix(n.Unsure, tt.unsure) {
			t.Errorf("%s: %+v, want %+v", tt.name, n, tt)
		}
	}
}
