package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/protocol"
	"github.com/ctplan/ctplan/providers/flows"
)

// carrier is what a transaction does to the kernel's table of connections: those
// that tracking is about to look at are put in before the rules change, in the
// order of Run and on every way back; entries that nothing meets any more are
// taken out at the end, and saved.
type carrier struct {
	host   *Host
	store  *journal.Store
	rules  *carry.Rules // by which connections are judged until the rules have changed
	asked  bool         // ctnetlink was loaded before
	put    []host.Flow  // of TCP, with short timeouts so far
	report journal.Table
}

// carryTime bounds each of these on the way back, which waits for nothing longer.
const carryTime = 5 * time.Second

// establishedKey says for how long an idle connection of TCP is tracked, in
// seconds; established is the kernel's default.
const (
	establishedKey = "net.netfilter.nf_conntrack_tcp_timeout_established"
	established    = 432_000
	countKey       = "net.netfilter.nf_conntrack_count"
)

// in puts in what is open and let through.
func (c *carrier) in(ctx context.Context) error {
	sockets, err := flows.Sockets()
	if err != nil {
		return err
	}
	over := carry.NewOver(c.rules, sockets, c.room())
	return c.write(func(t *flows.Table) error {
		if err := c.restore(ctx, over, t); err != nil {
			c.trouble(err) // sockets tell of most
		}
		return over.Rest(func(f *host.Flow) error {
			c.note(f)
			return errors.Join(t.Put(f, carry.Timeout(f.Protocol)), ctx.Err())
		})
	}, &c.report.Over, &over.Full)
}

