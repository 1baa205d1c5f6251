package trace

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds on logs, which anybody who may log can fill.
const (
	maxLog      = 64 << 20 // bytes that are read of one log: its end
	maxLogLine  = 16 << 10 // bytes; longer lines are skipped
	maxRecords  = 1000     // that are kept of one kind: the newest
	maxTextKept = 500      // bytes of a line that are kept
)

// logs are where syslog daemons write what sudo, su, sshd, cron and systemd
// say: Debian's and the Red Hat family's names, with the log before the last
// rotation.
var logs = []string{
	"/var/log/auth.log.1", "/var/log/auth.log", "/var/log/secure",
	"/var/log/syslog.1", "/var/log/syslog", "/var/log/messages",
}

// entry is a line of a log.
type entry struct {
	time  time.Time
	ident string // of the program, without its process ID
	text  string
}

// before reports whether an entry is older. Many logs have whole seconds only.
func (l entry) before(since time.Time) bool {
	if l.time.Nanosecond() == 0 {
		since = since.Truncate(time.Second)
	}
	return l.time.Before(since)
}

// readLogs reads what people ran as root and what became of services.
func (e *Evidence) readLogs(q Query) {
	paths := slices.Clone(logs)
	rotated, _ := filepath.Glob(q.Root + "/var/log/secure-*")
	for _, p := range rotated[max(0, len(rotated)-1):] {
		paths = append(paths, strings.TrimPrefix(p, q.Root))
	}
	loc := local(q.Root)
	for _, path := range paths {
		e.eachLine(q, path, func(n int, line string) {
			if l, ok := parseSyslog(line, q.Now, loc); ok && !l.before(q.Since) {
				e.take(l, place(path, n))
			}
		})
	}
}

// take keeps an entry of a log if it is evidence.
func (e *Evidence) take(l entry, where string) {
	record := Record{Where: where, Text: clip(l.ident + ": " + l.text), Time: l.time}
	if c, ok := parseCommand(l.ident, l.text); ok {
		c.Record = record
		// The journal often holds what a log holds.
		if !slices.ContainsFunc(e.Commands, func(o Command) bool {
			return o.Via == c.Via && o.User == c.User && o.Line == c.Line && o.Time.Unix() == c.Time.Unix()
		}) {
			e.Commands = newest(append(e.Commands, c))
		}
	}
	if l.ident == "systemd" {
		if name, did, ok := parseUnit(l.text); ok {
			e.Services = newest(append(e.Services, Service{name, did, record}))
		}
	}
}

// newest keeps the end of a list.
func newest[T any](list []T) []T { return list[max(0, len(list)-maxRecords):] }

// place is "path:line", or the path alone where the line is not known.
func place(path string, line int) string {
	if line == 0 {
		return path
	}
	return fmt.Sprintf("%s:%d", path, line)
}

// eachLine calls do with each line of a log that was written to since, and with its number
// from 1, or 0 where the log is too long to count. A log that is not there has
// no lines.
func (e *Evidence) eachLine(q Query, path string, do func(n int, line string)) {
	s, ok := stamp(q.Root + path)
	if !ok || s.Modified.Before(q.Since) {
		return
	}
	f, err := openRegular(q.Root + path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = scan(f, do)
		f.Close()
	}
	if err != nil {
		e.Notes = append(e.Notes, fmt.Sprintf("%s: %v: what it says was not looked at", path, bare(err)))
	}
}

