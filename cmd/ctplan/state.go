package main

import (
	"context"
	"time"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/carry"
	"github.com/ctplan/ctplan/planner/host"
)

func (e *env) stateDir() string { return e.root + journal.Dir }

// transaction is where ctplan's transactions happen.
func (e *env) transaction(host host.Host, lockTimeout time.Duration) apply.Env {
	rules := e.rulesNow
	if e.root != "" {
		rules = nil // the kernel's table is this machine's
	}
	return apply.Env{
		Rules:       rules,
		Host:        apply.NewHost(e.root),
		Dir:         e.stateDir(),
		LockPath:    e.root + lock.Path,
		LockTimeout: lockTimeout,
		Command:     "ctplan apply",
		Version:     readBuild().String(),
		Identity:    host,
		Announce:    apply.Announce,
	}
}

// rulesNow reads the host, and judges by its rules as they stand.
func (e *env) rulesNow(ctx context.Context) (*carry.Rules, error) {
	s, err := snapshot.Read(ctx, snapshot.Options{Root: e.root})
	if err != nil {
		return nil, err
	}
	s.ReadConnections(e.root, "", 1) // addresses, routes, listening sockets: not the table
	live, err := s.Live()
	if err != nil {
		return nil, err
	}
	return planner.CarryingNow(live), nil
}
