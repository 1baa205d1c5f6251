package trace

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/ctplan/ctplan/internal/run"
)

// maxJournal is how many entries of the journal are asked for: the newest.
const maxJournal = 5000

// readJournal asks journald, where it keeps a journal, for what people ran as
// root and what became of services. What it matches on are the fields that the
// journal sets itself (systemd.journal-fields(7)), which no process can forge.
func (e *Evidence) readJournal(ctx context.Context, q Query) {
	kept := false
	for _, dir := range []string{"/var/log/journal", "/run/log/journal"} {
		if _, ok := stamp(q.Root + dir); ok {
			kept = true
		}
	}
	if !kept {
		return
	}
	args := []string{"--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_COMM,_PID,SYSLOG_IDENTIFIER,UNIT",
		"--lines=" + strconv.Itoa(maxJournal), fmt.Sprintf("--since=@%d", q.Since.Unix())}
	if q.Root != "" {
		args = append(args, "--root="+q.Root)
	}
	args = append(args, "_PID=1", "+", "_COMM=sudo", "+", "_COMM=su", "+", "_COMM=doas", "+", "_COMM=sshd", "_UID=0", "+", "_COMM=sshd-session", "_UID=0", "+",
		"_COMM=cron", "+", "_COMM=crond", "+", "_COMM=python3", "_UID=0")
	out, err := q.Runner.Run(ctx, run.Cmd{Path: "journalctl", Args: args})
	if errors.Is(err, exec.ErrNotFound) {
		return
	}
	if err != nil {
		e.Notes = append(e.Notes, fmt.Sprintf("%v: what the journal says was not looked at", err))
		return
	}
	for line := range bytes.Lines(out) {
		if l, ok := parseJournal(line); ok && !l.before(q.Since) {
			e.take(l, "journal")
		}
	}
}

// parseJournal reads an entry as journalctl prints it with --output=json. A
// message that is not UTF-8 comes as a list of numbers and is left out.
func parseJournal(line []byte) (entry, bool) {
	var j struct {
		Time    string          `json:"__REALTIME_TIMESTAMP"` // microseconds
		Message json.RawMessage `json:"MESSAGE"`
		Comm    string          `json:"_COMM"`
		PID     string          `json:"_PID"`
		Ident   string          `json:"SYSLOG_IDENTIFIER"`
		Unit    string          `json:"UNIT"`
	}
	if json.Unmarshal(line, &j) != nil {
		return entry{}, false
	}
	var l entry
	usec, err := strconv.ParseInt(j.Time, 10, 64)
	if err != nil || json.Unmarshal(j.Message, &l.text) != nil {
		return entry{}, false
	}
	l.time = time.UnixMicro(usec)
	l.text = strings.TrimSpace(l.text)
	switch {
	case j.PID == "1":
		l.ident = "systemd"
		// Releases before 252 name the unit in a field of its own alone.
		if verb, rest, ok := strings.Cut(l.text, " "); ok && j.Unit != "" && !strings.Contains(rest, ".service") {
			l.text = verb + " " + j.Unit + " - " + rest
		}
	case strings.HasPrefix(j.Comm, "python"):
		l.ident = j.Ident
	case j.Comm == "cron" || j.Comm == "crond":
		l.ident = "CRON"
	default:
		l.ident = j.Comm
	}
	return l, true
}
