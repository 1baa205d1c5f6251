package trace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/testhost"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestParseSyslog(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	for _, tt := range []struct {
		line  string
		loc   *time.Location
		want  string // time in UTC
		ident string
		text  string
	}{
		{"Jan  2 03:04:00 web-1 sudo:    alice : TTY=pts/0", time.UTC, "2026-01-02T03:04:00Z", "sudo", "alice : TTY=pts/0"},
		{"Dec 31 23:59:59 web-1 sudo[12]: x", time.UTC, "2025-12-31T23:59:59Z", "sudo", "x"},
		{"Jan  2 04:04:00 web-1 systemd[1]: Started iptables.service.", berlin, "2026-01-02T03:04:00Z", "systemd", "Started iptables.service."},
		{"2026-01-02T04:04:00.123456+01:00 web-1 CRON[7]: (root) CMD (x)", time.UTC, "2026-01-02T03:04:00.123456Z", "CRON", "(root) CMD (x)"},
		{"2026-01-02 03:04:00 upgrade", time.UTC, "", "", ""},
		{"Jan 99 03:04:00 web-1 sudo: x", time.UTC, "", "", ""},
		{"Jan  2 03:04:00 web-1 message repeated 2 times: [ x]", time.UTC, "", "", ""},
		{"", time.UTC, "", "", ""},
	} {
		l, ok := parseSyslog(tt.line, now, tt.loc)
		if ok != (tt.want != "") {
			t.Errorf("%q: read %v", tt.line, ok)
			continue
		}
		if ok && (l.time.UTC().Format(time.RFC3339Nano) != tt.want || l.ident != tt.ident || l.text != tt.text) {
			t.Errorf("%q: %+v", tt.line, l)
		}
	}
}

func TestParseCommand(t *testing.T) {
	for _, tt := range []struct {
		ident, text string
		want        Command // zero: none
	}{
		{"sudo", "alice : TTY=pts/0 ; PWD=/etc ; USER=root ; COMMAND=/usr/bin/vi sysctl.conf", Command{User: "alice", Via: "sudo", Dir: "/etc", Line: "/usr/bin/vi sysctl.conf"}},
		{"sudo", "alice : PWD=/ ; USER=root ; ENV=A=b ; COMMAND=/bin/sh -c 'a ; COMMAND=b'", Command{User: "alice", Via: "sudo", Dir: "/", Line: "/bin/sh -c 'a ; COMMAND=b'"}},
		{"sudo", "alice : TTY=pts/0 ; PWD=/ ; USER=postgres ; COMMAND=/usr/bin/psql", Command{}},
		{"sudo", "alice : command not allowed ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh", Command{}},
		{"sudo", "alice : user NOT in sudoers ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh", Command{}},
		{"sudo", "pam_unix(sudo:session): session opened for user root(uid=0) by alice(uid=1000)", Command{}},
		{"su", "(to root) alice on pts/0", Command{User: "alice", Via: "su"}},
		{"su", "(to root) root on none", Command{}},
		{"doas", "alice ran command sysctl -w a=1 as root from /home/alice", Command{User: "alice", Via: "doas", Line: "sysctl -w a=1", Dir: "/home/alice"}},
		{"sshd", "Accepted publickey for root from 192.0.2.7 port 5022 ssh2: ED25519", Command{User: "192.0.2.7", Via: "ssh"}},
		{"sshd", "Accepted publickey for alice from 192.0.2.7 port 5022 ssh2", Command{}},
		{"CRON", "(root) CMD (/usr/local/sbin/firewall (x))", Command{User: "root", Via: "cron", Line: "/usr/local/sbin/firewall (x)"}},
		{"CRON", "(alice) CMD (true)", Command{}},
		{"ansible-ansible.posix.sysctl", "Invoked with name=a value=1", Command{Via: "ansible", Line: "ansible.posix.sysctl name=a value=1"}},
		{"kernel", "alice : USER=root ; COMMAND=/bin/sh", Command{}},
	} {
		c, ok := parseCommand(tt.ident, tt.text)
		if ok != (tt.want != Command{}) || ok && c != tt.want {
			t.Errorf("%s: %s: %+v, %v", tt.ident, tt.text, c, ok)
		}
	}
}

