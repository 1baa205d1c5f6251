package kernlog

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
)

var (
	now   = time.Date(2027, 1, 2, 12, 0, 0, 0, time.UTC)
	since = now.Add(-24 * time.Hour)
)

// scan counts what a file of syslogd says.
func scan(text string) Source {
	var s Source
	t := tally{since: since, netns: 4026532567, s: &s}
	for l := range strings.Lines(text) {
		if l, ok := parseSyslog(strings.TrimRight(l, "\n"), now); ok {
			t.add(l)
		}
	}
	return s
}

// TestForms has every form in which kernels and syslog daemons have written it.
func TestForms(t *testing.T) {
	const at = "Jan  2 11:00:00 gw-1 "
	for _, c := range []struct {
		text                            string
		messages, suppressed, elsewhere int64
	}{
		{at + "kernel: ip_conntrack: table full, dropping packet.", 1, 0, 0},
		{at + "kernel: [12345.678901] nf_conntrack: table full, dropping packet", 1, 0, 0},
		{at + "kernel: [    5.678901] nf_conntrack: nf_conntrack: table full, dropping packet", 1, 0, 0},
		{at + "kernel: nf_conntrack: nf_conntrack: table full in netns 4026532567, dropping packet", 1, 0, 0},
		{at + "kernel: nf_conntrack: nf_conntrack: table full in netns 4026531840, dropping packet", 0, 0, 1},
		{at + "kern.warn kernel: nf_conntrack: table full, dropping packet.", 1, 0, 0},
		{"2027-01-02T11:00:00.123456+00:00 gw-1 kernel: [ 1.2] nf_conntrack: table full, dropping packet", 1, 0, 0},
		{"2027-01-02T11:00:00Z gw-1 kernel: nf_conntrack: table full, dropping packet", 1, 0, 0},
		{at + "kernel: nf_conntrack: table full, dropping packet\n" + at + "last message repeated 7 times", 8, 0, 0},
		{at + "kernel: nf_conntrack: table full, dropping packet\n" + at + "sshd[1]: hello\n" + at + "kernel: eth0: up\n" + at + "last message repeated 7 times", 1, 0, 0},
		{at + "kernel: message repeated 4 times: [ nf_conntrack: table full, dropping packet]", 4, 0, 0},
		{at + "kernel: message repeated 4 times: [ [17.1] nf_conntrack: table full, dropping packet]", 4, 0, 0},
		{at + "kernel: net_ratelimit: 95 callbacks suppressed\n" + at + "kernel: nf_conntrack: table full, dropping packet", 1, 95, 0},
		{at + "kernel: nf_conntrack: table full, dropping packet\n" + at + "kernel: __ratelimit: 12 messages suppressed", 1, 12, 0},
		{at + "kernel: nf_conntrack: table full, dropping packet\n" + at + "kernel: printk: 3 messages suppressed.", 1, 3, 0},
		{at + "kernel: net_ratelimit: 95 callbacks suppressed\n" + at + "kernel: TCP: out of memory", 0, 0, 0},

		// What is not it.
		{at + "kernel: nf_conntrack: expectation table full", 0, 0, 0},
		{at + "kernel: IN=eth0 nf_conntrack: table full, dropping packet", 0, 0, 0},
		{at + "root: nf_conntrack: table full, dropping packet", 0, 0, 0},
		{at + "last message repeated 7 times", 0, 0, 0},
		{"Jan  1 11:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet", 0, 0, 0},
		{"Jan  3 13:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet", 0, 0, 0}, // a year ago, not ahead
		{"nf_conntrack: table full, dropping packet", 0, 0, 0},
		{"", 0, 0, 0},
	} {
		s := scan(c.text)
		if s.Messages != c.messages || s.Suppressed != c.suppressed || s.Elsewhere != c.elsewhere {
			t.Errorf("%s\n%d messages, %d suppressed, %d elsewhere; want %d, %d, %d", c.text, s.Messages, s.Suppressed, s.Elsewhere, c.messages, c.suppressed, c.elsewhere)
		}
		if c.messages > 0 && !s.First.Truncate(time.Second).Equal(now.Add(-time.Hour)) {
			t.Errorf("%s: at %s", c.text, s.First)
		}
	}
}

