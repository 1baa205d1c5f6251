package snapshot_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/snapshot"
	"github.com/ctplan/ctplan/internal/test/nstest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// shells are those that Script is to run in: each a command that reads it from
// its standard input.
var shells = map[string][]string{"dash": {"dash", "-s"}, "busybox": {"busybox", "ash", "-s"}, "bash": {"bash", "--posix", "-s"}, "bash 4.1": {"bash", "-O", "compat41", "-s"}}

// byScript takes a snapshot of a namespace by the script.
func byScript(t *testing.T, shell []string, ssh string, args ...string) *snapshot.Snapshot {
	t.Helper()
	cmd := exec.Command(shell[0], append(append([]string{}, shell[1:]...), args...)...)
	cmd.Stdin = strings.NewReader(snapshot.Script)
	cmd.Env = append(os.Environ(), "SSH_CONNECTION="+ssh)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v: %v\n%s", shell, err, stderr.String())
	}
	if digits := strings.Join(strings.Fields(string(out)), ""); strings.Contains(digits, hex.EncodeToString([]byte("topsecret"))) {
		t.Errorf("%v: the snapshot holds what is nobody's business", shell)
	}
	s, err := snapshot.Decode(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestScript holds snapshots that the script took, in each shell, to those of the
// binary: hostile names, files and rules come through unharmed.
func TestScript(t *testing.T) {
	nstest.Inside(t, func(ns *nstest.NS) {
		for name, content := range map[string]string{
			"/etc/sysctl.d/a b\n$(id).conf":                           "net.netfilter.nf_conntrack_max = 7\x00\xff\nno newline at the end",
			"/etc/sysctl.d/-rf.conf":                                  "",
			"/etc/modprobe.d/one.conf":                                "options nf_conntrack hashsize=4096\r\n.\nend\n= 1\n",
			"/etc/iptables/rules.v4":                                  "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n",
			"/etc/rc.d/init.d/iptables":                               "#!/bin/sh\nNF_MODULES_COMMON=(x_tables nf_nat nf_conntrack)\n",
			"/etc/elsewhere/modules-load.md":                          "nf_conntrack\n",
			"/etc/modules":                                            "nf_conntrack\n",
			"/run/systemd/system/x":                                   "",
			"/etc/systemd/system/multi-user.target.wants/fw.service":  "",
			"/etc/systemd/system/fw.service":                          "[Service]\nEnvironment=PASSWORD=topsecret\nExecStart=-/etc/fw/bin/up start\nExecStartPost=/bin/sh -c 'ip6tables-restore </etc/fw/v6'\n",
			"/etc/systemd/system/fw.service.d/a.conf":                 "[Service]\nExecStartPost=/usr/bin/true\n",
			"/etc/systemd/system/multi-user.target.wants/app.service": "",
			"/etc/systemd/system/app.service":                         "[Service]\nExecStart=/etc/app/topsecret\n",
			"/etc/app/topsecret":                                      "topsecret\n",
			"/etc/fw/bin/up":                                          "#!/bin/sh\n. /etc/fw/lib\nload /etc/fw/v4\n",
			"/etc/fw/lib":                                             "load() {\n\tiptables-restore \"$1\"\n}\n",
			"/etc/fw/v4":                                              "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n",
			"/etc/fw/v6":                                              "*raw\nCOMMIT\n",
			"/etc/rc.local":                                           "#!/bin/sh\niptables -A INPUT -j DROP\n",
			"/etc/cron.d/fw":                                          "# topsecret\nPASSWORD=topsecret\n@reboot root iptables -F\n* * * * * root /usr/bin/curl -u topsecret\n",
			"/etc/NetworkManager/dispatcher.d/5-fw":                   "#!/bin/sh\n/etc/fw/bin/up\n",
		} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		ns.Run("chmod", "755", "/etc/fw/bin/up", "/etc/rc.local", "/etc/NetworkManager/dispatcher.d/5-fw")
		for link, to := range map[string]string{
			"/etc/modules-load.d/link.conf": "../elsewhere/modules-load.md", "/etc/sysctl.d/gone.conf": "/nowhere", "/etc/modprobe.d/masked.conf": "/dev/null",
			"/etc/init.d/iptables": "../rc.d/init.d/iptables", "/etc/sysctl.d/loop.conf": "loop.conf", "/etc/nftables": "/etc/../../../../etc/elsewhere",
		} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(to, link)); err != nil {
				t.Fatal(err)
			}
		}
		ns.Run("mount", "-t", "sysfs", "sysfs", "/sys")
		ns.Run("chmod", "4751", "/etc/modprobe.d/one.conf")
		ns.Run("setfattr", "-n", "user.note", "-v", "a\nb", "/etc/modprobe.d/one.conf")
		ns.Run("chown", "7:8", "/etc/modprobe.d/one.conf")
		l, err := net.Listen("tcp", "[::]:22")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", "127.0.0.1:22")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, command := range []string{
			"ip link add br0 type bridge", "ip addr add 192.0.2.2/24 dev br0", "ip -6 addr add 2001:db8::2/64 dev br0 nodad", "ip addr add 10.0.0.1 peer 10.0.0.2/32 dev br0", "ip link set br0 up",
			"ip route add default via 192.0.2.1", "ip route add unreachable 10.9.0.0/16", "ip route add 10.1.0.0/16 nexthop via 192.0.2.3 nexthop via 192.0.2.4", "ip route add 10.3.3.3 dev br0",
			"ip -6 route add default via 2001:db8::1", "ip rule add fwmark 1 lookup 7",
		} {
			w := strings.Fields(command)
			ns.Run(w[0], w[1:]...)
		}
		const ssh = "192.0.2.1 40000 192.0.2.2 22"
		names := slices.Sorted(maps.Keys(shells))
		equal := func(where string, names ...string) {
			t.Helper()
			want, err := snapshot.Read(context.Background(), snapshot.Options{})
			if err != nil {
				t.Fatal(err)
			}
			want.ReadConnections("", ssh, snapshot.DefaultConnections)
			want.Connections.Routing = nil // the script asks no rules of routing: ways by marks are unknown
			for _, name := range names {
				if _, err := exec.LookPath(shells[name][0]); err != nil {
					testhost.Lacks(t, "needs "+shells[name][0])
				}
				got := byScript(t, shells[name], ssh)
				if diff := cmp.Diff(object(t, want), object(t, got)); diff != "" {
					t.Errorf("%s, %s: - binary, + script\n%s", where, name, diff)
				}
				if n := len(want.Boot.Restorers); n < 4 {
					t.Errorf("%d restorers were found", n)
				}
			}
		}
		both := []nstest.Build{nstest.Own(host.NFT), nstest.Own(host.Legacy)}
		for i, release := range append(both, nstest.StandIns()[0], nstest.StandIns()[2]) {
			ns.UseBuild(release)
			equal(release.Name+", no rules", names[i%len(names)])
			ns.Run("ip6tables", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-m", "state", "--state", "NEW", "-j", "ACCEPT")
			equal(release.Name+", IPv6 alone", names[(i+1)%len(names)])
			// More than what a program keeps back before it writes.
			ns.RunInput("*filter\n"+strings.Repeat("-A INPUT -p udp -j ACCEPT\n", 300)+"COMMIT\n", "iptables-restore", "--noflush")
			ns.Run("iptables", "-A", "INPUT", "-m", "comment", "--comment", "$(touch /tmp/owned) `id` '\"\\ \x1b[2J € |", "-j", "ACCEPT")
			if i < len(both) {
				equal(release.Name, names...)
			}
			ns.Run("iptables", "-F")
			ns.Run("ip6tables", "-F")
		}
	}, "/etc")
}

