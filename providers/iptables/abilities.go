package iptables

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/xtables"
)

// abilities are what an iptables-restore can do, which depends on its release
// and on what distributions put into theirs.
type abilities struct {
	// waits: it knows -w, takes the xtables lock and waits for it. Releases
	// before 1.6.2 take none, but Red Hat's later builds of 1.4.21 do.
	waits bool
	// knowsOwn: it finds what the same section has put there: a rule by number
	// beside another, a chain to empty once more. Up to 1.8.2 the nft backend puts
	// the second rule first, turns the order round, or flushes the chain; 1.8.4
	// refuses the third (RULE_INSERT failed); they die by a signal on emptying a
	// chain that they have filled, the former also on deleting from it.
	knowsOwn bool
}

// known are the abilities of programs that were asked, by path. A program that
// takes another's place is asked anew.
var known sync.Map // of probed

type probed struct {
	path string
	size int64
	at   time.Time // its modification time
}

// The first releases that can.
var (
	firstWaiting = xtables.Version{1, 6, 2}
	firstKnowing = xtables.Version{1, 8, 7}
)

// abilitiesOf finds out what the restore of a backend can do. Each program is
// asked once.
func (t Tools) abilitiesOf(ctx context.Context, b host.Backend, name string) (abilities, error) {
	path, err := run.LookPath(name)
	if err != nil {
		return abilities{}, err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return abilities{}, err
	}
	if filepath.Base(real) == "xtables-legacy-multi" { // since 1.8.0
		return abilities{waits: true, knowsOwn: true}, nil
	}
	info, err := os.Stat(real)
	if err != nil {
		return abilities{}, err
	}
	key := probed{path, info.Size(), info.ModTime()}
	if can, ok := known.Load(key); ok {
		return can.(abilities), nil
	}
	can, err := t.probe(ctx, b, name)
	if err == nil {
		known.Store(key, can)
	}
	return can, err
}

// probe asks a restore what it can do. What it does not say it cannot do: then
// the lock is taken for it, and tables are written whole.
func (t Tools) probe(ctx context.Context, b host.Backend, name string) (abilities, error) {
	_, number := t.askVersion(ctx, name)
	v := xtables.ParseVersion(number)
	if b == host.NFT {
		return abilities{waits: true, knowsOwn: knowsOwn(b, v)}, ctx.Err()
	}
	if v.Known() && !v.Before(firstWaiting) {
		return abilities{waits: true, knowsOwn: true}, nil
	}
	// The restore of 1.6.1 and earlier has no --version, and its usage says
	// "[ --wait=<seconds>" where somebody has taught it to wait.
	out, err := t.runner().Run(ctx, run.Cmd{Path: name, Args: []string{"--help"}})
	text := string(out)
	if failed := (*run.Error)(nil); errors.As(err, &failed) {
		text += failed.Stderr
	} else if err != nil {
		return abilities{}, err
	}
	return abilities{waits: strings.Contains(text, "--wait"), knowsOwn: true}, nil
}

// WritesWhole reports whether a release loads sections as whole tables: for
// Commit it does, where that release loses track of what a section has put there.
func WritesWhole(b host.Backend, version string, sections []change.Section) bool {
	return !knowsOwn(b, xtables.ParseVersion(version)) && takesUpOwn(sections)
}

// knowsOwn is that of abilities by the release alone.
func knowsOwn(b host.Backend, v xtables.Version) bool {
	return b == host.Legacy || v.Known() && !v.Before(firstKnowing)
}

// takesUpOwn reports whether a section goes back to a chain that it has put
// rules into. Several rules put first are no matter: they ask for no place.
func takesUpOwn(sections []change.Section) bool {
	for _, sec := range sections {
		filled, behind := map[string]bool{}, map[string]bool{}
		for _, op := range sec.Ops {
			first := op.Kind == change.InsertRule && op.Pos <= 1 && !behind[op.Chain]
			if filled[op.Chain] && !first {
				return true
			}
			behind[op.Chain] = !first
			filled[op.Chain] = op.Kind == change.InsertRule || len(op.Rules) > 0
		}
	}
	return false
}