// TestYears gives times their year.
func TestYears(t *testing.T) {
	for text, want := range map[string]time.Time{
		"Jan  2 11:59:59": time.Date(2027, 1, 2, 11, 59, 59, 0, time.UTC),
		"Jan  3 11:59:59": time.Date(2027, 1, 3, 11, 59, 59, 0, time.UTC), // clocks differ
		"Jan  4 11:59:59": time.Date(2026, 1, 4, 11, 59, 59, 0, time.UTC),
		"Dec 31 23:59:59": time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC),
		"Feb 29 00:00:00": time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC),
	} {
		if got, _, ok := syslogTime(text+" h kernel: x", now); !ok || !got.Equal(want) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// TestRead merges sources that overlap, that have gaps, and that are not there.
func TestRead(t *testing.T) {
	const full = " gw-1 kernel: nf_conntrack: table full, dropping packet\n"
	root := testhost.Tree(t, map[string]string{
		"/var/log/kern.log.1":         "Dec 30 00:00:00 gw-1 kernel: begin\nJan  1 13:00:00" + full,
		"/var/log/kern.log":           "Jan  1 14:00:00" + full + "Jan  2 10:00:00 gw-1 kernel: last\n",
		"/var/log/messages-20261220":  "Dec 20 00:00:00 gw-1 kernel: older\n",
		"/var/log/messages-20261231":  "Jan  1 15:00:00" + full,
		"/var/log/messages":           "",
		"/var/log/syslog/is a folder": "",
		"/run/systemd/journal/socket": "",
	})
	journal := runner(func(args []string) ([]byte, error) {
		entry := func(at time.Time, message string) string {
			return fmt.Sprintf(`{"MESSAGE":%s,"__REALTIME_TIMESTAMP":"%d","_TRANSPORT":"kernel"}`+"\n", message, at.UnixMicro())
		}
		if strings.HasPrefix(args[1], "--until") {
			return nil, nil
		}
		return []byte(entry(now.Add(-3*time.Hour), `"boot"`) + entry(now.Add(-2*time.Hour), `[110,102,95,99,111,110,110,116,114,97,99,107,58,32,116,97,98,108,101,32,102,117,108,108,44,32,100,114,111,112,112,105,110,103,32,112,97,99,107,101,116]`) + "not JSON\n"), nil
	})
	f := Read(context.Background(), Options{Root: root, Runner: journal, Since: since, Now: now})
	var read []string
	for _, s := range f.Sources {
		read = append(read, fmt.Sprintf("%s: %d, %s, %t", s.Name, s.Messages, s.Unread, s.Absent))
	}
	if got, want := strings.Join(read, "\n"), `/dev/kmsg: 0, it does not exist, true
journal: 1, , false
/var/log/messages: 1, , false
/var/log/kern.log: 2, , false
/var/log/syslog: 0, it is no regular file, false`; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if f.Messages != 2 || !f.First.Equal(now.Add(-23*time.Hour)) || !f.Last.Equal(now.Add(-2*time.Hour)) {
		t.Errorf("%d messages from %s to %s", f.Messages, f.First, f.Last)
	}
	// The journal takes over from kern.log in its last hour.
	if want := time.Date(2026, 12, 30, 0, 0, 0, 0, time.UTC); !f.Reach.Equal(want) || !f.Covers(since) {
		t.Errorf("read from %s on, want %s", f.Reach, want)
	}

	// Without the journal nothing reaches until now.
	none := runner(func([]string) ([]byte, error) { return nil, &exec.Error{Name: "journalctl", Err: exec.ErrNotFound} })
	if f := Read(context.Background(), Options{Root: root, Runner: none, Since: since, Now: now}); f.Messages != 2 || !f.Reach.IsZero() || f.Covers(since) {
		t.Errorf("without the journal: %d messages, read from %s on", f.Messages, f.Reach)
	}
}

type runner func(args []string) ([]byte, error)

func (r runner) Run(_ context.Context, c run.Cmd) ([]byte, error) { return r(c.Args) }

func TestTail(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"log": strings.Repeat("x", 3*lineBytes) + "\nJan  2 11:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet" + strings.Repeat(" ", 2*lineBytes) + "\nJan  2 11:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet"})
	var s Source
	if err := tail(context.Background(), root+"/log", now, &tally{s: &s}); err != nil || s.Messages != 2 {
		t.Errorf("%d messages, %v", s.Messages, err)
	}
	big, err := os.Create(root + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	big.WriteString("Jan  1 11:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet\n")
	if err := big.Truncate(10 * tailBytes); err != nil { // zeros, no line among them
		t.Fatal(err)
	}
	big.Seek(0, 2)
	big.WriteString("\nJan  2 11:00:00 gw-1 kernel: nf_conntrack: table full, dropping packet\n")
	s = Source{}
	if err := tail(context.Background(), big.Name(), now, &tally{s: &s}); err != nil || s.Messages != 1 {
		t.Errorf("at the end of a huge file: %d messages, %v", s.Messages, err)
	}
}