// object is a snapshot as JSON has it, without what two looks at a host see
// differently: the connections of the programs that look.
func object(t *testing.T, s *snapshot.Snapshot) map[string]any {
	t.Helper()
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(buf.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	// Which tables of nftables the script cannot read is another test's business.
	if _, unread := out["nftables_unread"]; unread {
		for _, name := range []string{"nftables_unread", "notes"} {
			delete(out, name)
		}
	}
	delete(out, "links")
	delete(out, "nftables")
	return out
}

// printed is what the script would print of a small host, with more parts.
func printed(more ...string) string {
	part := func(kind, name, args, body string) string {
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") != "" {
			name = ":" + hex.EncodeToString([]byte(name))
		}
		return strings.TrimSpace(kind+" "+name+" "+args) + "\n " + hex.EncodeToString([]byte(body)) + "\n.\n"
	}
	out := "ctplan snapshot by script, version 1\n"
	for name, body := range map[string]string{
		"/proc/sys/kernel/hostname": "h\n", "/proc/sys/kernel/osrelease": "6.1.0\n", "/proc/meminfo": "MemTotal: 1024 kB\n", "/sys/devices/system/cpu/online": "0-1\n",
		"/proc/net/tcp": "", "/proc/net/udp": "",
	} {
		out += part("file", name, "-r--r--r-- 0 0", body)
	}
	out += part("run", "uname -m", "", "x86_64\n") + part("run", "sed -n /^KernelPageSize/p /proc/self/smaps", "", "KernelPageSize: 4 kB\n")
	out += part("program", "iptables-save", "", "/usr/sbin/xtables-legacy-multi\n") + part("run", "iptables-save", "", "") + part("run", "iptables --version", "", "iptables v1.8.9 (legacy)\n")
	for i := 0; i+2 < len(more); i += 3 {
		args := ""
		if more[i] == "file" {
			args = "-rw-r--r-- 0 0"
		}
		out += part(more[i], more[i+1], args, more[i+2])
	}
	return out + "end\n"
}