// restore puts in again what was taken out and saved.
func (c *carrier) restore(ctx context.Context, over *carry.Over, t *flows.Table) error {
	r, age, err := c.store.SavedEntries(bootID(), now())
	if err != nil || r == nil {
		return err
	}
	defer r.Close()
	return flows.EachSaved(r, func(s *flows.Saved) error {
		left := max(0, int64(s.Timeout)-int64(age/time.Second))
		if timeout, ok := over.Saved(&s.Flow, uint32(left)); ok {
			if timeout == carry.Short {
				c.note(&s.Flow)
			}
			if err := t.Restore(s, timeout); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

func (c *carrier) note(f *host.Flow) {
	if f.Protocol == protocol.TCP {
		c.put = append(c.put, *f)
	}
}

// stay gives connections that are still open the time that tracking gives idle
// ones, and puts in those that came up while the rules changed. Entries of
// connections that have ended meanwhile expire.
func (c *carrier) stay(ctx context.Context) error {
	sockets, err := flows.Sockets()
	if err != nil {
		return err
	}
	late := carry.NewOver(c.rules, sockets, c.room())
	open := map[host.Tuple]bool{}
	for _, s := range sockets {
		if s.Protocol == protocol.TCP && !s.Listening {
			open[host.Tuple{Src: s.Local.Addr(), Dst: s.Remote.Addr(), SrcPort: s.Local.Port(), DstPort: s.Remote.Port()}] = true
		}
	}
	if err := c.write(func(t *flows.Table) error {
		return late.Rest(func(f *host.Flow) error {
			c.note(f)
			return errors.Join(t.Put(f, carry.Timeout(f.Protocol)), ctx.Err())
		})
	}, &c.report.Over, &late.Full); err != nil {
		return err
	}
	timeout := uint32(established)
	if text, err := c.host.Kernel.Sysctl(establishedKey); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32); err == nil {
			timeout = uint32(n)
		}
	}
	var renewed, none int64
	return c.write(func(t *flows.Table) error {
		for i := range c.put {
			f := &c.put[i]
			if open[f.Orig] || open[f.Reply] || open[host.Tuple{Src: f.Reply.Src, Dst: f.Orig.Src, SrcPort: f.Reply.SrcPort, DstPort: f.Orig.SrcPort}] {
				if err := errors.Join(t.Renew(f, timeout), ctx.Err()); err != nil {
					return err
				}
			}
		}
		return nil
	}, &renewed, &none)
}

// out takes out what nothing meets any more, once it is saved for the way back.
func (c *carrier) out(ctx context.Context, rules *carry.Rules) error {
	if size, err := c.host.Kernel.Hashsize(); err != nil || size == 0 {
		return err // asking for the table would load connection tracking
	}
	var n int64
	err := c.store.SaveEntries(bootID(), now(), func(w io.Writer) error {
		s, err := flows.NewSaver(w)
		if err != nil {
			return err
		}
		err = s.Save(ctx, func(e *flows.Entry) bool { return e.Zone == 0 && rules.Leaves(&e.Flow) })
		n = s.N
		return errors.Join(err, s.Flush())
	})
	if err != nil {
		return err
	}
	if n == 0 {
		return c.store.DropEntries()
	}
	r, _, err := c.store.SavedEntries(bootID(), now())
	if err != nil || r == nil {
		return err
	}
	defer r.Close()
	var none int64
	return c.write(func(t *flows.Table) error {
		return flows.EachSaved(r, func(s *flows.Saved) error { return errors.Join(t.Remove(s), ctx.Err()) })
	}, &c.report.Out, &none)
}

// write does something to the table, and counts what came of it.
func (c *carrier) write(do func(*flows.Table) error, done, full *int64) error {
	t, err := flows.OpenTable()
	if err != nil {
		return err
	}
	err = do(t)
	w, closed := t.Close()
	*done += w.Done
	failed, why := w.Failed()
	c.report.Failed += failed + *full
	if failed > 0 {
		c.trouble(fmt.Errorf("the kernel refused %d: %s", failed, why))
	}
	if *full > 0 {
		c.trouble(fmt.Errorf("the table has no room for %d: raise nf_conntrack_max", *full))
	}
	return errors.Join(err, closed)
}

// trouble keeps the first thing that went wrong.
func (c *carrier) trouble(err error) {
	if err != nil && c.report.Trouble == "" {
		c.report.Trouble = err.Error()
	}
}

// room is how many entries may be put in.
func (c *carrier) room() int64 {
	number := func(key string) int64 {
		text, err := c.host.Kernel.Sysctl(key)
		if err != nil {
			return 0
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		return n
	}
	return carry.Room(number(countKey), number(maxSysctl))
}

// told is the report for a journal; nil where nothing was done.
func (c *carrier) told() *journal.Table {
	if c == nil || c.report == (journal.Table{}) {
		return nil
	}
	r := c.report
	return &r
}

// carriesOver has the transaction carry connections over, judged by rules.
func (tx *transaction) carriesOver(rules *carry.Rules) error {
	store, err := journal.View(tx.env.Dir)
	if err != nil {
		return err
	}
	asked, err := tx.env.Host.Kernel.Loaded(ctnetlink)
	tx.carrier = &carrier{host: tx.env.Host, store: store, rules: rules, asked: asked}
	return err
}

// ctnetlink is the module that answers for the table, and stands on nf_conntrack.
const ctnetlink = "nf_conntrack_netlink"

// letGo unloads it where only asking for the table has loaded it: no plan knows of
// it, and it would keep nf_conntrack from being unloaded.
func (c *carrier) letGo(ctx context.Context) error {
	if c.asked {
		return nil
	}
	loaded, err := c.host.Kernel.Loaded(ctnetlink)
	if err != nil || !loaded {
		return err
	}
	return c.host.Kernel.Unload(ctx, ctnetlink)
}

// carryIn is done before the first step that has tracking look at connections. A
// plan that promises to keep them does not go on without.
func (tx *transaction) carryIn(ctx context.Context) error {
	c := tx.carrier
	err := c.in(ctx)
	if err == nil && c.report.Over == 0 && c.report.Failed > 0 {
		err = errors.New(c.report.Trouble)
	}
	if err == nil || tx.opts.Back {
		c.trouble(err)
		return nil
	}
	return fmt.Errorf("telling connection tracking of the connections that are open: %w (--no-carry goes without, and may cut them off)", err)
}

// carryBack is carryIn on the way back, by the rules as they stand now.
func (tx *transaction) carryBack(ctx context.Context) {
	if !tx.header.Carry || tx.rebooted || tx.env.Rules == nil || tx.carriesOver(nil) != nil {
		return
	}
	tx.carrier.bounded(ctx, func(ctx context.Context, c *carrier) (err error) {
		if c.rules, err = tx.env.Rules(ctx); err != nil {
			return err
		}
		return c.in(ctx)
	})
}

// backDone is for the table once everything is as it was: entries that a way back
// had put in go again.
func (tx *transaction) backDone(ctx context.Context) {
	if tx.carrier == nil || !tx.header.Carry || tx.rebooted || tx.env.Rules == nil {
		return
	}
	tx.carrier.bounded(ctx, func(ctx context.Context, c *carrier) error {
		if c.rules != nil {
			c.trouble(c.stay(ctx))
		}
		if !tx.header.Back { // what would have been tracked is so now, and nothing to take out
			return nil
		}
		rules, err := tx.env.Rules(ctx)
		if err != nil {
			return err
		}
		return c.out(ctx, rules)
	})
}

// bounded does something with the table on the way back, which must neither fail
// nor wait for it. What goes wrong is told.
func (c *carrier) bounded(ctx context.Context, do func(context.Context, *carrier) error) {
	ctx, cancel := context.WithTimeout(ctx, carryTime)
	defer cancel()
	work := *c // what has not ended in time has this to itself
	done := make(chan error, 1)
	go func() { done <- do(ctx, &work) }()
	select {
	case err := <-done:
		*c = work
		c.trouble(err)
	case <-ctx.Done():
		c.trouble(errSlowTable)
	}
}

var errSlowTable = fmt.Errorf("carrying connections over had not ended after %s, and was left", carryTime)

// TouchesTracking reports whether steps may change which connections are tracked.
func TouchesTracking(steps []change.Step) bool {
	for _, s := range steps {
		if s.Module != nil || s.Service != nil || s.NFT != nil || s.Rules != nil && rulesTrack(s.Rules) {
			return true
		}
	}
	return false
}

// rulesTrack looks at the words of rules that come and go: what untracks, and what
// asks for states.
func rulesTrack(s *change.RulesStep) bool {
	for _, sec := range s.Sections {
		for _, op := range sec.Ops {
			for _, rule := range append(append([]string{op.Rule}, op.Rules...), op.Was...) {
				if strings.Contains(rule, "NOTRACK") || strings.Contains(rule, "--notrack") || strings.Contains(rule, "state ") {
					return true
				}
			}
		}
	}
	return false
}
