package sysctl_test

import (
	"fmt"
	"os"
	"testing/fstest"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// A value is changed by splicing the span that Parse found: every other byte
// of the file stays.
func ExampleParse() {
	f := host.File{Path: "/etc/sysctl.conf", Exists: true, Content: `# sized by hand
net/netfilter/nf_conntrack_max = 65536   
-vm.swappiness=10
`}
	for _, e := range sysctl.Parse(f).Entries {
		fmt.Printf("line %d: %s = %s\n", e.Line, e.Key, e.Value)
		if e.Key == "net.netfilter.nf_conntrack_max" {
			f.Content = f.Content[:e.ValueSpan.Start] + "524288" + f.Content[e.ValueSpan.End:]
		}
	}
	fmt.Printf("%q\n", f.Content)
	// Output:
	// line 2: net.netfilter.nf_conntrack_max = 65536
	// line 3: vm.swappiness = 10
	// "# sized by hand\nnet/netfilter/nf_conntrack_max = 524288   \n-vm.swappiness=10\n"
}

// The kernel's keys, below a folder that stands for the root.
func ExampleReadKeys() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	if err := os.CopyFS(root, fstest.MapFS{
		"proc/sys/net/netfilter/nf_conntrack_max":     {Data: []byte("65536\n"), Mode: 0o644},
		"proc/sys/net/netfilter/nf_conntrack_count":   {Data: []byte("1024\n"), Mode: 0o444},
		"proc/sys/net/netfilter/nf_conntrack_buckets": {Data: []byte("16384\n"), Mode: 0o644},
	}); err != nil {
		fmt.Println(err)
		return
	}
	keys, err := sysctl.ReadKeys(root, []string{"net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_acct"})
	fmt.Println(keys, err)
	// Output:
	// map[net.netfilter.nf_conntrack_max:{65536 true}] <nil>
}
