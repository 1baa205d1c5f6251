package verdict

// targetKind is what a rule does with a packet that it matches.
type targetKind uint8

const (
	targetNone targetKind = iota // counts, logs, changes what no rule looks at
	targetAccept
	targetDrop
	targetReturn
	targetJump
	targetGoto
	targetQueue // a program decides
	targetUnknown
	targetNotrack
	targetCT // a template: Untrack comes too late behind it
	targetNAT
	targetMark
	targetConnMark
	targetUnknownMark
	targetUnknownCMark
	targetSave    // value: bits of the packet's mark that go to the connection's; mask: those of that which make room
	targetRestore // the same the other way
	targetProxy
)

func (k targetKind) refuses() bool {
	return k == targetDrop || k == targetQueue || k == targetUnknown || k == targetProxy
}

// nftProxy is the value of a targetProxy that is nft's.
const nftProxy = 1

// Target is what a rule does with a packet that it matches. The zero Target
// goes on to the next rule, and changes nothing that rules look at.
type Target struct {
	kind        targetKind
	value, mask uint32
	to          string // a chain by this name is called in its place
}

// The targets without parameters.
var (
	Accept    = Target{kind: targetAccept}
	Drop      = Target{kind: targetDrop} // or reject
	Return    = Target{kind: targetReturn}
	Queue     = Target{kind: targetQueue}
	Anything  = Target{kind: targetUnknown} // nobody can know
	Untrack   = Target{kind: targetNotrack} // keeps the packet out of tracking
	Translate = Target{kind: targetNAT}     // gives the packet another destination

	SomeMark     = Target{kind: targetUnknownMark, mask: ^uint32(0)}  // one that cannot be told
	SomeConnMark = Target{kind: targetUnknownCMark, mask: ^uint32(0)} // the same of the connection

	Proxy       = Target{kind: targetProxy}                  // answers SYNs in the place of a server, as iptables has it
	NativeProxy = Target{kind: targetProxy, value: nftProxy} // as nft does
)

// Jump calls a chain, and Goto does without coming back. A chain that does not
// exist makes the rule one that nobody can know.
func Jump(chain string) Target { return Target{kind: targetJump, to: chain} }

// Goto is as Jump.
func Goto(chain string) Target { return Target{kind: targetGoto, to: chain} }

// Named is the target, unless there is a chain of this name: then that is
// called.
func (t Target) Named(chain string) Target {
	t.to = chain
	return t
}

// What a Target's mask says of the zone of a template.
const (
	zoneKnown   = 1
	zoneUnknown = 2
)

// Template attaches a template of tracking, behind which Untrack comes too late.
func Template() Target { return Target{kind: targetCT} }

// TemplateZone attaches a template that puts both ways of a connection into a
// zone; known is false where the packet tells which.
func TemplateZone(zone uint16, known bool) Target {
	if !known {
		return Target{kind: targetCT, mask: zoneUnknown}
	}
	return Target{kind: targetCT, value: uint32(zone), mask: zoneKnown}
}

// SetMark computes (mark &^ mask) ^ value, of the packet's mark.
func SetMark(value, mask uint32) Target { return Target{kind: targetMark, value: value, mask: mask} }

// SetConnMark does the same with the connection's.
func SetConnMark(value, mask uint32) Target {
	return Target{kind: targetConnMark, value: value, mask: mask}
}

// SaveMark gives the connection the bits of the packet's mark that are in
// nfmask, in the place of those in ctmask.
func SaveMark(nfmask, ctmask uint32) Target {
	return Target{kind: targetSave, value: nfmask, mask: ctmask}
}

// RestoreMark gives the packet the bits of its connection's mark that are in
// ctmask, in the place of those in nfmask.
func RestoreMark(nfmask, ctmask uint32) Target {
	return Target{kind: targetRestore, value: ctmask, mask: nfmask}
}
