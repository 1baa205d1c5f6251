package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/planner"
)

// restartTime is how long one command of a service may take.
const restartTime = 2 * time.Minute

// observeService remembers what a restart takes away: rules, and the values
// that go with the module.
func (h *Host) observeService(ctx context.Context, s *planner.ServiceStep) (journal.Before, error) {
	module, err := h.observeModule()
	if err != nil {
		return journal.Before{}, err
	}
	before := journal.Before{Module: module}
	rulesets, err := h.served(ctx, s)
	if err != nil {
		return journal.Before{}, err
	}
	for _, r := range rulesets {
		before.Rules = append(before.Rules, journal.RulesBefore{Family: r.Family, Backend: r.Backend, Tables: planner.Lines(r)})
	}
	return before, nil
}

// served reads the rules that a service has brought.
func (h *Host) served(ctx context.Context, s *planner.ServiceStep) ([]planner.Ruleset, error) {
	var out []planner.Ruleset
	for _, r := range s.Rules {
		live, err := h.Rules.Save(ctx, r.Family, r.Backend)
		if err != nil {
			return nil, err
		}
		live.Family, live.Backend = r.Family, r.Backend
		out = append(out, live)
	}
	return out, nil
}

// restart runs the commands of a service, and has the module loaded again
// where nothing that the service brought needs it.
func (h *Host) restart(ctx context.Context, s *planner.ServiceStep) error {
	was, err := h.served(ctx, s)
	if err != nil {
		return err
	}
	size, err := h.Kernel.Hashsize()
	if err != nil {
		return err
	}
	for _, words := range s.Commands {
		if err := h.command(ctx, s, words); err != nil {
			return err
		}
	}
	if err := h.loadAgain(ctx, size); err != nil {
		return err
	}
	now, err := h.served(ctx, s)
	if err != nil || !s.KeepsRules {
		return err
	}
	for i := range was {
		if table := differing(planner.Lines(was[i]), now[i]); table != "" {
			return fmt.Errorf("after the restart the %s rules of table %s are not what they were", was[i].Family, table)
		}
	}
	return nil
}

// command runs one command of a service.
func (h *Host) command(ctx context.Context, s *planner.ServiceStep, words []string) error {
	for _, r := range s.Rules {
		delete(h.seen, rulesKey{r.Family, r.Backend})
	}
	if len(words) == 0 || h.Command == nil {
		return errNoStep
	}
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	err := h.Command(ctx, words)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s did not end within %s: %w", strings.Join(words, " "), restartTime, err)
	}
	return err
}

// loadAgain loads nf_conntrack where it was loaded, with size buckets, and is
// no more.
func (h *Host) loadAgain(ctx context.Context, size int64) error {
	now, err := h.Kernel.Hashsize()
	if err != nil || size == 0 || now > 0 {
		return err
	}
	return h.Kernel.Load(ctx, nfConntrack)
}

// differing names a table that treats packets otherwise than it did; "" where
// none does.
func differing(was []planner.TableLines, now planner.Ruleset) string {
	for _, t := range tablesOfBoth(was, now) {
		before := planner.Ruleset{Tables: []planner.Table{tableOf(t)}}
		if digest(planner.Model(before, t.Name)) != digest(planner.Model(now, t.Name)) {
			return t.Name
		}
	}
	return ""
}

// tablesOfBoth are the tables as they were, and as empty those that have come
// since.
func tablesOfBoth(was []planner.TableLines, now planner.Ruleset) []planner.TableLines {
	out := append([]planner.TableLines{}, was...)
	for _, t := range planner.Lines(now) {
		known := false
		for _, w := range was {
			known = known || w.Name == t.Name
		}
		if !known {
			empty := planner.Ruleset{}
			out = append(out, planner.TableLines{Name: t.Name, Lines: planner.Model(empty, t.Name).Lines()})
		}
	}
	return out
}

// tableOf reads lines as iptables-save printed them.
func tableOf(t planner.TableLines) planner.Table {
	out := planner.Table{Name: t.Name}
	for _, l := range t.Lines {
		if decl, ok := strings.CutPrefix(l, ":"); ok {
			chain, policy, _ := strings.Cut(decl, " ")
			out.Chains = append(out.Chains, planner.ChainDecl{Name: chain, Policy: policy})
			continue
		}
		chain, rule, _ := strings.Cut(strings.TrimPrefix(l, "-A "), " ")
		out.Rules = append(out.Rules, planner.Rule{Chain: chain, Text: rule})
	}
	return out
}

// undoService restarts the service again, with the old files by then, and puts
// back what that does not bring. A command that fails is no failure as long as
// everything is as it was in the end. After a reboot there is nothing to do:
// the boot has started the service.
func (h *Host) undoService(ctx context.Context, u undo) error {
	if u.Rebooted {
		return nil
	}
	s := u.Step.Service
	var failed error
	for _, words := range s.Commands {
		failed = errors.Join(failed, h.command(ctx, s, words))
	}
	for _, was := range u.Before.Rules {
		now, err := h.Rules.Save(ctx, was.Family, was.Backend)
		if err != nil {
			return errors.Join(failed, err)
		}
		if differing(was.Tables, now) == "" {
			continue
		}
		if err := h.Rules.Replace(ctx, was.Family, was.Backend, tablesOfBoth(was.Tables, now)); err != nil {
			return errors.Join(failed, err)
		}
		if now, err = h.Rules.Save(ctx, was.Family, was.Backend); err != nil {
			return errors.Join(failed, err)
		}
		if table := differing(was.Tables, now); table != "" {
			return errors.Join(failed, fmt.Errorf("read back after the rollback, the %s rules of table %s are not what they were", was.Family, table))
		}
	}
	b := u.Before.Module
	if b == nil {
		return nil
	}
	if err := h.loadAgain(ctx, b.Hashsize); err != nil {
		return errors.Join(failed, err)
	}
	return h.restoreValues(b)
}
