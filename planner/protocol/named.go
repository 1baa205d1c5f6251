package protocol

// Field is what of a packet a rule compares.
type Field uint8

// The fields that tell services apart.
const (
	DestinationPort Field = iota
	SourcePort
	ICMPType // of either family
	Itself   // the protocol alone
)

// Named is a value, or a range of them, that a rule compares a field with,
// whether to match it or all others.
type Named struct {
	Protocol uint8 // 0: of any
	Field    Field
	From, To uint16
}
