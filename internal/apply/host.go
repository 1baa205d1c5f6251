package apply

import (
	"context"
	"os"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner"
)

// Host is what a transaction changes. New gives the real one.
//
// Whatever a Host is interrupted in, Undo must be able to take back from where
// it stands: a rules step can stand after any of its sections, every other step
// stands either before or after.
type Host interface {
	// Observe returns what undoing the step will need to know beside the
	// step. It is called right before Do.
	Observe(ctx context.Context, s planner.Step) (journal.Before, error)

	// Test asks the kernel whether it would take the steps' rules, and
	// changes nothing.
	Test(ctx context.Context, steps []planner.Step) error

	// Do carries out one step.
	Do(ctx context.Context, s planner.Step) error

	// Undo brings what the step changes back to how it stood before, whether
	// the step happened, happened in part, or not at all, and reads it back.
	Undo(ctx context.Context, u Undo) error

	// Manual returns the shell commands by which an operator does what Undo
	// could not.
	Manual(u Undo) []string

	// Hold makes every command that the Host starts keep f open; nil ends it.
	Hold(f *os.File)
}

// Undo is a step to take back.
type Undo struct {
	Step   planner.Step
	Before journal.Before
	// Rebooted is whether the machine has started anew since: then the kernel
	// holds what the boot made of the files, and files alone are as they were left.
	Rebooted bool
}