// TestKernel fills a table and reads what this kernel writes about it.
func TestKernel(t *testing.T) {
	if os.Getenv("CTPLAN_NSTEST_INSIDE") == "" { // the child stands in the parent's room
		nstest.Machine(t)
		if err := os.WriteFile(nstest.Max, []byte("10"), 0); err != nil {
			t.Fatal(err)
		}
	}
	nstest.Inside(t, func(ns *nstest.NS) {
		ns.Use(host.NFT)
		ns.Run("iptables", "-A", "INPUT", "-m", "state", "--state", "ESTABLISHED")
		var here unix.Stat_t
		if err := unix.Stat("/proc/self/ns/net", &here); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		refused := 0
		for port := range 1000 {
			c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", 10_000+port))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("x")); err == syscall.EPERM || err != nil {
				refused++
			}
			c.Close()
		}
		if refused == 0 {
			t.Fatal("the table did not fill")
		}
		f := Read(context.Background(), Options{Since: begin.Add(-time.Second), Netns: here.Ino})
		t.Logf("%d sends refused; %d messages, %d suppressed, %d elsewhere, at %s (now %s), read from %s on", refused, f.Messages, f.Suppressed, f.Elsewhere, f.First, begin, f.Reach)
		for _, s := range f.Sources {
			t.Logf("%+v", s)
		}
		if s := f.Sources[0]; s.Unread != "" {
			testhost.Lacks(t, "/dev/kmsg cannot be read here: "+s.Unread)
		}
		if f.Messages == 0 {
			t.Error("no message of the full table was found")
		}
		if !f.Covers(begin) {
			t.Error("the log does not reach back a second")
		}
		if again := Read(context.Background(), Options{Since: time.Now().Add(time.Minute), Netns: here.Ino}); again.Messages != 0 {
			t.Errorf("%d messages of the future", again.Messages)
		}
	})
}

// FuzzLine holds any text, read as each kind of log, to what is promised.
func FuzzLine(f *testing.F) {
	f.Add("Jan  2 11:00:00 gw-1 kernel: [12345.678901] nf_conntrack: nf_conntrack: table full in netns 4026532567, dropping packet\nJan  2 11:00:01 gw-1 last message repeated 7 times\n")
	f.Add("2027-01-02T11:00:00.123456+00:00 gw-1 kernel: net_ratelimit: 95 callbacks suppressed\n2027-01-02T11:00:00.2+01:00 gw-1 kernel: ip_conntrack: table full, dropping packet.\n")
	f.Add("4,1234,86400000000,-;nf_conntrack: table full, dropping packet\n SUBSYSTEM=net\n4,1235,86400000001,-,caller=T1;message repeated 4 times: [ nf_conntrack: table full, dropping packet]")
	f.Add(`{"MESSAGE":"nf_conntrack: table full, dropping packet","__REALTIME_TIMESTAMP":"1798884000000000","_TRANSPORT":"kernel"}` + "\n" + `{"MESSAGE":[110,300,-1],"__REALTIME_TIMESTAMP":"1","_TRANSPORT":"kernel"}`)
	f.Add("Feb 29 11:00:00 gw-1 kernel: message repeated 999999999 times: [ [17.1] nf_conntrack: table full, dropping packet]")
	f.Fuzz(func(t *testing.T, text string) {
		for kind, parse := range map[string]func(string) (line, bool){
			"syslog":  func(s string) (line, bool) { return parseSyslog(s, now) },
			"journal": func(s string) (line, bool) { return parseJournal([]byte(s)) },
			"kmsg":    func(s string) (line, bool) { l, _, ok := parseKmsg(s, since.Add(-24*time.Hour)); return l, ok },
		} {
			var s Source
			tl := tally{since: since, netns: 4026532567, s: &s}
			for l := range strings.Lines(text) {
				if l, ok := parse(strings.TrimRight(l, "\n")); ok {
					tl.add(l)
				}
			}
			if s.Messages < 0 || s.Suppressed < 0 || s.Elsewhere < 0 || s.Messages > 0 == s.First.IsZero() {
				t.Errorf("%s: %+v", kind, s)
			}
			if s.Messages > 0 && (s.First.Before(since) || s.Last.Before(s.First)) || s.To.Before(s.From) {
				t.Errorf("%s: times %+v", kind, s)
			}
			if s.Messages > 0 && !strings.Contains(text, "conntrack: ") && kind != "journal" {
				t.Errorf("%s: %d messages", kind, s.Messages)
			}
		}
	})
}
