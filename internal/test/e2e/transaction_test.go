package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDiskRefuses has the disk refuse ctplan at every place where it writes:
// the host stays as it was, and the error says why and what to do.
func TestDiskRefuses(t *testing.T) {
	const onTmpfs = `mkdir -p %[1]s; cp -a %[1]s /run/test/copy; mount -t tmpfs -o size=16m,mode=%[2]s tmpfs %[1]s; cp -a /run/test/copy/. %[1]s/; `
	const full = `cat /dev/zero > %[1]s/fill 2>/dev/null || true`
	for name, c := range map[string]struct {
		refuse string
		says   []string
	}{
		"full etc":         {fmt.Sprintf(onTmpfs+full, "/etc", "755"), []string{"no space left on device", "make room", "everything was put back as it was"}},
		"read-only etc":    {fmt.Sprintf(onTmpfs, "/etc", "755") + "mount -o remount,ro /etc", []string{"read-only", "everything was put back as it was"}},
		"immutable file":   {"chattr +i /etc/iptables/rules.v4", []string{"/etc/iptables/rules.v4", "chattr -i", "everything was put back as it was"}},
		"full state":       {fmt.Sprintf(onTmpfs+full, "/var/lib/ctplan", "700"), []string{"no space left on device", "nothing was changed"}},
		"read-only state":  {fmt.Sprintf(onTmpfs, "/var/lib/ctplan", "700") + "mount -o remount,ro /var/lib/ctplan", []string{"read-only file system"}},
		"state is no dir":  {"rm -rf /var/lib/ctplan; touch /var/lib/ctplan", []string{"/var/lib/ctplan"}},
		"state of others":  {"mkdir -p /var/lib/ctplan; chmod 0777 /var/lib/ctplan", []string{"/var/lib/ctplan", "others"}},
		"lock is a folder": {"mkdir /run/ctplan.lock", []string{"/run/ctplan.lock"}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backends[len(name)%2], "web-1")
			debian(h)
			h.sh("iptables -t raw -S; ip6tables -t raw -S") // a table of the legacy backend stays
			path := h.config(webUntracked)
			h.ctplan(exitChanges, "plan", "--detailed-exitcode", path)
			h.sh(c.refuse)
			before := h.state()
			r := h.try("apply", "--auto-approve", path)
			h.refused(before, r, exitError, c.says...)
			if strings.Contains(r.stderr, "incomplete") {
				t.Errorf("not everything was put back:\n%s", r.stderr)
			}
			if name == "immutable file" {
				h.sh("chattr -i /etc/iptables/rules.v4")
				h.ctplan(exitOK, "apply", "--auto-approve", path)
			}
		})
	}
}

// TestTwentyAtOnce starts twenty ctplans on one host: one changes it, and each
// of the others says who was at it, or finds nothing left to do.
func TestTwentyAtOnce(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	debian(h)
	path := h.config(webUntracked)
	results := make([]result, 20)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = h.try("apply", "--auto-approve", path) })
	}
	wg.Wait()
	held := regexp.MustCompile(`another ctplan is at work on this host: process \d+ \(ctplan apply`)
	count := map[string]int{}
	for _, r := range results {
		switch {
		case r.status == exitOK && strings.Contains(r.stdout, "applied: "):
			count["applied"]++
		case r.status == exitOK && strings.Contains(r.stdout, "no changes"):
			count["nothing left to do"]++
		case r.status == exitError && held.MatchString(r.stderr):
			count["lock held"]++
		case r.status == exitError && strings.Contains(r.stderr, "the host changed while"):
			count["changed meanwhile"]++
		default:
			t.Errorf("exit status %d\n%s\n%s", r.status, r.stdout, r.stderr)
		}
	}
	t.Logf("of %d at once: %v", len(results), count)
	if count["applied"] != 1 {
		t.Errorf("%d changed the host", count["applied"])
	}
	h.ctplan(exitOK, "drift", path)
	if got := strings.Count(h.ctplan(exitOK, "history").stdout, "committed"); got != 1 {
		t.Errorf("%d transactions in the history", got)
	}
}

// terminal runs a command on a terminal of its own, and collects what it
// prints there. Hanging up is the end of its session.
func terminal(t *testing.T, cmd *exec.Cmd) (text func() string, hangUp func()) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var out bytes.Buffer
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			mu.Lock()
			out.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	hangUp = sync.OnceFunc(func() { master.Close() })
	t.Cleanup(func() {
		cmd.Process.Kill()
		hangUp()
	})
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return out.String()
	}, hangUp
}

