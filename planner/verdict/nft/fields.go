package nft

import (
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/planner/verdict"
)

// payload loads bytes of a header, or writes them.
func (b *builder) payload(e *host.NFTExpr) {
	const link, network, transport = 0, 1, 2
	if e.Sets {
		if b.rewrites(e) {
			b.vague()
			b.anything = true
		}
		return
	}
	kinds := map[uint32]verdict.FieldKind{link: verdict.FieldLink, network: verdict.FieldNetwork, transport: verdict.FieldTransport}
	kind, ok := kinds[e.Base]
	if !ok {
		kind = verdict.FieldDoubtful
	}
	if e.Len > 64 || e.Offset > 1<<16 {
		b.vague()
		return
	}
	b.field(e.Dst, verdict.Field{Kind: kind, Offset: int(e.Offset), Len: int(e.Len)}, int(e.Len))
}

// rewrites is whether a write changes what rules look at, and are known to.
func (b *builder) rewrites(e *host.NFTExpr) bool {
	const network, transport = 1, 2
	over := func(from, to uint32) bool { return e.Offset < to && from < e.Offset+e.Len }
	switch {
	case e.Base == network && b.l.family == host.IPv6:
		return over(4, 7) || over(8, 40)
	case e.Base == network:
		return over(2, 4) || over(6, 8) || over(9, 10) || over(12, 20)
	case e.Base == transport && b.proto == protocol.TCP:
		return over(0, 4) || over(13, 14)
	}
	return e.Base == transport && over(0, 6)
}

// Keys of meta (enum nft_meta_keys).
const (
	metaLength = iota
	metaEtherType
	metaPriority
	metaMark
	metaIn
	metaOut
	metaInName
	metaOutName
	metaInType
	metaOutType
	metaUser
	metaGroup
	metaTrace
	metaRealm
	metaSecmark
	metaFamily
	metaProtocol
	metaBridgeIn
	metaBridgeOut
	metaPktType
	metaCPU
	metaInGroup
	metaOutGroup
	metaCgroup
	metaRandom
	metaSecpath
	metaInKind
	metaOutKind
	metaBridgeVLAN
	metaBridgeProto
	metaTime
	metaDay
	metaHour
	metaSlave
	metaSlaveName
)

// metaFields are those that are what they are of any packet.
var metaFields = map[uint32]verdict.FieldKind{
	metaLength: verdict.FieldLength, metaEtherType: verdict.FieldEtherType, metaMark: verdict.FieldMark, metaIn: verdict.FieldInIndex, metaOut: verdict.FieldOutIndex,
	metaInName: verdict.FieldInName, metaOutName: verdict.FieldOutName, metaUser: verdict.FieldUser, metaGroup: verdict.FieldGroup, metaFamily: verdict.FieldFamily,
	metaInType: verdict.FieldInType, metaOutType: verdict.FieldOutType, metaProtocol: verdict.FieldProtocol, metaPktType: verdict.FieldPktType,
}

func (b *builder) meta(e *host.NFTExpr) {
	if e.Sets {
		switch e.Key {
		case metaMark:
			b.effect(e.Src, (*verdict.Program).SetMark)
		case metaPktType:
			b.vague()
			b.anything = true
		}
		return
	}
	if kind, ok := metaFields[e.Key]; ok {
		f := verdict.Field{Kind: kind}
		b.field(e.Dst, f, f.Size())
		return
	}
	n := 4
	switch e.Key {
	case metaTime:
		n = 8
	case metaInKind, metaOutKind, metaBridgeIn, metaBridgeOut, metaSlaveName:
		n = 16
	case metaDay, metaSecpath:
		n = 1
	case metaBridgeVLAN, metaBridgeProto:
		n = 2
	}
	b.field(e.Dst, verdict.Field{Kind: verdict.FieldDoubtful, Len: n}, n)
}

// effect has the program set something to a register.
func (b *builder) effect(src uint32, set func(*verdict.Program, int)) {
	at := register(src)
	if at < 0 {
		b.vague()
		b.anything = true
		return
	}
	b.read(at, 4)
	b.settle()
	set(b.program(), at)
}