func TestParseUnit(t *testing.T) {
	for text, want := range map[string]string{
		"Started iptables.service - IPv4 firewall with iptables.": "iptables started",
		"Finished netfilter-persistent.service.":                  "netfilter-persistent started",
		"Reloaded firewalld.service - firewalld.":                 "firewalld reloaded",
		"Stopped ufw.service - Uncomplicated firewall.":           "ufw stopped",
		"Started nginx.service - nginx.":                          "",
		"Started IPv4 firewall with iptables.":                    "",
		"iptables.service: Succeeded.":                            "",
	} {
		name, did, ok := parseUnit(text)
		if got := strings.TrimSpace(name + " " + did); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v", text, got, ok)
		}
	}
}

func TestParseJournal(t *testing.T) {
	for line, want := range map[string]string{
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":"Started IPv4 firewall.","_PID":"1","_COMM":"systemd","UNIT":"iptables.service"}`:                        "systemd: Started iptables.service - IPv4 firewall.",
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":"Started iptables.service - IPv4.","_PID":"1","UNIT":"iptables.service"}`:                                "systemd: Started iptables.service - IPv4.",
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":"alice : x","_PID":"7","_COMM":"sudo","SYSLOG_IDENTIFIER":"evil"}`:                                       "sudo: alice : x",
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":"Invoked with x","_PID":"7","_COMM":"python3","SYSLOG_IDENTIFIER":"ansible-ansible.builtin.lineinfile"}`: "ansible-ansible.builtin.lineinfile: Invoked with x",
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":[1,2],"_PID":"1"}`:                                                                                       "",
		`{"MESSAGE":"x"}`: "",
		`not json`:        "",
	} {
		l, ok := parseJournal([]byte(line))
		if got := l.ident + ": " + l.text; ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v", line, got, ok)
		}
	}
}

func TestParseStat(t *testing.T) {
	const tail = " S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
	for stat, want := range map[string]string{
		"7 (kube-proxy)" + tail:  "kube-proxy",
		"7 (a) S (b)" + tail:     "a) S (b",
		"7 (kube-proxy) S 1 2 3": "",
		"":                       "",
	} {
		comm, start, ok := parseStat(stat)
		if ok != (want != "") || ok && (comm != want || start != 4242) {
			t.Errorf("%q: %q, %d, %v", stat, comm, start, ok)
		}
	}
}

// TestRoot reads a whole host from a tree.
func TestRoot(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"proc/stat":                             "cpu 1 2\nbtime 1767300000\n",
		"var/log/auth.log":                      "Jan  1 00:00:00 web-1 sudo: old : PWD=/ ; USER=root ; COMMAND=/bin/true\n" + strings.Repeat("x", 100_000) + "\nJan  2 03:00:00 web-1 sudo: alice : PWD=/ ; USER=root ; COMMAND=/sbin/iptables -F\n",
		"var/log/syslog":                        "Jan  2 03:00:00 web-1 systemd[1]: Started iptables.service - x.\n",
		"var/lib/dpkg/info/tool.list":           "/.\n/etc\n/etc/init.d\n/etc/init.d/iptables\n",
		"var/lib/dpkg/info/tool.md5sums":        "764efa883dda1e11db47671c4a3bbd9e  etc/init.d/iptables\n",
		"var/lib/dpkg/info/other:amd64.list":    "/.\n/etc/init.d/iptables2\n",
		"var/lib/dpkg/status":                   "Package: tool\nConffiles:\n /etc/x 0\n",
		"etc/init.d/iptables":                   "hi\n",
		"etc/tuned/active_profile":              "a\n",
		"usr/lib/tuned/a/tuned.conf":            "[main]\ninclude=a ../../evil\n[sysctl]\nnet.netfilter.nf_conntrack_max = \"9\"\n",
		"run/systemd/units/invocation:ufw":      "",
		"var/lock/subsys/ip6tables":             "",
		"var/log/dpkg.log":                      "2026-01-02 02:00:00 upgrade tool:all 1 2\n",
		"run/systemd/units/invocation:x.y":      "",
		"etc/firewalld/zones/public.xml":        "",
		"var/log/secure-20260101":               "Jan  2 03:00:01 web-1 su: (to root) bob on pts/1\n",
		"run/systemd/units/invocation:ufw.link": "-> nowhere",
	})
	if err := os.Symlink("0123", filepath.Join(root, "run/systemd/units/invocation:ufw.service")); err != nil {
		t.Fatal(err)
	}
	since := now.Add(-2 * time.Hour)
	e := Read(context.Background(), Query{Root: root, Since: since, Now: now, Files: []string{"/etc/init.d/iptables", "/none"}})
	if len(e.Notes) > 0 {
		t.Errorf("notes: %q", e.Notes)
	}
	if e.Booted.Unix() != 1767300000 {
		t.Errorf("booted %s", e.Booted)
	}
	if len(e.Files) != 1 {
		t.Errorf("files %v", e.Files)
	}
	if len(e.Commands) != 2 || e.Commands[0].User != "alice" || e.Commands[0].Where != "/var/log/auth.log:3" || e.Commands[1].Via != "su" {
		t.Errorf("commands %+v", e.Commands)
	}
	if len(e.Packages) != 1 || e.Packages[0].Name != "tool" || e.Packages[0].Version != "2" || !e.Packages[0].Delivered || e.Packages[0].Where != "/var/log/dpkg.log:1" {
		t.Errorf("packages %+v", e.Packages)
	}
	names := map[string]string{}
	for _, s := range e.Services {
		names[s.Name] += s.Did + " "
	}
	if want := "map[firewalld:ran  ip6tables:started  iptables:started  ufw:started ]"; fmt.Sprint(names) != want {
		t.Errorf("services %v, want %v", names, want)
	}
	if len(e.Settings) != 1 || e.Settings[0].Value != "9" || e.Settings[0].Where != "/usr/lib/tuned/a/tuned.conf:4" {
		t.Errorf("settings %+v", e.Settings)
	}
	// What is older is of no interest.
	e = Read(context.Background(), Query{Root: root, Since: time.Now().Add(time.Hour), Now: now, Files: []string{"/etc/init.d/iptables"}})
	if len(e.Commands)+len(e.Packages)+len(e.Services) > 0 {
		t.Errorf("of the future: %+v", e)
	}
}

