package verify

import (
	"fmt"
	"time"

	"github.com/ctplan/ctplan/providers/flows"
	"github.com/ctplan/ctplan/providers/kernlog"
)

// log is whether the kernel has said that the table is full.
func (c *checker) log() {
	const name, what = "table_full", `no "table full, dropping packet" in the kernel's log`
	log := c.in.Log
	if log == nil {
		c.add(name, Skip, what, "no log was read")
		return
	}
	evidence := sources(log)
	switch {
	case log.Messages > 0:
		why := fmt.Sprintf("%s, the first of %s, the last of %s: packets were dropped for want of room", plural(log.Messages, "message is there", "messages are there"), stamp(log.First), stamp(log.Last))
		if log.Suppressed > 0 {
			why += fmt.Sprintf("; the kernel held back %s more", number(log.Suppressed))
		}
		c.add(name, Fail, what, why, evidence...)
	case log.Reach.IsZero():
		c.add(name, Skip, what, "no log that reaches until now can be read", evidence...)
	case !log.Covers(c.in.Since().Add(bootSlack)):
		c.add(name, Skip, what, "none was found, but the logs reach back to "+stamp(log.Reach)+" only", evidence...)
	default:
		why := ""
		if log.Elsewhere > 0 {
			why = plural(log.Elsewhere, "message is", "messages are") + " about other network namespaces"
		}
		c.add(name, Pass, what, why, evidence...)
	}
}

// bootSlack is how far apart the clocks may be by which the kernel's log and the
// uptime tell when the machine was started.
const bootSlack = 5 * time.Second

// sources says what each log came to.
func sources(log *kernlog.Full) []string {
	var out []string
	for _, s := range log.Sources {
		switch {
		case s.Unread != "":
			out = append(out, s.Name+": not read: "+s.Unread)
		case s.From.IsZero():
			out = append(out, s.Name+": nothing of the kernel's in it")
		default:
			out = append(out, fmt.Sprintf("%s: %s, read from %s to %s", s.Name, plural(s.Messages, "message", "messages"), stamp(s.From), stamp(s.To)))
		}
	}
	return out
}

// failing are the counters that count packets or connections lost, and what
// each is about (include/uapi/linux/netfilter/nf_conntrack_common.h, struct
// ip_conntrack_stat in net/netfilter/nf_conntrack_core.c).
var failing = []struct{ name, what string }{
	{"drop", "no packet dropped for want of an entry"},
	{"early_drop", "no connection thrown out for a new one"},
	{"insert_failed", "no connection lost to one that was there"},
	{"chaintoolong", "no connection refused for a hash chain too long"},
}

// counters is whether the kernel counts what failed.
func (c *checker) counters() {
	for _, f := range failing {
		c.counter(f.name, f.what)
	}
}

func (c *checker) counter(name, what string) {
	in := c.in
	if in.Stats == nil {
		if !in.Live.Conntrack.Loaded {
			c.add(name, Pass, what, "connection tracking is not there to do that")
			return
		}
		c.add(name, Skip, what, in.StatsErr)
		return
	}
	total, known := in.Stats.Total()[name]
	if !known {
		c.add(name, Skip, what, "this kernel does not count it")
		return
	}
	evidence := perCPU(in.Stats, name)
	if in.Watched > 0 && in.Before != nil {
		grown, known := in.Stats.Since(in.Before)[name]
		if !known {
			c.add(name, Skip, what, "it was not counted all the while", evidence...)
			return
		}
		why := fmt.Sprintf("%s in %s, %s since boot", number(grown), span(in.Watched), number(total))
		c.passes(grown == 0, name, what, why, evidence...)
		return
	}
	switch {
	case total == 0:
		c.add(name, Pass, what, "0 since boot", evidence...)
	case in.Change.Time.After(in.Boot):
		c.add(name, Skip, what, number(total)+" since boot, before the change or after it: --wait 60s tells", evidence...)
	default:
		c.add(name, Fail, what, number(total)+" since boot", evidence...)
	}
}

func perCPU(s *flows.Stats, name string) []string {
	var out []string
	for _, cpu := range s.CPUs {
		if n := cpu.Counters[name]; n > 0 {
			out = append(out, fmt.Sprintf("cpu %d: %d", cpu.CPU, n))
		}
	}
	return append(out, "read from "+s.From)
}
