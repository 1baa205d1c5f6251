package kmod_test

import (
	"fmt"
	"os"
	"testing/fstest"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

// Commands of modprobe.d, their lines joined and their names as the kernel has them.
func ExampleParseModprobe() {
	f := kmod.ParseModprobe(host.File{Path: "/etc/modprobe.d/netfilter.conf", Exists: true, Content: `# sizes
options nf-conntrack hashsize=131072 \
	expect_hashsize=1024
install nf_conntrack_ftp /bin/false
`})
	for _, e := range f.Entries {
		fmt.Println(e.Line, e.Command, e.Module)
		for _, a := range e.Args {
			fmt.Printf("  %s\n", a.Text)
		}
	}
	// Output:
	// 2 options nf_conntrack
	//   hashsize=131072
	//   expect_hashsize=1024
	// 4 install nf_conntrack_ftp
	//   /bin/false
}

// Who uses nf_conntrack, from the text of /proc/modules.
func ExampleParseModules() {
	modules := kmod.ParseModules(`xt_conntrack 16384 1 - Live 0x0000000000000000
nf_conntrack 188416 2 xt_conntrack,nf_nat, Live 0x0000000000000000
`)
	for _, m := range modules {
		fmt.Println(m.Name, m.Refs, m.By)
	}
	// Output:
	// xt_conntrack 1 []
	// nf_conntrack 2 [xt_conntrack nf_nat]
}

// The state of nf_conntrack, below a folder that stands for the root.
func ExampleReadConntrack() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	if err := os.CopyFS(root, fstest.MapFS{
		"proc/modules": {Data: []byte("nf_conntrack 188416 0 - Live 0x0000000000000000\n")},
		"sys/module/nf_conntrack/parameters/hashsize": {Data: []byte("65536\n"), Mode: 0o600},
		"sys/module/nf_conntrack/initstate":           {Data: []byte("live\n")},
		"proc/sys/net/netfilter/nf_conntrack_count":   {Data: []byte("1024\n")},
		"proc/sys/net/netfilter/nf_conntrack_max":     {Data: []byte("262144\n"), Mode: 0o644},
	}); err != nil {
		fmt.Println(err)
		return
	}
	c, err := kmod.ReadConntrack(root)
	fmt.Println(c.Kind, c.Loaded, c.Hashsize, c.Count, c.Max, err)
	// Output:
	// module true 65536 1024 262144 <nil>
}
