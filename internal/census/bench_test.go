package census

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/ctplan/ctplan/planner"
)

func BenchmarkAdd(b *testing.B) {
	flows := make([]planner.Flow, 250000)
	for i := range flows {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0a000000+uint32(i*7919))
		s, d := netip.AddrFrom4(a), netip.MustParseAddr("192.0.2.1")
		flows[i] = planner.Flow{Protocol: 6, TCPState: 3, Status: 14, Orig: planner.Tuple{Src: s, Dst: d, SrcPort: uint16(i), DstPort: uint16(i % 50000)}, Reply: planner.Tuple{Src: d, Dst: s, SrcPort: uint16(i % 50000)}}
	}
	for b.Loop() {
		c := New([]planner.Address{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}})
		for i := range flows {
			c.Add(&flows[i], 30)
		}
		c.Table(5, 5)
	}
}
