package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/testhost"
)

// tracedCalls are the system calls that can change a file, a table of the
// kernel's or a module.
const tracedCalls = "trace=open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir," +
	"truncate,ftruncate,fallocate,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utime,utimes,utimensat,futimesat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr," +
	"mount,umount2,pivot_root,chroot,setns,unshare,init_module,finit_module,delete_module,bpf,ioctl,setsockopt,sendto,sendmsg,sendmmsg,execve,execveat,swapon,reboot,sethostname,kexec_load"

// harmless are traced calls that change nothing of the host, by what strace
// prints of them.
var harmless = []*regexp.Regexp{
	regexp.MustCompile(`^open(at2?)?\((AT_FDCWD|\d+), "[^"]*", (\{flags=)?O_RDONLY(\|O_(CLOEXEC|NONBLOCK|NOFOLLOW|NOCTTY|DIRECTORY|LARGEFILE|PATH|NOATIME))*[,) }]`),
	regexp.MustCompile(`^open(at)?\(AT_FDCWD, "/dev/(null|tty)", `),
	regexp.MustCompile(`^execve\("[^"]*/(ctplan|ip6?tables(-legacy|-nft)?-save|rpm|journalctl|unshare|sh|bash)", `),
	regexp.MustCompile(`^execve\("[^"]*/ip6?tables(-legacy|-nft)?", \["[^"]*"(\.\.\.)?, "--version"\], `),
	// What a socket asks of the kernel, in words that only ask.
	// An empty batch, nothing between its begin and its end: it waits for a change
	// of rules that is under way, and makes none.
	regexp.MustCompile(`^send(to|msg)\(\d+, \[\[\{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_BEGIN,[^\]]*\], \[\{nlmsg_len=20, nlmsg_type=NFNL_MSG_BATCH_END,`),
	regexp.MustCompile(`^send(to|msg)\(.*nlmsg_type=(NFNL_SUBSYS_NFTABLES<<8\|NFT_MSG_GET[A-Z]+|RTM_GET[A-Z]+|NFNL_SUBSYS_IPSET<<8\|IPSET_CMD_(PROTOCOL|LIST|GET_BYNAME|GET_BYINDEX|HEADER)|NFNL_SUBSYS_CTNETLINK<<8\|IPCTNL_MSG_CT_GET[A-Z_]*|NFNL_SUBSYS_NFT_COMPAT<<8\|NFNL_MSG_COMPAT_GET)`),
	regexp.MustCompile(`^setsockopt\(\d+, SOL_(SOCKET|NETLINK), `),
	// Only of the terminal, and of a file's own descriptor.
	regexp.MustCompile(`^ioctl\(\d+, (TCGETS2?|TIOCGWINSZ|FIONREAD|FIOCLEX)`),
}

var failed = regexp.MustCompile(`\)\s+= -1 E`)

// changed returns the system calls of a trace that changed something, or tried
// to and could.
func changed(trace string) (calls []string) {
	for line := range strings.Lines(trace) {
		_, call, ok := strings.Cut(strings.TrimSpace(line), " ") // the process
		call = strings.TrimSpace(call)
		if !ok || strings.HasPrefix(call, "+++") || strings.HasPrefix(call, "---") || strings.Contains(call, " resumed>") {
			continue
		}
		if failed.MatchString(call) {
			continue
		}
		if !slices.ContainsFunc(harmless, func(re *regexp.Regexp) bool { return re.MatchString(call) }) {
			calls = append(calls, call)
		}
	}
	return calls
}

// kernel is what the kernel holds of this namespace's tables and hooks, read by
// ways that make none. Modules are the machine's: see vmtest for them.
func (h *host) kernel() string {
	h.t.Helper()
	return h.sh(`for f in /proc/net/ip_tables_names /proc/net/ip6_tables_names; do echo "$f:"; cat $f 2>/dev/null || true; done
		nft -s list ruleset; nft list hooks 2>/dev/null || true`)
}