// TestConfirmWithin lets the time to confirm pass, with apply on a terminal
// that counts down, with the terminal gone and with apply killed: within the
// time and two seconds everything is as it was. Confirmed, it stays.
func TestConfirmWithin(t *testing.T) {
	const within = 5 * time.Second
	for name, then := range map[string]func(h *host, cmd *exec.Cmd, hangUp func()){
		"nobody answers": func(*host, *exec.Cmd, func()) {},
		"terminal gone":  func(_ *host, _ *exec.Cmd, hangUp func()) { hangUp() },
		"killed":         func(_ *host, cmd *exec.Cmd, _ func()) { cmd.Process.Kill() },
		"interrupted":    func(_ *host, cmd *exec.Cmd, _ func()) { cmd.Process.Signal(os.Interrupt) },
		"confirmed":      func(h *host, _ *exec.Cmd, _ func()) { h.ctplan(exitOK, "confirm") },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, "nft", "web-1")
			debian(h)
			path := h.config(webUntracked)
			before := h.state()
			cmd := h.command("apply", "--auto-approve", "--confirm-within", within.String(), path)
			text, hangUp := terminal(t, cmd)
			await := func(what string, limit time.Duration, ok func() bool) {
				t.Helper()
				for begun := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
					if time.Since(begun) > limit {
						t.Fatalf("no %s within %v; on the terminal:\n%q", what, limit, text())
					}
				}
			}
			await("countdown", 30*time.Second, func() bool { return strings.Contains(text(), "s left to confirm") })
			armed := time.Now()
			after := h.state()
			if after == before {
				t.Fatal("nothing was changed")
			}
			then(h, cmd, hangUp)
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if name == "confirmed" {
				if err := <-ended; err != nil {
					t.Errorf("confirmed, apply ends with %v:\n%q", err, text())
				}
				await("word of it", 5*time.Second, func() bool { return strings.Contains(text(), "confirmed: transaction 1 stays") })
				time.Sleep(time.Until(armed.Add(within + time.Second)))
				same(t, "what was confirmed did not stay", after, h.state())
				return
			}
			time.Sleep(time.Until(armed.Add(within - 2*time.Second)))
			same(t, "it was taken back early", after, h.state())
			await("rollback", time.Until(armed.Add(within+2*time.Second)), func() bool {
				return strings.Contains(h.try("history").stdout, "rolled back")
			})
			t.Logf("old state back %v after the change, with %v to confirm", time.Since(armed).Round(10*time.Millisecond), within)
			same(t, "the host is not as it was", before, h.state())
			err := <-ended
			if name == "nobody answers" && (err == nil || !strings.Contains(text(), "nobody confirmed transaction 1") || !strings.Contains(text(), "   2 s left to confirm")) {
				t.Errorf("apply ends with %v:\n%q", err, text())
			}
		})
	}
}

// TestSSH warns once of a connection that the change may cut, also behind
// sudo, which keeps no trace of it but the processes above.
func TestSSH(t *testing.T) {
	h := newHost(t, "nft", "web-1")
	path := h.config(webUntracked)
	h.sh("cp $(readlink -f /bin/sh) /run/test/sshd; iptables -A INPUT -p tcp --dport 1 -j DROP")
	for _, script := range []string{
		"env -u SSH_CONNECTION ./ctplan apply --auto-approve %s; true",
		"SSH_CONNECTION='192.0.2.1 1 192.0.2.2 22' ./ctplan rollback --auto-approve; true %s",
	} {
		r := finish(t, h.commandOf("/run/test/sshd", "-c", fmt.Sprintf(script, path)))
		if got := strings.Count(r.stderr, "this is an SSH session"); got != 1 || r.status != exitOK || !strings.Contains(r.stdout, "applied: ") {
			t.Errorf("%s: %d warnings, exit status %d:\n%s", script, got, r.status, r.stderr)
		}
	}
	r := finish(t, h.commandOf("/run/test/sshd", "-c", "./ctplan apply --auto-approve --confirm-within 60s "+path+" || exit 7; ./ctplan confirm"))
	if strings.Contains(r.stderr, "this is an SSH session") || r.status != exitError || !strings.Contains(r.stderr, "was open before the change was made") {
		t.Errorf("with --confirm-within, exit status %d:\n%s", r.status, r.stderr)
	}
	if r := finish(t, h.commandOf("/run/test/sshd", "-c", "./ctplan confirm; exit $?")); r.status != exitOK {
		t.Errorf("confirmed over another, exit status %d:\n%s", r.status, r.stderr)
	}
}

// TestBootUnit starts the machine anew while a change waits for its
// confirmation: what the boot unit runs takes it back, and nobody can confirm
// it any more.
func TestBootUnit(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "systemd", "ctplan-recover.service"))
	if err != nil {
		t.Fatal(err)
	}
	exe := regexp.MustCompile(`(?m)^ExecStart=/usr/sbin/(ctplan .*)$`).FindSubmatch(unit)
	if exe == nil {
		t.Fatalf("the unit does not start /usr/sbin/ctplan:\n%s", unit)
	}
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, backend, "web-1")
			debian(h)
			path := h.config(webUntracked)
			h.sh("iptables -t raw -S; ip6tables -t raw -S") // a table of the legacy backend stays
			before := h.state()
			h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "1h", path)
			// Another boot: the journal names one that is over.
			h.sh(`sed -i s/"$(cat /proc/sys/kernel/random/boot_id)"/00000000-0000-4000-8000-000000000000/g /var/lib/ctplan/000001.journal`)
			if r := h.ctplan(exitError, "confirm"); !strings.Contains(r.stderr, "the time to confirm is over") {
				t.Errorf("confirm after a reboot says:\n%s", r.stderr)
			}
			if r := h.try("plan", path); !strings.Contains(r.stderr, "was cut off") && !strings.Contains(r.stderr, "transaction 1") {
				t.Errorf("plan after a reboot says nothing of the open transaction:\n%s", r.stderr)
			}
			h.sh("./" + string(exe[1]))
			same(t, "the host is not as it was", before, h.state())
			if r := h.ctplan(exitOK, "history"); !strings.Contains(r.stdout, "rolled back") {
				t.Errorf("history:\n%s", r.stdout)
			}
		})
	}
}
