package main

import (
	"time"

	"github.com/ctplan/ctplan/internal/apply"
	"github.com/ctplan/ctplan/internal/journal"
	"github.com/ctplan/ctplan/internal/lock"
	"github.com/ctplan/ctplan/planner/host"
)

func (e *env) stateDir() string { return e.root + journal.Dir }

// transaction is where ctplan's transactions happen.
func (e *env) transaction(host host.Host, lockTimeout time.Duration) apply.Env {
	return apply.Env{
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
