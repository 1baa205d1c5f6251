package judge

import (
	"github.com/ctplan/ctplan/planner/host"
)

// Seen is what the tracked connections of a family show, in short.
type Seen struct {
	Forward  bool // some is routed
	Expected bool // some is there because a helper has read another, of whatever family
	ways     map[uint8]*[1 << 16]uint8
}

// Seen goes through the tracked connections, once.
func (j *Judge) Seen() *Seen {
	if j.seen != nil {
		return j.seen
	}
	s := &Seen{ways: map[uint8]*[1 << 16]uint8{}}
	flows := j.Connections.All()
	for i := range flows {
		f := &flows[i]
		s.Expected = s.Expected || f.Status&host.StatusExpected != 0
		if f.Orig.Src.Is4() != (j.Family == host.IPv4) {
			continue
		}
		ports := s.ways[f.Protocol]
		if ports == nil {
			ports = new([1 << 16]uint8)
			s.ways[f.Protocol] = ports
		}
		w := j.Places.Way(f.Orig.Src, f.Reply.Src)
		ports[f.Reply.SrcPort] |= 1 << w
		s.Forward = s.Forward || w == Forward
	}
	j.seen = s
	return s
}

// Ways are those of connections of a protocol that lead to a port.
func (s *Seen) Ways(proto uint8, port uint16) (out []Way) {
	ports := s.ways[proto]
	for w := In; ports != nil && w <= Loop; w++ {
		if ports[port]&(1<<w) != 0 {
			out = append(out, w)
		}
	}
	return out
}
