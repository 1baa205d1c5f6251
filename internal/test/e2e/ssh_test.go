package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctplan/ctplan/internal/test/testhost"
	live "github.com/ctplan/ctplan/planner/host"
)

// sshd is Debian's, installed or where scripts/setup puts it.
func sshd(t *testing.T) string {
	t.Helper()
	const installed = "/usr/sbin/sshd"
	if _, err := os.Stat(installed); err == nil {
		return installed
	}
	cache, err := os.UserCacheDir()
	fetched := filepath.Join(cache, "ctplan-tools", "sshd", "sshd")
	if err == nil {
		_, err = os.Stat(fetched)
	}
	if err != nil {
		testhost.Lacks(t, err, "scripts/setup gets it")
	}
	return fetched
}

// sshHost is a host that its neighbour reaches over SSH: with shared
// connections, as Ansible has them, unless told otherwise.
func sshHost(t *testing.T) *host {
	server := sshd(t)
	for _, tool := range []string{"ssh", "ssh-keygen", "sudo", "tmux"} {
		if _, err := exec.LookPath(tool); err != nil {
			testhost.Lacks(t, err)
		}
	}
	h := docHost(t, live.NFT, "web-1", "iptables -A INPUT -p tcp -m multiport --dports 22,443 -m state --state NEW -j ACCEPT")
	h.write("/run/test/sshd_config", `
ListenAddress 192.0.2.5:22
HostKey /run/test/key
AuthorizedKeysFile /run/test/key.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
`)
	h.write("/run/test/ssh_config", `
Host web-1
  HostName 192.0.2.5
  User root
  IdentityFile /run/test/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 5
  BatchMode yes
  ControlMaster auto
  ControlPath /run/test/shared
  ControlPersist 60
`)
	h.sh(`
		grep -q '^sshd:' /etc/passwd || echo 'sshd:x:65533:65534::/run/sshd:/bin/false' >> /etc/passwd
		printf 'root ALL=(ALL) NOPASSWD: ALL\n' > /etc/sudoers; chmod 440 /etc/sudoers; rm -rf /etc/sudoers.d
		printf 'account sufficient pam_permit.so\nauth sufficient pam_permit.so\nsession optional pam_permit.so\n' > /etc/pam.d/sudo
		printf '127.0.0.1 localhost\n192.0.2.5 web-1\n' > /etc/hosts # sudo asks for it
		mkdir -p -m 0755 /run/sshd
		ssh-keygen -q -t ed25519 -N '' -f /run/test/key`)
	cmd := h.commandOf(server, "-D", "-e", "-f", "/run/test/sshd_config")
	cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+filepath.Dir(server))
	log, err := os.Create(filepath.Join(t.TempDir(), "sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, path := range []string{"shared", "other"} {
			_ = h.ssh("-O", "exit", "-o", "ControlPath=/run/test/"+path, "web-1").Run()
		}
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("sshd says:\n%s", text)
		}
		log.Close()
	})
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		r := finish(t, h.ssh("web-1", "true"))
		if r.status == 0 {
			return h
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("no SSH: %s", r.stderr)
		}
	}
}

// ssh is the neighbour's ssh to the host.
func (h *host) ssh(args ...string) *exec.Cmd {
	cmd := h.Command("ip", append([]string{"netns", "exec", "peer", "ssh", "-F", "/run/test/ssh_config"}, args...)...)
	cmd.WaitDelay = time.Second // what goes on sharing a connection keeps the pipes
	return cmd
}

const sshConfirm = "ssh -o ControlPath=none web-1 ctplan confirm 1"

// TestConfirmOverSSH: the connection that apply ran in confirms nothing, however
// many sessions share it, nor one that was open before; a new one does.
func TestConfirmOverSSH(t *testing.T) {
	for name, sudo := range map[string]string{"root": "", "sudo": "sudo -n "} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := sshHost(t)
			path := h.config(webUntracked22)
			run := func(status int, says string, args ...string) {
				t.Helper()
				r := finish(t, h.ssh(args...))
				if all := r.stdout + r.stderr; r.status != status || !strings.Contains(all, says) {
					t.Fatalf("ssh %s: exit status %d, want %d and %q in\n%s", strings.Join(args, " "), r.status, status, says, all)
				}
			}
			other, fresh := []string{"-o", "ControlPath=/run/test/other", "web-1"}, []string{"-o", "ControlPath=none", "web-1"}
			run(exitOK, "", append(other, "true")...)
			ctplan := "cd /run/test; " + sudo + "./ctplan "
			run(exitOK, "unless somebody runs, over a new connection", "web-1", ctplan+"apply --auto-approve --confirm-within 5m "+path)

			run(exitError, "is the one that apply ran in", "web-1", ctplan+"confirm")
			run(exitError, sshConfirm, "web-1", ctplan+"confirm 1")
			run(exitError, "is the one that apply ran in", "web-1", "cd /run/test; sudo -n env -i ./ctplan confirm")
			run(exitError, "was open before the change", append(other, ctplan+"confirm")...)
			if r := h.ctplan(exitOK, "history"); !strings.Contains(r.stdout, "waiting for confirmation") || !strings.Contains(r.stdout, "from 192.0.2.1") {
				t.Errorf("history:\n%s", r.stdout)
			}
			run(exitError, "there is no transaction 9", append(fresh, ctplan+"confirm 9")...)
			run(exitOK, "confirmed: transaction 1 stays", append(fresh, ctplan+"confirm 1")...)
			// Who asks again gets the same answer, whatever asks.
			run(exitOK, "confirmed already: transaction 1 stays", append(fresh, ctplan+"confirm 1")...)
			run(exitOK, "confirmed already: transaction 1 stays", "web-1", ctplan+"confirm 1")
			run(exitError, "no transaction waits", append(fresh, ctplan+"confirm")...)

			run(exitOK, "", "web-1", ctplan+"rollback --auto-approve --confirm-within 5m")
			run(exitError, "is the one that apply ran in", "web-1", ctplan+"confirm 2")
			run(exitOK, "confirmed: transaction 2 stays", append(fresh, ctplan+"confirm")...)
			run(exitError, "transaction 1 was taken back", append(fresh, ctplan+"confirm 1")...)
			run(exitOK, "", "web-1", ctplan+"apply --auto-approve --confirm-within 5m "+path)
			run(exitOK, "", "web-1", ctplan+"rollback --auto-approve")
			run(exitError, "transaction 3 was taken back", append(fresh, ctplan+"confirm 3")...)
		})
	}
}

