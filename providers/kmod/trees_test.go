package kmod

import (
	"reflect"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

func TestReadTrees(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/proc/sys/kernel/osrelease": "6.1.0-9-amd64\n",
		"/lib/modules/6.1.0-9-amd64/modules.dep": "kernel/net/netfilter/nf_conntrack.ko: kernel/net/ipv4/netfilter/nf_defrag_ipv4.ko\n" +
			"kernel/net/netfilter/nf_conntrack_ftp.ko.xz: kernel/net/netfilter/nf_conntrack.ko kernel/lib/libcrc32c.ko\n" +
			"kernel/net/openvswitch/vport-gre.ko: kernel/net/openvswitch/openvswitch.ko kernel/net/netfilter/nf_conntrack.ko\nkernel/drivers/loop.ko:\n",
		"/lib/modules/6.1.0-9-amd64/modules.alias":    "# Aliases\nalias nf_conntrack-10 nf_conntrack\nalias nft-expr-\"ct\" nf_conntrack\nalias ip_conntrack_[f-g]tp nf_conntrack_ftp\nalias pci:v* loop\nalias x\n",
		"/lib/modules/6.1.0-10-amd64/modules.dep":     "",
		"/lib/modules/6.1.0-10-amd64/modules.builtin": "kernel/net/netfilter/nf_conntrack.ko\n",
		"/lib/modules/6.1.0-8-amd64/modules.dep":      "",
		"/lib/modules/6.2.0/modules.order":            "",
	})
	want := []host.ModuleTree{
		{Release: "6.1.0-9-amd64", Tracks: []string{"nf_conntrack", "nf_conntrack_ftp", "vport_gre"},
			Aliases: []host.ModuleAlias{{Name: "nf_conntrack_10", Module: "nf_conntrack"}, {Name: "ip_conntrack_[f-g]tp", Module: "nf_conntrack_ftp"}}},
		{Release: "6.1.0-10-amd64", Builtin: true},
	}
	if got := ReadTrees(root); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if got := ReadTrees(t.TempDir()); got != nil {
		t.Errorf("of nothing: %+v", got)
	}
}

func FuzzNewer(f *testing.F) {
	f.Add("6.1.0-9-amd64", "6.1.0-10-amd64")
	f.Add("6.1", "6.1.0")
	f.Add("06", "6")
	f.Fuzz(func(t *testing.T, a, b string) {
		if newer(a, b) && newer(b, a) || newer(a, a) {
			t.Errorf("%q and %q are each newer than the other", a, b)
		}
	})
}
