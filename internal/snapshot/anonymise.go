package snapshot

import (
	"net/netip"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// Anonymise hides who the host talks to: every address in its connections
// that is neither its own nor named by its rules, its files or keep is
// replaced by another one, the same one everywhere. The stand-in lies in the
// same of all networks that those name, and in no smaller one, so that rules
// and routes treat it alike and a plan comes to the same impact. Ports stay.
//
// Rules and files stay as they are: what they name is not hidden.
func (s *Snapshot) Anonymise(keep []netip.Prefix) {
	if s.Connections == nil {
		return
	}
	a := &anonymiser{networks: map[netip.Prefix]bool{}, stands: map[netip.Addr]netip.Addr{}, next: map[netip.Prefix]netip.Addr{}}
	for _, p := range keep {
		a.name(p)
	}
	for _, r := range s.Rules {
		a.nameAll(r.Text)
	}
	for _, f := range s.Files {
		if f.Kind == KindRulesV4 || f.Kind == KindRulesV6 || f.Kind == KindNFTables {
			a.nameAll(f.File.Content)
		}
	}
	for i := range s.NFT {
		a.nameTable(&s.NFT[i])
	}
	c := *s.Connections
	for _, own := range c.Addresses {
		a.name(own.Prefix)
		a.name(netip.PrefixFrom(own.Prefix.Addr(), own.Prefix.Addr().BitLen()))
	}
	for _, r := range c.Routes {
		a.name(r.Prefix)
	}
	c.Routing = a.nameRouting(c.Routing)
	for _, set := range c.Sets {
		for _, e := range set.Prefixes {
			a.name(e.Prefix)
		}
	}
	tuple := func(t host.Tuple) host.Tuple {
		t.Src, t.Dst = a.stand(t.Src), a.stand(t.Dst)
		return t
	}
	end := func(p netip.AddrPort) netip.AddrPort {
		if !p.IsValid() {
			return p
		}
		return netip.AddrPortFrom(a.stand(p.Addr()), p.Port())
	}
	c.Flows = append([]host.Flow(nil), c.Flows...)
	for i := range c.Flows {
		c.Flows[i].Orig, c.Flows[i].Reply = tuple(c.Flows[i].Orig), tuple(c.Flows[i].Reply)
	}
	c.Sockets = append([]host.Socket(nil), c.Sockets...)
	for i := range c.Sockets {
		c.Sockets[i].Local, c.Sockets[i].Remote = end(c.Sockets[i].Local), end(c.Sockets[i].Remote)
	}
	c.Operator = append([]host.Session(nil), c.Operator...)
	for i := range c.Operator {
		c.Operator[i].Local, c.Operator[i].Remote = end(c.Operator[i].Local), end(c.Operator[i].Remote)
	}
	c.Servers = append([]host.Server(nil), c.Servers...)
	for i := range c.Servers {
		if c.Servers[i].Addr.IsValid() {
			c.Servers[i].Addr = a.stand(c.Servers[i].Addr)
		}
	}
	c.Anonymised = true
	s.Connections = &c
}

// nameRouting names what rules and routes name; a gateway stays, as those of the main table's networks do.
func (a *anonymiser) nameRouting(r *host.Routing) *host.Routing {
	if r == nil {
		return nil
	}
	out := *r
	for _, x := range r.Rules {
		a.name(x.From)
		a.name(x.To)
	}
	for _, x := range r.Routes {
		a.name(x.Prefix)
		a.name(netip.PrefixFrom(x.Gateway, x.Gateway.BitLen()))
	}
	return &out
}

type anonymiser struct {
	networks map[netip.Prefix]bool
	lengths  [2][129]bool // of networks, by family
	stands   map[netip.Addr]netip.Addr
	next     map[netip.Prefix]netip.Addr
}

func (a *anonymiser) name(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	p = p.Masked()
	a.networks[p] = true
	a.lengths[family(p.Addr())][p.Bits()] = true
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// nameAll names every address, network and range in a text of rules.
func (a *anonymiser) nameAll(text string) {
	for line := range strings.Lines(text) {
		if !strings.ContainsAny(line, ".:") {
			continue
		}
		for word := range strings.FieldsSeq(line) {
			from, to, isRange := strings.Cut(strings.Trim(word, `",;{}`), "-")
			start, err := netip.ParseAddr(from)
			switch {
			case err == nil && isRange:
				if last, err := netip.ParseAddr(to); err == nil && last.Is4() == start.Is4() {
					a.nameRange(start, last)
				}
			case err == nil:
				a.name(netip.PrefixFrom(start.WithZone(""), start.BitLen()))
			default:
				if p, err := netip.ParsePrefix(from); err == nil {
					a.name(p)
				}
			}
		}
	}
}

// nameTable names what a table of nftables names: in its rules, and in its
// sets, whose keys may have an address at every whole four of their bytes.
func (a *anonymiser) nameTable(t *host.NFTTable) {
	for i := range t.Chains {
		for _, r := range t.Chains[i].Rules {
			a.nameAll(r.Text)
		}
	}
	for i := range t.Sets {
		for e, err := range t.Sets[i].Elements.All() {
			if err != nil {
				break
			}
			last := e.Last
			if last == nil {
				last = e.Key
			}
			for at := 0; at+4 <= min(len(e.Key), len(last)); at += 4 {
				for _, size := range []int{4, 16} {
					if end := at + size; end <= min(len(e.Key), len(last)) {
						from, _ := netip.AddrFromSlice(e.Key[at:end])
						to, _ := netip.AddrFromSlice(last[at:end])
						a.nameRange(from, to)
					}
				}
			}
		}
	}
}

// nameRange names the networks that make up a range.
func (a *anonymiser) nameRange(from, to netip.Addr) {
	for range 256 { // no range takes more
		if !from.IsValid() || to.Less(from) {
			return
		}
		bits := from.BitLen()
		for bits > 0 {
			wider := netip.PrefixFrom(from, bits-1).Masked()
			if wider.Addr() != from || to.Less(last(wider)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(from, bits)
		a.name(p)
		from = last(p).Next()
	}
}

// last is the highest address of a network.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// narrowest is the smallest named network that holds the address; the whole
// family's where none does.
func (a *anonymiser) narrowest(addr netip.Addr) netip.Prefix {
	for bits := addr.BitLen(); bits > 0; bits-- {
		if !a.lengths[family(addr)][bits] {
			continue
		}
		if p := netip.PrefixFrom(addr, bits).Masked(); a.networks[p] {
			return p
		}
	}
	return netip.PrefixFrom(addr, 0).Masked()
}

// Where stand-ins for the rest of the world begin: networks for documentation
// and tests (RFC 2544, RFC 3849).
var (
	world4 = netip.MustParseAddr("198.18.0.1")
	world6 = netip.MustParseAddr("2001:db8::1")
)

// stand is what stands for the address.
func (a *anonymiser) stand(addr netip.Addr) netip.Addr {
	if !addr.IsValid() || addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() {
		return addr
	}
	if s, ok := a.stands[addr]; ok {
		return s
	}
	home := a.narrowest(addr)
	if home.Bits() == addr.BitLen() {
		return addr // named itself
	}
	at, ok := a.next[home]
	switch {
	case ok:
	case home.Bits() == 0 && addr.Is4():
		at = world4
	case home.Bits() == 0:
		at = world6
	default:
		at = home.Addr()
	}
	for home.Contains(at) {
		in := a.narrowest(at)
		if in == home {
			a.next[home] = at.Next()
			a.stands[addr] = at
			return at
		}
		at = last(in).Next() // over the smaller network
	}
	return home.Addr()
}