func scan(f *os.File, do func(n int, line string)) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	counted := true
	if from := info.Size() - maxLog; from > 0 {
		counted = false
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
	}
	// It may be written to while it is read.
	r := bufio.NewReaderSize(io.LimitReader(f, maxLog), maxLogLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			_, err = r.ReadSlice('\n')
		}
		if len(line) > 0 && !long {
			at := n
			if !counted {
				at = 0
			}
			do(at, string(bytes.TrimRight(line, "\r\n")))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// parseSyslog reads a line as syslog daemons write it: with a time of RFC 3339
// or of RFC 3164 ("Nov  8 17:29:41", in local time and without a year, so the
// latest that is not after now), a host, and the program with its process ID.
func parseSyslog(line string, now time.Time, loc *time.Location) (entry, bool) {
	var l entry
	var rest string
	if len(line) > 16 && line[0] >= 'A' && line[0] <= 'Z' {
		t, err := time.ParseInLocation(time.Stamp, line[:15], loc)
		if err != nil || line[15] != ' ' {
			return l, false
		}
		year := now.In(loc).Year()
		l.time = time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, loc)
		if l.time.After(now.Add(24 * time.Hour)) {
			l.time = time.Date(year-1, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, loc)
		}
		rest = line[16:]
	} else {
		stamp, after, ok := strings.Cut(line, " ")
		t, err := time.Parse(time.RFC3339Nano, stamp)
		if !ok || err != nil {
			return l, false
		}
		l.time, rest = t, after
	}
	_, rest, ok := strings.Cut(rest, " ") // the host
	if !ok {
		return l, false
	}
	ident, text, ok := strings.Cut(rest, ": ")
	if !ok || strings.ContainsAny(ident, " \t") {
		return l, false
	}
	l.ident, _, _ = strings.Cut(ident, "[")
	l.text = strings.TrimSpace(text)
	return l, true
}

// parseCommand reads what a program that lets people be root logs about it.
func parseCommand(ident, text string) (Command, bool) {
	switch {
	case ident == "sudo":
		return parseSudo(text)
	case ident == "su":
		// su (shadow, util-linux): "(to root) alice on pts/0"
		if rest, ok := strings.CutPrefix(text, "(to root) "); ok {
			user, _, _ := strings.Cut(rest, " ")
			return Command{User: user, Via: "su"}, user != "root"
		}
	case ident == "doas":
		// "alice ran command sysctl -w x=1 as root from /home/alice"
		if user, rest, ok := strings.Cut(text, " ran command "); ok {
			line, from, _ := cutLast(rest, " as root from ")
			return Command{User: user, Via: "doas", Line: line, Dir: from}, from != ""
		}
	case ident == "sshd" || ident == "sshd-session":
		// "Accepted publickey for root from 192.0.2.7 port 5022 ssh2"
		if rest, ok := strings.CutPrefix(text, "Accepted "); ok {
			_, rest, _ = strings.Cut(rest, " for ")
			user, from, _ := strings.Cut(rest, " from ")
			address, _, _ := strings.Cut(from, " ")
			return Command{User: address, Via: "ssh"}, user == "root" && address != ""
		}
	case ident == "CRON" || ident == "crond" || ident == "cron":
		// "(root) CMD (/usr/local/sbin/firewall)"
		if rest, ok := strings.CutPrefix(text, "(root) CMD ("); ok {
			return Command{User: "root", Via: "cron", Line: strings.TrimSpace(strings.TrimSuffix(rest, ")"))}, true
		}
	case strings.HasPrefix(ident, "ansible-"):
		// "ansible-ansible.posix.sysctl: Invoked with name=… value=…"
		if rest, ok := strings.CutPrefix(text, "Invoked with "); ok {
			return Command{Via: "ansible", Line: strings.TrimPrefix(ident, "ansible-") + " " + rest}, true
		}
	}
	return Command{}, false
}

// parseSudo reads "alice : TTY=pts/0 ; PWD=/etc ; USER=root ; COMMAND=/usr/bin/vi
// sysctl.conf" (sudoers(5), "LOG FORMAT").
func parseSudo(text string) (Command, bool) {
	c := Command{Via: "sudo"}
	user, rest, ok := strings.Cut(text, " : ")
	if !ok || strings.ContainsAny(user, " \t") {
		return c, false
	}
	c.User = user
	fields, line, ok := strings.Cut(rest, "COMMAND=")
	if !ok || strings.Contains(fields, "command not allowed") || strings.Contains(fields, "incorrect password") || strings.Contains(fields, "a password is required") || strings.Contains(fields, "NOT in sudoers") {
		return c, false
	}
	root := false
	for f := range strings.SplitSeq(fields, ";") {
		switch name, value, _ := strings.Cut(strings.TrimSpace(f), "="); name {
		case "PWD":
			c.Dir = value
		case "USER":
			root = value == "root"
		}
	}
	c.Line = strings.TrimSpace(line)
	return c, root && c.Line != ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func clip(s string) string {
	if len(s) > maxTextKept {
		return s[:maxTextKept] + "…"
	}
	return s
}

func readUpTo(f *os.File, n int64) ([]byte, error) { return io.ReadAll(io.LimitReader(f, n)) }

// bare takes off the path that a *fs.PathError repeats.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
