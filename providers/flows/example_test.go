package flows_test

import (
	"fmt"
	"os"
	"testing/fstest"

	"github.com/ctplan/ctplan/providers/flows"
)

// The session that ctplan runs in, and the ports from which the host opens
// connections. Sockets, addresses and routes are those of the network namespace.
func ExampleRead() {
	root, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	if err := os.CopyFS(root, fstest.MapFS{
		"proc/sys/net/ipv4/ip_local_port_range": {Data: []byte("32768\t60999\n")},
	}); err != nil {
		fmt.Println(err)
		return
	}
	c, _ := flows.Read(flows.Options{Root: root, SSHConnection: "192.0.2.7 50022 198.51.100.1 22"})
	for _, s := range c.Operator {
		fmt.Printf("%s works on %s\n", s.Remote, s.Local)
	}
	fmt.Println("own ports", c.Ephemeral.From, "to", c.Ephemeral.To)
	// Output:
	// 192.0.2.7:50022 works on 198.51.100.1:22
	// own ports 32768 to 60999
}
