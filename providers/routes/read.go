package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/netlink"
	"github.com/ctplan/ctplan/planner/host"
)

// What is kept of a host.
const (
	maxRules  = 4096
	maxRoutes = 4096
	maxLinks  = 4096
	maxQdiscs = 256
	maxIPsec  = 4096
)

// Read reads it all, of the network namespace that the calling thread stands in,
// and rp_filter from /proc under root. What could not be read is in Partial.
func Read(root string) *host.Routing {
	r := &host.Routing{Rules: []host.RoutingRule{}}
	lacks := func(what string, err error) {
		if err != nil && r.Partial == "" {
			r.Partial = fmt.Sprintf("reading %s: %v", what, err)
		}
	}
	names, err := links()
	lacks("the interfaces", err)
	r.Rules, err = rules()
	lacks("the rules of routing", err)
	if slices.ContainsFunc(r.Rules, func(x host.RoutingRule) bool { return x.Custom() }) {
		r.Routes, err = tables(names)
		lacks("the routes", err)
	}
	r.Links = filtered(root, names)
	r.Filters, err = classifiers(names)
	lacks("the filters of tc", err)
	r.IPsec, err = marked(root)
	lacks("the policies of IPsec", err)
	return r
}

var errMany = errors.New("there are more than are kept")

// each asks a bus for a list, and hands on each message that has its head.
func each(bus int, typ uint16, request []byte, head, limit int, take func(msg []byte) bool) error {
	n := 0
	err := netlink.Dump(bus, typ, request, func(msg []byte) bool {
		if len(msg) >= head && take(msg) {
			n++
		}
		return n <= limit
	})
	if err == nil && n > limit {
		return errMany
	}
	return err
}

// Lengths of the heads of messages (include/uapi/linux/rtnetlink.h, fib_rules.h).
const (
	headLink  = 16
	headRule  = 12
	headRoute = 12
	headTC    = 20
)

// links are the names of interfaces, by index.
func links() (map[uint32]string, error) {
	names := map[uint32]string{}
	err := each(unix.NETLINK_ROUTE, unix.RTM_GETLINK, make([]byte, headLink), headLink, maxLinks, func(msg []byte) bool {
		netlink.Attributes(msg[headLink:], func(typ uint16, value []byte) {
			if typ == unix.IFLA_IFNAME {
				names[binary.NativeEndian.Uint32(msg[4:])] = text(value)
			}
		})
		return true
	})
	return names, err
}

func rules() ([]host.RoutingRule, error) {
	list := []host.RoutingRule{}
	err := each(unix.NETLINK_ROUTE, unix.RTM_GETRULE, make([]byte, headRule), headRule, maxRules, func(msg []byte) bool {
		rule, ok := parseRule(msg)
		if ok {
			list = append(list, rule)
		}
		return ok
	})
	return list[:min(len(list), maxRules)], err
}

func tables(names map[uint32]string) (list []host.RoutingRoute, err error) {
	err = each(unix.NETLINK_ROUTE, unix.RTM_GETROUTE, make([]byte, headRoute), headRoute, maxRoutes, func(msg []byte) bool {
		route, ok := parseRoute(msg, names)
		if ok {
			list = append(list, route)
		}
		return ok
	})
	return list[:min(len(list), maxRoutes)], err
}

