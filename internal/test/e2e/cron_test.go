package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// cronLine is the line of README.md that has cron look for drift.
var cronLine = regexp.MustCompile(`(?m)^\*/10 \* \* \* \*  root  /usr/sbin/(ctplan drift .*)$`)

// TestCron runs README.md's cron line, but every minute, by a real cron daemon
// on two hosts side by side: what differs is mailed, and where nothing does
// there is no mail.
func TestCron(t *testing.T) {
	if _, err := exec.LookPath("cron"); err != nil {
		testhost.Lacks(t, "needs cron")
	}
	readme, err := os.ReadFile(filepath.Join("..", "..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	line := cronLine.FindSubmatch(readme)
	if line == nil {
		t.Fatal("README.md has no cron line")
	}
	for _, drifted := range []bool{true, false} {
		name := map[bool]string{true: "drifted", false: "in-sync"}[drifted]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, "nft", "web-1", "/usr/sbin", "/var/spool", "/var/log")
			h.write("/etc/ctplan/main.hcl", untrackDNS)
			h.ctplan(exitOK, "apply", "--auto-approve", "/etc/ctplan")
			if drifted {
				h.sh("iptables -t raw -F CTPLAN-OUTPUT")
			}
			h.sh(`rm -rf /etc/cron* /var/spool/cron; mkdir -p /etc/cron.d /var/spool/cron/crontabs /run/mail /var/lib/prometheus/node-exporter
				chmod 1730 /var/spool/cron/crontabs; touch /etc/crontab
				printf '#!/bin/sh\ncat > /run/mail/$$.part; mv /run/mail/$$.part /run/mail/$$.mail\n' > /usr/sbin/sendmail
				chmod 755 /usr/sbin/sendmail
				printf '%s\n' "PATH=$PATH" "MAILTO=operator@example.com" '* * * * *  root  /run/test/` + string(line[1]) + `; echo $? >> /run/test/ran' > /etc/cron.d/ctplan`)
			cron := h.commandOf("cron", "-f")
			if err := cron.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cron.Process.Kill()
				cron.Wait()
			})
			ran := h.Path("/run/test/ran")
			for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
				if _, err := os.Stat(ran); err == nil {
					break
				}
				if time.Since(begun) > 100*time.Second {
					t.Fatal("cron has not run its job in 100 seconds")
				}
			}
			time.Sleep(2 * time.Second) // a mail is sent after its job
			cron.Process.Kill()
			statuses := strings.Fields(h.read("/run/test/ran"))
			mails, err := filepath.Glob(h.Path("/run/mail/*.mail"))
			if err != nil {
				t.Fatal(err)
			}
			if !drifted {
				if strings.Join(statuses, "") != strings.Repeat("0", len(statuses)) || len(mails) != 0 {
					t.Errorf("in sync: statuses %q, %d mails", statuses, len(mails))
				}
				return
			}
			if len(mails) != len(statuses) || statuses[0] != "2" {
				t.Fatalf("drifted: statuses %q, %d mails", statuses, len(mails))
			}
			mail, err := os.ReadFile(mails[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"To: operator@example.com", "~ iptables.ipv4.raw", "cause not known", "drift: 1 object differs"} {
				if !strings.Contains(string(mail), want) {
					t.Errorf("the mail lacks %q:\n%s", want, mail)
				}
			}
			t.Logf("%s", mail)
		})
	}
}