// TestHostileArchive: nothing that a script's output says reaches files of the
// machine that reads it, and what is not whole is refused.
func TestHostileArchive(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.conf")
	if err := os.WriteFile(secret, []byte("net.secret = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	s, err := snapshot.Decode(strings.NewReader("Welcome to h\n" + printed(
		"link", "/etc/sysctl.d/abs.conf", secret+"\n",
		"link", "/etc/sysctl.d/up.conf", up+secret[1:]+"\n",
		"link", "/a/b/c/d", "/x\n", "link", "/a/b/c/d/e", up+dir[1:]+"\n", "link", "/etc/modprobe.d", dir+"\n",
		"link", "/etc/systemd/system/x.wants", up+dir[1:]+"\n", "name", "/etc/systemd/system/x.wants/docker.service", "",
		"file", "/etc/sysctl.conf", "vm.swappiness = 1\n",
		"file", "/a/b/c/d/e/written.conf", "x",
	)))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := s.Encode(&buf); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(buf.String(), "net.secret") || !strings.Contains(buf.String(), "vm.swappiness") {
		t.Errorf("%s", buf.String())
	}
	if found, _ := os.ReadDir(dir); len(found) != 1 {
		t.Errorf("something was written: %v", found)
	}
	whole := printed()
	for name, text := range map[string]string{
		"cut off":       whole[:len(whole)-len("end\n")],
		"a part cut":    whole[:len(whole)/2],
		"a path":        printed("file", "/etc/../../x", ""),
		"no path":       printed("file", "etc/x", ""),
		"a kind":        printed("fifo", "/etc/x", ""),
		"a later":       strings.Replace(whole, "version 1", "version 2", 1),
		"no digits":     strings.Replace(whole, " 680a", " 68zz", 1),
		"a link's loop": printed("file", "/etc/sysctl.d", "", "link", "/etc/sysctl.d", "/x"),
	} {
		if _, err := snapshot.Decode(strings.NewReader(text)); err == nil && name != "a link's loop" {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzArchive(f *testing.F) {
	f.Add([]byte(printed()))
	f.Add([]byte(printed("link", "/etc/a", "b", "link", "/etc/a/b", "../..", "file", "/etc/a/b/c", "x", "name", "/proc/1", "", "absent", "/x", "", "attributes", "/etc/a", "user.x=0x00\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := snapshot.Decode(bytes.NewReader(data))
		if err == nil {
			if err := s.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestArchiveNamed: a file that the configuration names is in a snapshot by script
// where the script took it or looked for it, and missing where it did neither.
func TestArchiveNamed(t *testing.T) {
	s, err := snapshot.Decode(strings.NewReader(printed("file", "/etc/site/rules", "*filter\nCOMMIT\n", "absent", "/etc/site/none", "")))
	if err != nil {
		t.Fatal(err)
	}
	for name, missing := range map[string]bool{"/etc/site/rules": false, "/etc/site/none": false, "/etc/site/other": true} {
		files := declared.Files{RulesV4: name}
		got, err := s.With(files, nil)
		if err != nil {
			t.Fatal(err)
		}
		if lacks := len(got.Missing(files, nil)) > 0; lacks != missing {
			t.Errorf("%s is missing: %v, want %v", name, lacks, missing)
		}
	}
}

// TestArchiveLong: where more connections are tracked than the script takes, the
// snapshot says how many.
func TestArchiveLong(t *testing.T) {
	const line = "ipv4 2 udp 17 29 src=192.0.2.1 dst=192.0.2.2 sport=1 dport=53 src=192.0.2.2 dst=192.0.2.1 sport=53 dport=1 mark=0 use=1\n"
	for lines, total := range map[int]int64{3: 3, 10_000: 70_000} {
		s, err := snapshot.Decode(strings.NewReader(printed(
			"name", "/sys/module/nf_conntrack", "", "file", "/proc/sys/net/netfilter/nf_conntrack_count", "70000\n", "file", "/proc/net/nf_conntrack", strings.Repeat(line, lines))))
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Connections.Flows) != lines || s.Connections.Total != total {
			t.Errorf("%d lines: %d of %d", lines, len(s.Connections.Flows), s.Connections.Total)
		}
	}
}
