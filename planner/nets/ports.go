package nets

import "github.com/ctplan/ctplan/planner/host"

// PortClasses sort ports by ranges: no range tells two of one class apart. The
// zero value has one class.
type PortClasses struct {
	ends map[uint16]bool // the first port of a class; 0 is one
}

// Add takes in a range.
func (c *PortClasses) Add(r host.PortRange) {
	if c.ends == nil {
		c.ends = map[uint16]bool{}
	}
	c.ends[r.From] = true
	if r.To < 65535 {
		c.ends[r.To+1] = true
	}
}

// Classes are the class of each port.
func (c *PortClasses) Classes() *[1 << 16]uint16 {
	class := new([1 << 16]uint16)
	n := uint16(0)
	for port := range class {
		if port > 0 && c.ends[uint16(port)] {
			n++
		}
		class[port] = n
	}
	return class
}
