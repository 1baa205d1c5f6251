package apply

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/run"
)

// telling is how long one of the commands may take that tell people.
const telling = 5 * time.Second

// Announce tells everybody who is logged in, and the log, that a transaction
// could not be taken back whole: by wall(1) and logger(1), or in the kernel's
// log where there is no logger. It does what it can.
func Announce(e *IncompleteError) {
	ctx := context.Background()
	tell := func(name, stdin string, args ...string) error {
		ctx, cancel := context.WithTimeout(ctx, telling)
		defer cancel()
		_, err := run.Exec{}.Run(ctx, run.Cmd{Path: name, Args: args, Stdin: stdin})
		return err
	}
	_ = tell("wall", e.summary()+"\n")
	line := strings.ReplaceAll(run.Printable(e.summary()), "  ", " ")
	if tell("logger", "", "-t", "ctplan", "-p", "daemon.crit", "--", line) == nil {
		return
	}
	if log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		_, _ = fmt.Fprintf(log, "<2>ctplan: %s\n", line)
		log.Close()
	}
}

// summary says in a few lines what is left, safe for a terminal.
func (e *IncompleteError) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ctplan: transaction %d could not be taken back whole: the host is between the old state and the new one", e.ID)
	const most = 5
	for i, l := range e.Left {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Left)-most)
			break
		}
		text := run.Printable(fmt.Sprintf("%s is not back as it was: %v", describe(l.Step), l.Err))
		fmt.Fprintf(&b, "\n  %.400s", text)
	}
	b.WriteString("\nto try again, and to see how to finish by hand: ctplan recover")
	return b.String()
}
