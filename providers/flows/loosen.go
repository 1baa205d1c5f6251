package flows

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// msgNewConntrack, without NLM_F_CREATE, changes an entry that is there.
const msgNewConntrack = unix.NFNL_SUBSYS_CTNETLINK << 8

// Loosen has connection tracking take packets of these TCP connections that are
// out of their windows, for as long as the connections last. Their entries stay
// when a rule takes them out of tracking, and what is said then moves the
// windows: without this, the packets would be INVALID when they come back.
// Connections that are over meanwhile are no error. It needs CAP_NET_ADMIN.
func Loosen(connections []host.Tuple) error {
	if len(connections) == 0 {
		return nil
	}
	s, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("loosening the tracking of %d connections: %w", len(connections), err)
	}
	defer s.Close()
	for _, c := range connections {
		err := s.Ask(msgNewConntrack, unix.NLM_F_ACK, loosen(c), func([]byte) bool { return true })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("loosening the tracking of %s: %w", netip.AddrPortFrom(c.Src, c.SrcPort), err)
		}
	}
	return nil
}

// loosen is the request about one connection: a struct nfgenmsg and attributes.
func loosen(c host.Tuple) []byte {
	family := byte(unix.AF_INET6)
	if c.Src.Is4() {
		family = unix.AF_INET
	}
	flags := []byte{tcpBeLiberal, tcpBeLiberal} // values, mask
	info := nested(ctaProtoInfo, nested(ctaProtoInfoTCP, attribute(ctaTCPFlagsOrig, flags), attribute(ctaTCPFlagsReply, flags)))
	return append(append([]byte{family, 0, 0, 0}, appendTuple(ctaTupleOrig, unix.IPPROTO_TCP, c)...), info...)
}

// attribute is a netlink attribute, padded.
func attribute(typ uint16, value []byte) []byte { return netlink.AppendAttribute(nil, typ, value) }

func nested(typ uint16, inner ...[]byte) []byte {
	var value []byte
	for _, a := range inner {
		value = append(value, a...)
	}
	return attribute(typ|unix.NLA_F_NESTED, value)
}