// TestReadOnly holds that drift changes nothing: no table, no hook, no file but
// the metrics. On a host that nobody has ever had rules on, and on
// one where everything that it reads for causes is there.
func TestReadOnly(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		testhost.Lacks(t, "needs strace")
	}
	for _, backend := range backends {
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/fresh=%v", backend, fresh), func(t *testing.T) {
				h := newHost(t, backend, "web-1", "/var/log")
				h.sh("rm -rf /var/log/auth.log* /etc/tuned")
				path := h.config(untrackDNS)
				if !fresh {
					h.furnishRecords()
					h.ctplan(exitOK, "apply", "--auto-approve", path)
					h.sh("iptables -t raw -F CTPLAN-OUTPUT; echo '# changed' >> /etc/iptables/rules.v4; sed -i /CTPLAN/d /etc/iptables/rules.v4")
					h.rpm("1.0", initContent) // rpm's database has changed since
				}
				kernel := h.kernel()
				files := h.sh("find /etc /var/lib /var/log /run /tmp -xdev -newermt '1 hour ago' -printf '%p %C@ %s\n' 2>/dev/null | sort; true")

				trace := h.traced(exitChanges, "drift", path)
				if calls := changed(trace); len(calls) > 0 {
					t.Errorf("drift changes the host:\n%s", strings.Join(calls[:min(len(calls), 20)], "\n"))
				}
				if n := strings.Count(trace, "execve("); n < 3 {
					t.Errorf("the trace shows %d commands, so it does not follow them:\n%s", n, trace)
				}
				if !fresh && !strings.Contains(trace, `/rpm"`) {
					t.Error("drift did not ask rpm, so that shows nothing of it")
				}
				same(t, "drift changed what the kernel holds", kernel, h.kernel())
				now := h.sh("find /etc /var/lib /var/log /run /tmp -xdev -newermt '1 hour ago' -printf '%p %C@ %s\n' 2>/dev/null | sort; true")
				same(t, "drift changed files", withoutTrace(files), withoutTrace(now))

				h.onReadOnlyRoot(path)

				// The same eyes see what does change a host.
				if calls := changed(h.traced(exitOK, "apply", "--auto-approve", path)); !slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, "/var/lib/ctplan") }) {
					t.Errorf("the trace of apply does not show its journal: %q", calls)
				}
			})
		}
	}
}

// withoutTrace leaves out the trace itself, and what other tests of the machine make.
func withoutTrace(files string) string {
	return regexp.MustCompile(`(?m)^(/run/test/trace|/tmp|/run/test |/run ).*\n`).ReplaceAllString(files, "")
}

// traced runs ctplan under strace and returns what it and its commands did.
func (h *host) traced(status int, args ...string) string {
	h.t.Helper()
	words := append([]string{"-f", "-qq", "-e", tracedCalls, "-e", "signal=none", "-o", "/run/test/trace", "/run/test/ctplan"}, args...)
	r := finish(h.t, h.commandOf("strace", words...))
	if r.status != status {
		h.t.Fatalf("strace ctplan %q: exit status %d\n%s%s", args, r.status, r.stdout, r.stderr)
	}
	return h.read("/run/test/trace")
}

// furnishRecords makes the host one with all that causes are read from.
func (h *host) furnishRecords() {
	h.t.Helper()
	h.sh(`iptables -A INPUT -p icmp -j ACCEPT; mkdir -p /etc/iptables /etc/tuned/web; iptables-save > /etc/iptables/rules.v4
		echo web > /etc/tuned/active_profile; printf '[sysctl]\nnet.netfilter.nf_conntrack_max = 5\n' > /etc/tuned/web/tuned.conf
		echo 'Nov 28 17:29:41 web-1 sudo: alice : PWD=/ ; USER=root ; COMMAND=/bin/true' > /var/log/auth.log`)
}

// onReadOnlyRoot runs drift where every mount is read-only but the one for the
// metrics, and holds that it says the same and writes nothing else there.
func (h *host) onReadOnlyRoot(path string) {
	h.t.Helper()
	want := h.ctplan(exitChanges, "drift", path)
	const script = `set -e
		mkdir -p /run/metrics; mount -t tmpfs tmpfs /run/metrics
		cut -d' ' -f5 /proc/self/mountinfo | sort -u | while read -r m; do
			[ "$m" = /run/metrics ] || mount -o remount,bind,ro "$m" 2>/dev/null || true
		done
		if touch /run/x /etc/x /var/lib/x 2>/dev/null; then echo "not read-only" >&2; exit 99; fi
		exec "$@"`
	r := finish(h.t, h.commandOf("unshare", "--mount", "sh", "-c", script, "sh",
		"sh", "-c", `/run/test/ctplan drift --metrics-file /run/metrics/ctplan.prom "$0"; s=$?; ls -A /run/metrics >&2; exit $s`, path))
	if r.status != exitChanges || r.stdout != want.stdout || r.stderr != "ctplan.prom\n" {
		h.t.Errorf("on a read-only root: exit status %d\n%s%s\nwant\n%s", r.status, r.stdout, r.stderr, want.stdout)
	}
}
