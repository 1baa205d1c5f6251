package nft

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
)

// Links are the network interfaces of the namespace that the calling thread
// stands in: by name, the index by which rules may name them.
func Links() (map[string]uint32, error) {
	links := map[string]uint32{}
	err := netlink.Dump(unix.NETLINK_ROUTE, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(msg []byte) bool {
		if len(msg) < unix.SizeofIfInfomsg {
			return true
		}
		index := binary.NativeEndian.Uint32(msg[4:]) // of struct ifinfomsg
		if name := attribute(msg[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME); name != nil {
			links[cstring(name)] = index
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	return links, nil
}

// linkNames names interfaces by index, and asks for them where one is named.
type linkNames struct {
	byIndex map[uint32]string
}

func (l *linkNames) name(index uint32) string {
	if l.byIndex == nil {
		l.byIndex = map[uint32]string{}
		links, _ := Links() // without, their numbers are shown
		for name, index := range links {
			l.byIndex[index] = name
		}
	}
	return l.byIndex[index]
}