// filtered are the interfaces on which rp_filter is at work: the higher of its
// own and that of all (IN_DEV_RPFILTER in include/linux/inetdevice.h).
func filtered(root string, names map[uint32]string) (list []host.RoutingLink) {
	conf := filepath.Join(root, "/proc/sys/net/ipv4/conf")
	number := func(link, key string) byte {
		b, err := os.ReadFile(filepath.Join(conf, link, key))
		if err != nil || len(b) == 0 || b[0] < '0' || b[0] > '2' {
			return 0
		}
		return b[0] - '0'
	}
	all, allMark := number("all", "rp_filter"), number("all", "src_valid_mark")
	for _, name := range names {
		if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
			continue
		}
		l := host.RoutingLink{Name: name, Filter: max(all, number(name, "rp_filter")), Mark: allMark|number(name, "src_valid_mark") != 0}
		if l.Filter != 0 && l.Mark && name != "lo" {
			list = append(list, l)
		}
	}
	slices.SortFunc(list, func(a, b host.RoutingLink) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// plainQdiscs have no filters that anybody has put there.
var plainQdiscs = []string{"noqueue", "pfifo_fast", "mq", "fq_codel", "fq", "pfifo", "bfifo", "sfq", "cake", "codel"}

// markClassifiers are those that may go by a packet's mark.
var markClassifiers = []string{"fw", "u32", "basic", "bpf", "flow", "cgroup"}

// classifiers are the interfaces that have filters of tc which may go by marks.
func classifiers(names map[uint32]string) (list []string, err error) {
	type place struct{ link, parent uint32 }
	var places []place
	err = each(unix.NETLINK_ROUTE, unix.RTM_GETQDISC, make([]byte, headTC), headTC, maxQdiscs+len(names), func(msg []byte) bool {
		link, handle := binary.NativeEndian.Uint32(msg[4:]), binary.NativeEndian.Uint32(msg[8:])
		switch kind := attribute(msg[headTC:], unix.TCA_KIND); {
		case slices.Contains(plainQdiscs, kind):
		case kind == "clsact" || kind == "ingress":
			const ingress, egress = 0xfffffff2, 0xfffffff3 // TC_H_CLSACT with TC_H_MIN_INGRESS, _EGRESS
			places = append(places, place{link, ingress}, place{link, egress})
		default:
			places = append(places, place{link, handle})
		}
		return true
	})
	if len(places) > maxQdiscs {
		return nil, errMany
	}
	for _, p := range places {
		request := make([]byte, headTC)
		binary.NativeEndian.PutUint32(request[4:], p.link)
		binary.NativeEndian.PutUint32(request[12:], p.parent)
		failed := each(unix.NETLINK_ROUTE, unix.RTM_GETTFILTER, request, headTC, maxLinks, func(msg []byte) bool {
			if slices.Contains(markClassifiers, attribute(msg[headTC:], unix.TCA_KIND)) && !slices.Contains(list, names[p.link]) {
				list = append(list, names[p.link])
			}
			return true
		})
		if err == nil {
			err = failed
		}
	}
	slices.Sort(list)
	return list, err
}

// Messages and lengths of IPsec (include/uapi/linux/xfrm.h, on 64-bit machines),
// and the attribute that has a mark.
const (
	getPolicy, headPolicy = 0x15, 168
	getState, headState   = 0x12, 224
	attrMark              = 21
)

// marked are the policies and states of IPsec that have a mark. A kernel without
// IPsec, or whose part for netlink is not loaded, is not made to load it.
func marked(root string) (list []host.RoutingIPsec, err error) {
	open, err := os.ReadFile(filepath.Join(root, "/proc/net/netlink"))
	if err != nil || !hasBus(string(open), unix.NETLINK_XFRM) {
		return nil, nil
	}
	for _, kind := range []struct {
		what string
		typ  uint16
		head int
	}{{"policy", getPolicy, headPolicy}, {"state", getState, headState}} {
		failed := each(unix.NETLINK_XFRM, kind.typ, nil, kind.head, maxIPsec, func(msg []byte) bool {
			netlink.Attributes(msg[kind.head:], func(typ uint16, value []byte) {
				if typ == attrMark && len(value) >= 8 && binary.NativeEndian.Uint32(value[4:]) != 0 {
					m := host.RoutingIPsec{What: kind.what, Mark: binary.NativeEndian.Uint32(value), Mask: binary.NativeEndian.Uint32(value[4:])}
					if !slices.Contains(list, m) {
						list = append(list, m)
					}
				}
			})
			return true
		})
		if err == nil {
			err = failed
		}
	}
	return list, err
}

// hasBus is whether the kernel listens on a bus of netlink, as /proc/net/netlink
// lists sockets: pointer, bus, port id, which is 0 for the kernel's.
func hasBus(list string, bus int) bool {
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == fmt.Sprint(bus) && f[2] == "0" {
			return true
		}
	}
	return false
}
