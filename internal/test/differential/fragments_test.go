package differential

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/verdict"
)

// partBytes of a datagram are in each part but the last; IPv6 takes none that is
// shorter than its smallest packet.
const partBytes = 1448

// cut takes a packet apart into three, which are marked as one datagram.
func cut(ip []byte, id uint32) (parts [3][]byte) {
	for i := range parts {
		if ip[0]>>4 == 4 {
			body := ip[20:]
			from, to := i*partBytes, min((i+1)*partBytes, len(body))
			h := append([]byte(nil), ip[:20]...)
			binary.BigEndian.PutUint16(h[2:], uint16(20+to-from))
			binary.BigEndian.PutUint16(h[4:], uint16(id))
			binary.BigEndian.PutUint16(h[6:], uint16(from/8))
			if i < 2 {
				h[6] |= 0x20
			}
			binary.BigEndian.PutUint16(h[10:], 0)
			binary.BigEndian.PutUint16(h[10:], checksum(nil, h))
			parts[i] = append(h, body[from:to]...)
			continue
		}
		body := ip[40:]
		from, to := i*partBytes, min((i+1)*partBytes, len(body))
		h := append([]byte(nil), ip[:40]...)
		binary.BigEndian.PutUint16(h[4:], uint16(8+to-from))
		h = append(h, ip[6], 0, byte(from>>8), byte(from))
		if i < 2 {
			h[43] |= 1
		}
		h[6] = 44
		h = binary.BigEndian.AppendUint32(h, id)
		parts[i] = append(h, body[from:to]...)
	}
	return parts
}

// partOf is which datagram a part belongs to, and partial what has come of it.
type (
	partOf struct {
		src netip.Addr
		id  uint32
	}
	partial struct {
		bytes, whole int
		number       uint32
		ok           bool
	}
)

// partKey is that of a packet which is part of a datagram.
func partKey(ip []byte) (key partOf, ok bool) {
	if ip[0]>>4 == 4 {
		key = partOf{netip.AddrFrom4([4]byte(ip[12:16])), uint32(binary.BigEndian.Uint16(ip[4:]))}
		return key, binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
	}
	if len(ip) < 48 || ip[6] != 44 {
		return key, false
	}
	return partOf{netip.AddrFrom16([16]byte(ip[8:24])), binary.BigEndian.Uint32(ip[44:])}, true
}

// join takes a part in, and reports the datagram once all of it has come.
func (w *wire) join(key partOf, ip []byte) (id uint32, proto uint8, ok bool) {
	p := w.parts[key]
	if p == nil {
		p = &partial{}
		w.parts[key] = p
	}
	var n, at int
	var more bool
	if ip[0]>>4 == 4 {
		flags := binary.BigEndian.Uint16(ip[6:])
		n, at, more, proto = len(ip)-20, int(flags&0x1fff)*8, flags&0x2000 != 0, ip[9]
	} else {
		flags := binary.BigEndian.Uint16(ip[42:])
		n, at, more, proto = len(ip)-48, int(flags&^7), flags&1 != 0, ip[40]
	}
	if p.bytes += n; !more {
		p.whole = at + n
		p.number, p.ok = number(ip)
	}
	return p.number, proto, p.ok && p.bytes == p.whole
}

// fragments sends a datagram in three parts, each of which the evaluator is
// asked about.
func (l *lab) fragments(f host.Family) *probe {
	l.nextID++
	q := &probe{id: l.nextID}
	p := l.fresh(f)
	for p.Hook == verdict.HookOutput { // what the host sends is taken apart behind all hooks
		p = l.fresh(f)
	}
	q.src, q.proto, q.local = p.Src, p.Protocol, p.Hook == verdict.HookInput
	data := append(make([]byte, 2*partBytes+l.r.IntN(300)), payload(0, q.id)...)
	ip := l.made(&p, data)
	q.whole = ip
	for i, part := range cut(ip, q.id) {
		one := p
		one.Fragment, one.Length, one.Datagram = verdict.FirstFragment+verdict.Fragment(i), uint32(len(part)), uint32(len(ip))
		q.packets = append(q.packets, one)
		l.inject(p.In == inside, p.Src.Is6(), part)
	}
	return q
}

// asksForTracking is what rules have that is about connections.
var asksForTracking = regexp.MustCompile(`(?m)^.*(--ctstate|--state|conntrack|connmark|CONNMARK|connbytes|SYNPROXY|synproxy|\bct ).*\n`)

// chainRule is the beginning of a rule of iptables.
var chainRule = regexp.MustCompile(`(?m)^-A \S+ `)

// nativeRule is that of one of nft's own.
var nativeRule = regexp.MustCompile(`(?m)^    (type filter)?`)

// aboutParts has some rules of iptables ask for parts of datagrams.
func (g *generator) aboutParts(text string) string {
	text = asksForTracking.ReplaceAllString(text, "")
	return chainRule.ReplaceAllStringFunc(text, func(begin string) string {
		switch {
		case g.IntN(6) > 0:
			return begin
		case g.family == host.IPv4:
			return begin + pick(g, "-f ", "! -f ")
		}
		return begin + pick(g, "-m frag --fragfirst ", "-m frag --fragmore ", "-m frag --fraglast ", "-m frag ", "-m ipv6header --header frag --soft ", "-m ipv6header ! --header frag --soft ")
	})
}

