package judge

import (
	"net/netip"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
)

// Kin is what the verdict of a tracked connection depends on: all of one kin
// share it, but for the port that names their service.
type Kin struct {
	proto    uint8
	liberal  bool
	opening  bool
	src, dst netip.Addr
	ports    [2]uint16 // by their class
	status   uint32
	mark     uint32
}

// KinOf is that of a connection. ok is false for one that has to be judged by
// itself: it is translated, may be the operator's, rules tell all ports apart, or
// its way goes by marks, of which routing may ask more.
func (j *Judge) KinOf(f *host.Flow) (k Kin, ok bool) {
	turned := host.Tuple{Src: f.Orig.Dst, Dst: f.Orig.Src, SrcPort: f.Orig.DstPort, DstPort: f.Orig.SrcPort}
	if j.classes == nil || !j.ways.none || f.Reply != turned || !protocol.CarriesPorts(f.Protocol) || f.Protocol == protocol.TCP && len(j.operators) > 0 {
		return k, false
	}
	return Kin{
		proto: f.Protocol, liberal: f.Liberal, opening: opening(f), src: f.Orig.Src, dst: f.Orig.Dst, status: f.Status, mark: f.Mark,
		ports: [2]uint16{j.classes[f.Orig.SrcPort], j.classes[f.Orig.DstPort]},
	}, true
}