// webUntracked22 leaves SSH open.
const webUntracked22 = `
conntrack "web" {
  mode           = "notrack"
  stateful_rules = "remove"

  notrack "all" {}

  accept "ssh" {
    protocol   = "tcp"
    local_port = 22
    initiator  = "remote"
  }
  accept "web" {
    protocol   = "tcp"
    local_port = 443
    initiator  = "remote"
  }
}
`

// TestConfirmElsewhere: where apply ran in no SSH connection, any confirms, and
// what came over none confirms with a word about it.
func TestConfirmElsewhere(t *testing.T) {
	h := sshHost(t)
	path := h.config(webUntracked22)
	h.ctplan(exitOK, "apply", "--auto-approve", "--confirm-within", "5m", path)
	if r := finish(t, h.ssh("web-1", "/run/test/ctplan confirm")); r.status != exitOK || strings.Contains(r.stderr, "warning") {
		t.Errorf("applied on the console, confirmed over a connection that was there: exit status %d\n%s", r.status, r.stderr)
	}
	if r := finish(t, h.ssh("web-1", "/run/test/ctplan rollback --auto-approve --confirm-within 5m")); r.status != exitOK {
		t.Fatalf("exit status %d\n%s", r.status, r.stderr)
	}
	if r := h.ctplan(exitOK, "confirm"); !strings.Contains(r.stderr, "whether this is another connection cannot be told") {
		t.Errorf("applied over SSH, confirmed on the console: no word about it\n%s", r.stderr)
	}
}

// TestConfirmInTmux: a terminal that outlives its connection is reached over the
// one that shows it now, whatever its environment says.
func TestConfirmInTmux(t *testing.T) {
	h := sshHost(t)
	path := h.config(webUntracked22)
	attach := func(args ...string) {
		t.Helper()
		cmd := h.ssh(args...)
		cmd.Env = append(cmd.Env, "TERM=xterm")
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stdin.Close()
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	clients := func(n string) {
		t.Helper()
		h.sh(`for i in $(seq 100); do [ "$(tmux -S /run/test/tmux list-clients 2>/dev/null | wc -l)" = ` + n + ` ] && exit; sleep 0.1; done; exit 1`)
	}
	keys := func(command string) string {
		t.Helper()
		done := "/run/test/typed"
		h.sh("rm -f " + done + " " + done + ".out; tmux -S /run/test/tmux send-keys '" + command + " >" + done + ".out 2>&1; echo $? >" + done + "' Enter")
		h.sh(`for i in $(seq 300); do [ -s ` + done + ` ] && exit; sleep 0.1; done; exit 1`)
		return strings.TrimSpace(h.read(done)) + ": " + h.read(done+".out")
	}
	attach("-tt", "web-1", "tmux -S /run/test/tmux -f /dev/null new-session sh")
	t.Cleanup(func() { h.Command("tmux", "-S", "/run/test/tmux", "kill-server").Run() })
	clients("1")
	if got := keys("/run/test/ctplan apply --auto-approve --confirm-within 5m " + path); !strings.HasPrefix(got, "0: ") {
		t.Fatalf("apply: %s", got)
	}
	for _, command := range []string{"/run/test/ctplan confirm", "sudo -n /run/test/ctplan confirm"} {
		if got := keys(command); !strings.HasPrefix(got, "1: ") || !strings.Contains(got, "is the one that apply ran in") {
			t.Errorf("%s in the same tmux: %s", command, got)
		}
	}
	// A session beside it that shares the connection.
	if r := finish(t, h.ssh("web-1", "/run/test/ctplan confirm")); r.status != exitError || !strings.Contains(r.stderr, "is the one that apply ran in") {
		t.Errorf("beside tmux: exit status %d\n%s", r.status, r.stderr)
	}
	attach("-tt", "-o", "ControlPath=none", "web-1", "tmux -S /run/test/tmux attach -d")
	h.sh(`for i in $(seq 100); do tmux -S /run/test/tmux list-clients -F '#{client_created}' | grep -q . && [ "$(pgrep -c -f 'tmux.*attach -d')" -gt 0 ] && break; sleep 0.1; done; sleep 1`)
	clients("1")
	if got := keys("sudo -n /run/test/ctplan confirm"); !strings.HasPrefix(got, "0: ") || !strings.Contains(got, "confirmed: transaction 1 stays") || strings.Contains(got, "warning") {
		t.Errorf("in the same tmux, shown over a new connection: %s", got)
	}
}
