package flows

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// RecordedEntries is the most lines of /proc/net/nf_conntrack that are copied.
const RecordedEntries = 10_000

// Recorded is what commands of another host have printed, each a line an object
// (ip -o). Nil: it was not run there, or failed.
type Recorded struct {
	Addresses []byte    // ip -o addr show
	Routes    [2][]byte // ip -o -4 and -6 route show table main
	Rules     [2][]byte // ip -4 and -6 rule show
	Sessions  []byte    // values of SSH_CONNECTION
}

func (r *Recorded) operators() []host.Session {
	var out []host.Session
	for line := range strings.Lines(string(r.Sessions)) {
		if s, ok := ParseConnection(line); ok && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// places is readPlaces.
func (r *Recorded) places(root string, c *host.Connections) error {
	if r.Addresses == nil || r.Routes[0] == nil || r.Rules[0] == nil {
		return errors.New("there was no ip to ask for addresses and routes")
	}
	c.Addresses = parseAddresses(string(r.Addresses))
	for i, text := range r.Routes {
		c.Routes = append(c.Routes, parseRoutes(string(text), i == 1)...)
	}
	if len(c.Routes) > maxRoutes {
		c.Routes = slices.DeleteFunc(c.Routes, func(r host.Route) bool { return r.Prefix.Bits() > 0 && r.Interface == "" })
	}
	for _, text := range r.Rules {
		for line := range strings.Lines(string(text)) {
			_, table, ok := strings.Cut(strings.TrimSpace(line), "lookup ")
			if !ok || !slices.Contains([]string{"local", "main", "default"}, strings.TrimSpace(table)) {
				c.PolicyRouting = true
			}
		}
	}
	c.Bridged = Bridged(root)
	return nil
}

// parseAddresses reads "2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope …", and
// "inet 10.0.0.1 peer 10.0.0.2/32".
func parseAddresses(text string) []host.Address {
	list := []host.Address{}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 4 || w[2] != "inet" && w[2] != "inet6" {
			continue
		}
		address, bits := w[3], ""
		if a, b, ok := strings.Cut(w[3], "/"); ok {
			address, bits = a, b
		}
		if len(w) > 5 && w[4] == "peer" {
			_, bits, _ = strings.Cut(w[5], "/")
		}
		a, err := netip.ParseAddr(address)
		if err != nil {
			continue
		}
		p, err := netip.ParsePrefix(address + "/" + bits)
		if err != nil {
			p = netip.PrefixFrom(a, a.BitLen())
		}
		name, _, _ := strings.Cut(w[1], "@")
		list = append(list, host.Address{Interface: name, Prefix: p})
	}
	slices.SortStableFunc(list, func(a, b host.Address) int { return a.Prefix.Addr().BitLen() - b.Prefix.Addr().BitLen() }) // as the kernel lists them
	return list
}

// parseRoutes reads "default via 10.0.0.1 dev eth0 …", "10.0.0.0/24 dev eth0 …",
// "unreachable 10.9.0.0/16 …", and with several ways "… \ nexthop via … dev …".
func parseRoutes(text string, v6 bool) []host.Route {
	var list []host.Route
	for line := range strings.Lines(text) {
		w := strings.Fields(strings.ReplaceAll(line, `\`, " "))
		if len(w) > 0 && slices.Contains([]string{"unicast", "unreachable", "blackhole", "prohibit", "throw", "local", "broadcast", "multicast", "anycast"}, w[0]) {
			w = w[1:]
		}
		if len(w) == 0 {
			continue
		}
		zero := netip.IPv4Unspecified()
		if v6 {
			zero = netip.IPv6Unspecified()
		}
		r := host.Route{Prefix: netip.PrefixFrom(zero, 0)}
		if w[0] != "default" {
			p, err := netip.ParsePrefix(w[0])
			if a, addrErr := netip.ParseAddr(w[0]); addrErr == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil {
				continue
			}
			r.Prefix = p
		}
		ways := map[string]bool{}
		for i := 1; i+1 < len(w); i++ {
			if w[i] == "dev" {
				r.Interface = w[i+1]
				ways[w[i+1]] = true
			}
		}
		if len(ways) > 1 {
			r.Interface = ""
		}
		list = append(list, r)
	}
	return list
}
