package boot_test

import (
	"fmt"
	"io/fs"
	"os"
	"testing/fstest"

	"github.com/ctplan/ctplan/providers/boot"
)

// What a host with systemd starts, below a folder that stands for the root.
func ExampleRead() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	wants := "etc/systemd/system/multi-user.target.wants/"
	if err := os.CopyFS(root, fstest.MapFS{
		"proc/1/comm":          {Data: []byte("systemd\n")},
		"proc/cmdline":         {Data: []byte("quiet nf_conntrack.hashsize=4096\n")},
		"run/systemd/system":   {Mode: fs.ModeDir},
		wants + "cron.service": {},
		wants + "netfilter-persistent.service": {
			Mode: fs.ModeSymlink, Data: []byte("/lib/systemd/system/netfilter-persistent.service"),
		},
	}); err != nil {
		fmt.Println(err)
		return
	}
	b := boot.Read(root)
	fmt.Println(b.Init, b.Services, b.Cmdline)
	// Output:
	// systemd [netfilter-persistent] [nf_conntrack.hashsize=4096]
}
