package census

// shortLived is up to how many seconds entries wait that are short-lived.
const shortLived = 600

// kind is entries that wait equally long when a packet comes: their numbers by
// how many seconds are left.
type kind struct {
	entries int64
	longest uint32
	left    [shortLived + 1]uint32
}

func (k *kind) add(timeout uint32) {
	k.entries++
	k.longest = max(k.longest, timeout)
	if timeout <= shortLived {
		k.left[timeout]++
	}
}

// perSecond is how many entries of the kind a packet came for in a second: no
// fewer come new. One that came at this very moment has the whole time left, one
// of the last second a second less.
func (k *kind) perSecond() int64 {
	n := k.left[k.longest]
	if k.longest > 0 {
		n = max(n, k.left[k.longest-1])
	}
	return int64(n)
}

// LevelsOff is below how many entries the table will stay, where it may be
// that what grows is short-lived: so much comes of it that it can be all the
// growth. It goes again after its timeouts, and so there are never more than
// come in that time (Little's law). It reports false where that does not explain
// the growth; where it does, long-lived entries may grow still.
func (c *Counter) LevelsOff(g Growth) (int64, bool) {
	var comes, level int64
	for _, s := range c.states {
		for i := range s.kinds {
			k := &s.kinds[i]
			if k.entries == 0 || k.longest > shortLived {
				level += k.entries
				continue
			}
			comes += k.perSecond()
			level += max(k.entries, k.perSecond()*int64(k.longest+1))
		}
	}
	return level, g.Grows() && float64(comes)+g.Error >= g.PerSecond
}