// Keys of ct (enum nft_ct_keys).
const (
	ctState = iota
	ctDirection
	ctStatus
	ctMark
	ctSecmark
	ctExpiration
	ctHelper
	ctFamily
	ctSource
	ctDestination
	ctProtocol
	ctSourcePort
	ctDestinationPort
	ctLabels
	ctPackets
	ctBytes
	ctAverage
	ctZone
	ctEventMask
	ctSourceIP
	ctDestinationIP
	ctSourceIP6
	ctDestinationIP6
	ctID
)

var ctFields = map[uint32]verdict.FieldKind{
	ctState: verdict.FieldState, ctDirection: verdict.FieldDirection, ctStatus: verdict.FieldStatus, ctMark: verdict.FieldConnMark, ctFamily: verdict.FieldConnFamily,
	ctSource: verdict.FieldConnSource, ctDestination: verdict.FieldConnDest, ctProtocol: verdict.FieldConnProto, ctSourcePort: verdict.FieldConnSrcPort,
	ctDestinationPort: verdict.FieldConnDstPort, ctZone: verdict.FieldZone,
	ctSourceIP: verdict.FieldConnSource, ctDestinationIP: verdict.FieldConnDest, ctSourceIP6: verdict.FieldConnSource, ctDestinationIP6: verdict.FieldConnDest,
}

func (b *builder) ct(e *host.NFTExpr) {
	if e.Sets {
		switch e.Key {
		case ctMark:
			b.effect(e.Src, (*verdict.Program).SetConnMark)
		case ctZone:
			b.effect(e.Src, func(p *verdict.Program, at int) { p.Template(at, e.Dir == "") })
		}
		return
	}
	kind, ok := ctFields[e.Key]
	f := verdict.Field{Kind: kind, Reply: e.Dir == "reply"}
	n := f.Size()
	six := b.l.family == host.IPv6
	switch {
	case !ok:
		n = 16
		f = verdict.Field{Kind: verdict.FieldOfConnection, Len: n}
	case e.Key == ctSourceIP || e.Key == ctDestinationIP:
		if six {
			f.Kind = verdict.FieldNone
		}
	case e.Key == ctSourceIP6 || e.Key == ctDestinationIP6:
		if n = 16; !six {
			f.Kind = verdict.FieldNone
		}
	case (e.Key == ctSource || e.Key == ctDestination) && six:
		n = 16
	}
	if f.Kind == verdict.FieldNone {
		f.Len = n
	}
	b.field(e.Dst, f, n)
}

// fib asks the routes (enum nft_fib_result, NFTA_FIB_F_…).
func (b *builder) fib(e *host.NFTExpr) {
	const index, name, addressType = 1, 2, 3
	const source, destination, in, out, exists = 1, 2, 8, 16, 32
	switch {
	case e.Key == addressType:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldAddressType, Destination: e.Flags&destination != 0, Narrowed: e.Flags&(in|out) != 0}, 4)
	case e.Flags&exists != 0 && (e.Key == index || e.Key == name):
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldWayBack, Exists: true, Destination: e.Flags&source == 0, Len: 1}, 1)
	case e.Key == index:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldWayBack, Destination: e.Flags&source == 0}, 4)
	default:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldUnknown, Len: 16}, 16)
	}
}

// exthdr loads of extension headers, of which no packet here has any but that of
// fragments, and of options, of which nobody knows whether they are there.
func (b *builder) exthdr(e *host.NFTExpr) {
	const ipv6, ipv4 = 0, 2 // NFT_EXTHDR_OP_…
	const present = 1       // NFT_EXTHDR_F_PRESENT
	n := int(min(e.Len, 16))
	const fragment = 44
	none := e.Op == ipv6 || e.Op == ipv4
	if !e.Sets && e.Op == ipv6 && e.Key == fragment {
		f := verdict.Field{Kind: verdict.FieldFragment, Offset: int(min(e.Offset, 64)), Len: max(n, 1), Exists: e.Flags&present != 0}
		if f.Exists {
			f.Len = 1
		}
		b.field(e.Dst, f, f.Len)
		return
	}
	switch at := register(e.Dst); {
	case e.Sets: // the size of segments, and such
	case e.Flags&present != 0 && none && at >= 0:
		b.write(at, 1)
		b.program().Value([]byte{0}, at)
	case e.Flags&present != 0:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldUnknown, Len: 1}, 1)
	case none:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldNone, Len: max(n, 1)}, max(n, 1))
	default:
		b.field(e.Dst, verdict.Field{Kind: verdict.FieldDoubtful, Len: max(n, 1)}, max(n, 1))
	}
}