// aboutParts does the same to nft's, some of which then stand ahead of where
// parts are joined.
func (g *native) aboutParts(text string) string {
	text = asksForTracking.ReplaceAllString(text, "")
	text = strings.ReplaceAll(text, "type nat hook", "type filter hook") // which nothing would call
	if strings.Contains(text, "priority -301") {
		text = regexp.MustCompile(`(?m)^.*mark set.*\n`).ReplaceAllString(strings.ReplaceAll(text, "priority -301", "priority -450"), "")
	}
	return nativeRule.ReplaceAllStringFunc(text, func(begin string) string {
		switch {
		case strings.Contains(begin, "type") || g.IntN(6) > 0:
			return begin
		case g.six():
			return begin + g.pick("exthdr frag exists ", "exthdr frag missing ", "frag more-fragments 1 ", "frag frag-off != 0 ", "frag frag-off 0 ", "frag nexthdr udp ", "ip6 nexthdr udp ", "ip6 nexthdr != udp ", "ip6 nexthdr 44 ")
		}
		return begin + g.pick("ip frag-off & 0x1fff != 0 ", "ip frag-off & 0x3fff != 0 ", "ip frag-off & 0x2000 == 0 ", "ip protocol udp ")
	})
}

// joinedBy makes the ruleset one of those that have parts joined, or one of
// those that look as if they did.
func joinedBy(r *rand.Rand, text string) string {
	n := r.IntN(6)
	if n > 2 {
		return text
	}
	rule := []string{"-m socket -j RETURN", "-m conntrack --ctstate NEW -j RETURN", "-m mark --mark 1 -j RETURN"}[n]
	at := strings.LastIndex(text, "COMMIT\n")
	return text[:at] + ":JOIN - [0:0]\n-A JOIN " + rule + "\n" + text[at:]
}

// nativelyJoined is the same in a table of nft's own.
func nativelyJoined(r *rand.Rand, f host.Family, text string) string {
	n := r.IntN(6)
	if n > 2 {
		return text
	}
	rule := []string{"meta l4proto udp tproxy to :1", "ct state new", "socket transparent 1"}[n]
	table := "ip"
	if f == host.IPv6 {
		table = "ip6"
	}
	return text + "table " + table + " joins {\n  chain c {\n    " + rule + "\n  }\n}\n"
}

// TestFragmentsAgainstKernel sends datagrams in parts through rules of both
// backends and of nft's own, where parts are joined and where they are not.
// CTPLAN_RULESETS says how many rulesets, CTPLAN_SEED where the generator begins.
func TestFragmentsAgainstKernel(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		total, seed := draws(300)
		r := rand.New(rand.NewPCG(seed, 21))
		l := newLab(t, r)
		l.wire = newWire(t)
		l.sets = makeSets(t)
		write(t, "net/ipv4/ipfrag_time", "1")
		write(t, "net/ipv6/ip6frag_time", "1")
		verdicts := map[string]*[3]int{}
		lost := 0
		for n := range total {
			f := host.Families[n%2]
			b := []host.Backend{host.NFT, host.Legacy, ""}[n/2%3]
			var e *verdict.Evaluator
			var text string
			if b == "" {
				g := newNative(r, f, 0)
				text = l.loadNative(nativelyJoined(r, f, g.aboutParts(g.ruleset())))
				e, _ = l.nativeEvaluator(f, nil)
			} else {
				g := &generator{Rand: r, family: f}
				text = joinedBy(r, g.aboutParts(g.ruleset()))
				ns.Use(b)
				set := l.parse(b, f, text)
				e = l.evaluator(set)
				l.load(f, text)
			}
			counts := fmt.Sprintf("%s, joined: %v", f, e.Joins() == verdict.Yes)
			if verdicts[counts] == nil {
				verdicts[counts] = &[3]int{}
			}
			probes := map[uint32]*probe{}
			for range 20 {
				q := l.fragments(f)
				q.decide(e)
				probes[q.id] = q
			}
			l.collect(probes)
			for _, q := range probes {
				verdicts[counts][q.decision.Verdict]++
				if q.decision.Verdict == verdict.Unknown {
					continue
				}
				if q.decision.Verdict == verdict.Accepted && !q.seen { // on the wire, perhaps
					lost++
					for _, part := range cut(q.whole, q.id+1<<15) {
						l.inject(q.packets[0].In == inside, q.src.Is6(), part)
					}
					l.collect(map[uint32]*probe{q.id: q})
				}
				if q.seen != (q.decision.Verdict == verdict.Accepted) {
					t.Fatalf("%s %q, ruleset %d, joined: %v: %s by %q, but arrived: %v\n%+v\n%s", f, b, n, e.Joins(), q.decision.Verdict, q.decision.Rule, q.seen, q.packets, text)
				}
			}
			clean := "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*mangle\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
			if b == host.Legacy {
				l.load(f, clean)
			} else {
				l.loadNative("flush ruleset\n")
			}
		}
		fmt.Printf("%d sent twice\n", lost)
		for _, f := range host.Families {
			for _, joined := range []bool{false, true} {
				counts := verdicts[fmt.Sprintf("%s, joined: %v", f, joined)]
				if counts == nil {
					t.Fatalf("%s, joined: %v: none drawn", f, joined)
				}
				all := counts[0] + counts[1] + counts[2]
				fmt.Printf("%s, joined: %v: %d datagrams: %d accepted, %d dropped, %d unknown\n", f, joined, all, counts[verdict.Accepted], counts[verdict.Dropped], counts[verdict.Unknown])
				if counts[verdict.Unknown]*20 > all || counts[verdict.Accepted]*8 < all || counts[verdict.Dropped]*8 < all {
					t.Errorf("one verdict is rare, or many are unknown: the test says little")
				}
			}
		}
	})
}
