package rules

// standing is what of a rule of a base chain matters to where the jump to our
// chain stands, in whatever language.
type standing struct {
	jump  bool // it leads to our chain
	bare  bool // and does so whatever the packet
	state bool // it asks for a connection's state
}

// place decides where, among n rules, the one jump to our chain stands: at is the
// index of the rule that it shall stand before, old are the jumps that go
// meanwhile. ok is false where all is as it should be.
//
// The jump stays where it is as long as nothing ahead of it swallows the whole of
// something that the chain lets through, which is what barrier says of a rule; a
// narrower rule ahead, such as an address blocklist, is the operator's business. A
// new jump goes where the first rule on connection state stands, or first, and
// never behind a rule that swallows.
func place(n int, rule func(i int) standing, barrier func(i int) bool) (at int, old []int, ok bool) {
	first := func(before int) int {
		for i := range before {
			if barrier(i) {
				return i
			}
		}
		return before
	}
	bare, state := -1, -1
	for i := range n {
		s := rule(i)
		if s.jump {
			old = append(old, i)
		}
		if s.bare && bare < 0 {
			bare = i
		}
		if s.state && state < 0 {
			state = i
		}
	}
	works := bare >= 0 && first(bare) == bare
	switch {
	case works && len(old) == 1:
		return 0, nil, false
	case works: // one jump too many is no reason to move the one that works
		return bare, old, true
	case n == 0:
		return 0, old, true
	}
	return min(max(state, 0), first(n)), old, true
}
