package apply

// Manual is a shell command that does by hand what a rollback could not:
// Head, the quoted name of a file that holds Input, and Tail.
type Manual struct {
	Head, Input, Tail string
}

func manual(u undo) []string { return nil }
