package netns_test

import (
	"fmt"
	"io/fs"
	"os"
	"testing/fstest"

	"github.com/ctplan/ctplan/providers/netns"
)

// The namespaces beside one's own, below a folder that stands for the root: one
// that is mounted, and one that a process stands in.
func ExampleFind() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	link := func(inode string) *fstest.MapFile {
		return &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("net:[" + inode + "]")}
	}
	if err := os.CopyFS(root, fstest.MapFS{
		"proc/thread-self/ns/net": link("4026531840"),
		"proc/self/mountinfo":     {Data: []byte("61 25 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw\n")},
		"proc/1/ns/net":           link("4026531840"),
		"proc/77/ns/net":          link("4026532402"),
		"proc/77/comm":            {Data: []byte("dnsmasq\n")},
	}); err != nil {
		fmt.Println(err)
		return
	}
	namespaces, err := netns.Find(root)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, n := range namespaces {
		fmt.Printf("%d path=%q pid=%d command=%q\n", n.Inode, n.Path, n.PID, n.Command)
	}
	// Output:
	// 4026532281 path="/run/netns/blue" pid=0 command=""
	// 4026532402 path="" pid=77 command="dnsmasq"
}