// failing is a runner whose commands are not there, or fail.
type failing struct{ err error }

func (f failing) Run(context.Context, run.Cmd) ([]byte, error) { return nil, f.err }

// TestCommandsFail: a command that is missing is nothing to speak of, one that
// fails is a note.
func TestCommandsFail(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"var/lib/rpm/rpmdb.sqlite": "", "var/log/journal/x": "", "etc/x": ""})
	for _, tt := range []struct {
		err  error
		want int
	}{{fmt.Errorf("rpm: %w", exec.ErrNotFound), 0}, {context.DeadlineExceeded, 2}} {
		e := Read(context.Background(), Query{Root: root, Runner: failing{tt.err}, Now: now, Files: []string{"/etc/x"}})
		if len(e.Notes) != tt.want {
			t.Errorf("%v: notes %q, want %d", tt.err, e.Notes, tt.want)
		}
	}
}

// FuzzLogs: whatever a log holds, each parser takes it, and what it takes is
// bounded.
func FuzzLogs(f *testing.F) {
	for _, s := range []string{
		"Jan  2 03:04:00 web-1 sudo:    alice : TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/sh",
		"2026-01-02T04:04:00.123456+01:00 web-1 systemd[1]: Started iptables.service - x.",
		"2026-01-02 03:04:05 upgrade a:amd64 1 2",
		`{"__REALTIME_TIMESTAMP":"1767323045000000","MESSAGE":"x","_PID":"1"}`,
		"7 (kube-proxy) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0",
		"a\t1-1\t1767323045\t/etc/x\t00",
		"[main]\ninclude=b\n[sysctl]\na=b\n",
		"Package: a\nConffiles:\n /etc/x 0 obsolete\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if l, ok := parseSyslog(s, now, time.UTC); ok {
			if l.time.After(now.AddDate(1, 0, 0)) && s[0] >= 'A' {
				t.Errorf("%q is of %s", s, l.time)
			}
			var e Evidence
			e.take(l, "x")
			for _, c := range e.Commands {
				if len(c.Text) > maxTextKept+len("…") || c.Via == "" {
					t.Errorf("%+v", c)
				}
			}
		}
		if p, _, ok := parseRPM(s); ok && strings.Contains(p.Name+p.Path, "\t") {
			t.Errorf("%+v", p)
		}
		if u, ok := parseDpkgLog(s, time.UTC); ok && (u.name == "" && !strings.HasPrefix(s, " ") && !strings.Contains(s, ":") || u.time.IsZero()) {
			t.Errorf("%+v of %q", u, s)
		}
		parseJournal([]byte(s))
		parseStat(s)
		settings, _ := parseTuned("/p", s)
		for _, set := range settings {
			if !strings.HasPrefix(set.Where, "/p:") {
				t.Errorf("%+v", set)
			}
		}
		hasConffile(s, "a", "/etc/x", "0")
		hasSum(s, "/etc/x", "0")
		if got := owns(s, []string{"/etc/x"}); len(got) > 1 {
			t.Errorf("%q", got)
		}
	})
}
