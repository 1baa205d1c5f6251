package verdict

// Unindexed is the same rules, scanned.
func Unindexed(e *Evaluator) *Evaluator {
	for h := range e.hooks {
		for i := range e.hooks[h] {
			c := *e.hooks[h][i].chain
			c.index = nil
			e.hooks[h][i].chain = &c
		}
	}
	return e
}
