package kernlog

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// line is one message of a log.
type line struct {
	at     time.Time
	kernel bool // the kernel's own; otherwise of use to "last message repeated" alone
	text   string
}

// parseKmsg reads a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg):
// "priority,sequence,microseconds,flags;text". The time is since boot, by a
// clock that is not set, so it may be seconds off after months.
func parseKmsg(record string, boot time.Time) (l line, seq uint64, ok bool) {
	head, text, ok := strings.Cut(record, ";")
	f := strings.Split(head, ",")
	if !ok || len(f) < 4 {
		return l, 0, false
	}
	priority, err1 := strconv.ParseUint(f[0], 10, 32)
	seq, err2 := strconv.ParseUint(f[1], 10, 64)
	usec, err3 := strconv.ParseInt(f[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || usec < 0 || usec > maxUptime.Microseconds() {
		return l, 0, false
	}
	text, _, _ = strings.Cut(text, "\n")
	// What programs write to /dev/kmsg has a facility of its own.
	return line{boot.Add(time.Duration(usec) * time.Microsecond), priority>>3 == 0, text}, seq, true
}

// maxUptime is longer than any machine runs, and short enough to add to a time.
const maxUptime = 100 * 365 * 24 * time.Hour

// parseJournal reads one object of journalctl -o json
// (systemd.journal-fields(7)).
func parseJournal(text []byte) (l line, ok bool) {
	var entry struct {
		Message   json.RawMessage `json:"MESSAGE"`
		Realtime  string          `json:"__REALTIME_TIMESTAMP"` // microseconds since 1970
		Transport string          `json:"_TRANSPORT"`
	}
	if json.Unmarshal(text, &entry) != nil {
		return l, false
	}
	usec, err := strconv.ParseInt(entry.Realtime, 10, 64)
	if err != nil || usec <= 0 || usec > maxUnix*1e6 {
		return l, false
	}
	var message string
	var octets []uint16 // what is not UTF-8 comes as an array of bytes
	if json.Unmarshal(entry.Message, &message) != nil && json.Unmarshal(entry.Message, &octets) == nil {
		var b strings.Builder
		for _, o := range octets {
			b.WriteByte(byte(o))
		}
		message = b.String()
	}
	return line{time.UnixMicro(usec), entry.Transport == "kernel", message}, true
}

// maxUnix is the last second of the year 9999.
const maxUnix = 253402300799

// parseSyslog reads a line of a text file: a time as in RFC 3164 or RFC 3339,
// the host, "kernel:" and the message, with or without the kernel's own time.
func parseSyslog(text string, now time.Time) (l line, ok bool) {
	at, rest, ok := syslogTime(text, now)
	if !ok {
		return l, false
	}
	_, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ") // the host
	if facility, behind, ok := strings.Cut(rest, " "); ok && strings.HasPrefix(facility, "kern.") {
		rest = behind // busybox
	}
	message, kernel := strings.CutPrefix(rest, "kernel:")
	return line{at, kernel, strings.TrimSpace(message)}, true
}

func syslogTime(text string, now time.Time) (at time.Time, rest string, ok bool) {
	if len(text) > 0 && text[0] >= '0' && text[0] <= '9' {
		word, rest, _ := strings.Cut(text, " ")
		at, err := time.Parse(time.RFC3339Nano, word)
		return at, rest, err == nil && at.Unix() > 0 && at.Unix() < maxUnix
	}
	if len(text) < len(time.Stamp) {
		return at, "", false
	}
	stamp, err := time.Parse(time.Stamp, text[:len(time.Stamp)])
	if err != nil {
		return at, "", false
	}
	// The year is the latest that does not lie ahead, a day of clocks apart.
	// February 29 is eight years back at most.
	for year := now.Year() + 1; year > now.Year()-9; year-- {
		at = time.Date(year, stamp.Month(), stamp.Day(), stamp.Hour(), stamp.Minute(), stamp.Second(), 0, now.Location())
		if at.Day() == stamp.Day() && !at.After(now.Add(24*time.Hour)) {
			return at, text[len(time.Stamp):], true
		}
	}
	return at, "", false
}

var (
	// The message is nf_conntrack's, and ip_conntrack's up to Linux 2.6.2x; the
	// module's name stands before it once or twice, by the kernel's age
	// (net/netfilter/nf_conntrack_core.c, __nf_conntrack_alloc).
	fullTable = regexp.MustCompile(`^(?:\[ *\d+\.\d+\] )?(?:(?:nf|ip)_conntrack: )+table full(?: in netns (\d{1,10}))?, dropping packet`)
	// lib/ratelimit.c, and printk_ratelimit of old.
	suppressed = regexp.MustCompile(`^(?:\[ *\d+\.\d+\] )?(?:printk|\w*ratelimit|\w*conntrack\w*): (\d{1,10}) (?:callbacks|messages) suppressed`)
	// syslogd, and rsyslog's $RepeatedMsgReduction.
	repeated      = regexp.MustCompile(`^last message repeated (\d{1,9}) times?`)
	repeatedWhole = regexp.MustCompile(`^message repeated (\d{1,9}) times: \[ ?(.*)\]$`)
)

// tally counts the messages of one source, in its order.
type tally struct {
	since time.Time
	netns uint64
	s     *Source

	full bool  // the message before was of a full table, of this namespace
	held int64 // suppressed before a message that is not there yet
}

func (t *tally) add(l line) {
	if m := repeated.FindStringSubmatch(l.text); m != nil {
		if t.full {
			t.count(l.at, number(m[1]))
		}
		return
	}
	if !l.kernel {
		return
	}
	if t.s.From.IsZero() || l.at.Before(t.s.From) {
		t.s.From = l.at
	}
	t.s.To = later(t.s.To, l.at)
	times, text := int64(1), l.text
	if m := repeatedWhole.FindStringSubmatch(text); m != nil {
		times, text = number(m[1]), m[2]
	}
	if m := suppressed.FindStringSubmatch(text); m != nil {
		switch n := number(m[1]); {
		case l.at.Before(t.since):
		case t.full:
			t.s.Suppressed += n
		default:
			t.held += n
		}
		return
	}
	m := fullTable.FindStringSubmatch(text)
	t.full = m != nil && (m[1] == "" || t.netns == 0 || uint64(number(m[1])) == t.netns)
	switch {
	case t.full:
		t.count(l.at, times)
		t.s.Suppressed += t.held
	case m != nil && !l.at.Before(t.since):
		t.s.Elsewhere += times
	}
	t.held = 0
}

func (t *tally) count(at time.Time, n int64) {
	if at.Before(t.since) || n == 0 {
		return
	}
	t.s.Messages += n
	if t.s.First.IsZero() || at.Before(t.s.First) {
		t.s.First = at
	}
	t.s.Last = later(t.s.Last, at)
}

// number reads digits that the expressions above have bounded.
func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
