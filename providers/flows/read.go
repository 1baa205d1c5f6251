package flows

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
)

// Options say what to read.
type Options struct {
	Root          string // prefix of /proc, for tests
	SSHConnection string // the environment variable of that name
	Expect        int64  // entries that the table has, about; with 0 it is not read
	Tracked       bool   // connection tracking is there: reading its table loads no module
	Sets          bool   // rules match on ipsets: reading them loads no module
	Limit         int    // the most tracked connections to keep; 0: all
	// Recorded is what else was copied of another host, whose files Root has:
	// nothing is asked of this one then.
	Recorded *Recorded
}

// maxRoutes is how many routes are kept: past that, those that are connected
// and the default ones.
const maxRoutes = 4096

// Read reads the connections of this network namespace. The notes say what
// could not be read, and what follows from that. It needs CAP_NET_ADMIN.
func Read(o Options) (*host.Connections, []string) {
	r := reading{c: &host.Connections{}}
	if o.tracked() {
		list, more, err := readTracked(o, o.room())
		r.failed("the table of tracked connections", err)
		r.c.Flows, r.c.Total = list, int64(len(list))
		if more || o.Recorded != nil && len(list) >= RecordedEntries {
			r.c.Total = max(o.Expect, r.c.Total)
		}
	}
	r.rest(o)
	return r.c, r.notes
}

// ReadAhead is Read that does not wait for the tracked connections: they come as
// Connections.Coming says. settle is to be called once, when nobody waits for
// them any more; then c is as Read would have made it, unless the error says
// that the list is not whole.
func ReadAhead(o Options) (c *host.Connections, notes []string, settle func() error) {
	r := reading{c: &host.Connections{}}
	settle = func() error { return nil }
	if o.tracked() {
		a := newArrivals(o.room())
		go func() { a.end(Each(context.Background(), a.add)) }()
		r.c.Coming = a.beyond
		settle = func() (err error) {
			r.c.Flows, err = a.all()
			r.c.Total, r.c.Coming = int64(len(r.c.Flows)), nil
			return err
		}
	}
	r.rest(o)
	return r.c, r.notes, settle
}

// tracked is whether there is anything tracked to read. A dump walks every bucket
// of the machine's table, which takes 10 ms where this namespace has nothing in it.
func (o Options) tracked() bool { return o.Tracked && o.Expect > 0 }

// room is for how many tracked connections to make room at first.
func (o Options) room() int { return int(max(0, min(o.Expect+o.Expect/16, 4<<20))) }

// reading is what was read so far.
type reading struct {
	c     *host.Connections
	notes []string
}

func (r *reading) failed(what string, err error) {
	if err == nil {
		return
	}
	if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(err.Error(), "reading "+what+": ") {
		err = inner
	}
	why := strings.ToValidUTF8(strings.ReplaceAll(err.Error(), "\n", "; "), "\uFFFD")
	r.c.Unread = append(r.c.Unread, host.Unread{What: what, Why: why})
	r.notes = append(r.notes, fmt.Sprintf("reading %s: %s: what the plan does to them is not known", what, why))
}

// rest reads all but what is tracked.
func (r *reading) rest(o Options) {
	c, failed := r.c, r.failed
	sockets, err := readSockets(o.Root, o.Recorded != nil)
	failed("the sockets", err)
	for _, s := range sockets {
		c.Sockets = append(c.Sockets, s.Socket)
	}
	slices.SortStableFunc(c.Sockets, func(a, b host.Socket) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote))
	})
	if o.Recorded != nil {
		c.Operator = o.Recorded.operators()
		failed("the interfaces", o.Recorded.places(o.Root, c))
		c.Ephemeral = readEphemeral(o.Root)
		return
	}
	c.Operator = operators(o.Root, o.SSHConnection, os.Getppid(), sockets)
	if o.Sets {
		c.Sets, err = readSets()
		if err != nil { // rules that look into them match nobody knows what
			r.notes = append(r.notes, fmt.Sprintf("reading the ipsets: %v: what rules with them do is not known", err))
		}
	}
	failed("the interfaces", readPlaces(c))
	c.Ephemeral = readEphemeral(o.Root)
}

// readEphemeral reads the range from which the kernel takes the ports of
// connections that it opens; the zero range where it cannot be told. It serves
// IPv6 too (Documentation/networking/ip-sysctl.rst, ip_local_port_range).
func readEphemeral(root string) host.PortRange {
	text, err := os.ReadFile(root + "/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return host.PortRange{}
	}
	var r host.PortRange
	if n, _ := fmt.Sscan(string(text), &r.From, &r.To); n != 2 || r.To < r.From || r.From == 0 {
		return host.PortRange{}
	}
	return r
}

// Addresses reads the addresses of this network namespace, without the names of
// their interfaces. They are never nil.
func Addresses() ([]host.Address, error) {
	list, err := addresses(nil)
	if err != nil {
		return list, fmt.Errorf("reading the addresses: %w", err)
	}
	return list, nil
}

// Bridged reports whether there is a bridge, or it cannot be told.
func Bridged(root string) bool {
	if root != "" {
		bridges, err := filepath.Glob(root + "/sys/class/net/*/bridge")
		return err != nil || len(bridges) > 0
	}
	links, err := netlink.LinkList()
	return err != nil || slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Type() == "bridge" })
}

// addresses are those of the interfaces named by their index.
func addresses(names map[int]string) ([]host.Address, error) {
	list := []host.Address{}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ip = ip.Unmap(); ok && bits <= ip.BitLen() {
			list = append(list, host.Address{Interface: names[a.LinkIndex], Prefix: netip.PrefixFrom(ip, bits)})
		}
	}
	return list, err
}

// readPlaces reads addresses and routes.
func readPlaces(c *host.Connections) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		if l.Type() == "bridge" {
			c.Bridged = true
		}
	}
	if c.Addresses, err = addresses(names); err != nil {
		return err
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	many := len(routes) > maxRoutes
	for _, r := range routes {
		route := host.Route{Interface: names[r.LinkIndex]}
		zero := netip.IPv4Unspecified()
		if r.Family == netlink.FAMILY_V6 {
			zero = netip.IPv6Unspecified()
		}
		route.Prefix = netip.PrefixFrom(zero, 0)
		if r.Dst != nil {
			ip, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if !ok {
				continue
			}
			route.Prefix = netip.PrefixFrom(ip.Unmap(), bits)
		}
		if len(r.MultiPath) > 0 {
			route.Interface = ""
			for i, hop := range r.MultiPath {
				if name := names[hop.LinkIndex]; i == 0 || name == route.Interface {
					route.Interface = name
				} else {
					route.Interface = ""
					break
				}
			}
		}
		if many && route.Prefix.Bits() > 0 && r.Gw != nil {
			continue
		}
		c.Routes = append(c.Routes, route)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT {
			c.PolicyRouting = true
		}
	}
	return nil
}
