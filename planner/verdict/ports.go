package verdict

import (
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nets"
)

// PortClasses sort ports by what rules make of them: no rule tells two of one
// class apart.
type PortClasses struct {
	nets.PortClasses
	exact bool // some rule looks at ports in another way than by ranges
}

// note notes the ports that a rule names.
func (c *PortClasses) note(r *Rule) {
	for i := range r.matches {
		c.condition(&r.matches[i])
	}
	if r.program == nil {
		return
	}
	for i := range r.program.steps {
		s := &r.program.steps[i]
		switch {
		case s.kind == stepCondition:
			c.condition(s.cond)
		case s.kind != stepLoad:
		case s.field.Kind == FieldTransport && s.field.Offset < 4, s.field.Kind == FieldConnSrcPort, s.field.Kind == FieldConnDstPort:
			c.exact = true
		}
	}
}

func (c *PortClasses) condition(m *Condition) {
	switch m.kind {
	case matchPorts:
		for _, r := range m.ports {
			c.Add(r)
		}
	case matchNeitherPort:
		c.Add(host.PortRange{From: uint16(m.a), To: uint16(m.a)})
		c.Add(host.PortRange{From: uint16(m.b), To: uint16(m.b)})
	case matchCT:
		for _, t := range m.ct.Tuples {
			if !t.Network.IsValid() {
				c.Add(t.Ports)
			}
		}
	case matchSet:
		c.exact = c.exact || m.set.port
	}
}

// PortClass is the class of each port, by the rules that were compiled so far.
// ok is false where some of them tells every port from any other.
func (c *Compiler) PortClass() (class *[1 << 16]uint16, ok bool) {
	if c.ports.exact {
		return nil, false
	}
	return c.ports.Classes(), true
}
