package sysctl_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/sysctl"
)

// tree makes a root with files, and links where the content is "-> target".
func TestPaths(t *testing.T) {
	debian := map[string]string{
		"/etc/sysctl.conf":                      "",
		"/etc/sysctl.d/99-sysctl.conf":          "-> ../sysctl.conf",
		"/etc/sysctl.d/README.sysctl":           "",
		"/etc/sysctl.d/99-z.conf":               "",
		"/usr/lib/sysctl.d/50-pid-max.conf":     "",
		"/usr/lib/sysctl.d/99-protect.conf":     "",
		"/etc/sysctl.d/50-pid-max.conf":         "-> /dev/null",
		"/run/sysctl.d/10-run.conf":             "",
		"/usr/local/lib/sysctl.d/10-local.conf": "",
		"/lib":                                  "-> usr/lib",
	}
	noLink := map[string]string{"/etc/sysctl.conf": "", "/etc/sysctl.d/zz.conf": ""}
	for _, c := range []struct {
		name, file string
		files      map[string]string
		want       []string
	}{
		{"debian", "", debian, []string{"/usr/local/lib/sysctl.d/10-local.conf", "/run/sysctl.d/10-run.conf", "/usr/lib/sysctl.d/99-protect.conf", "/etc/sysctl.conf as /etc/sysctl.d/99-sysctl.conf", "/etc/sysctl.d/99-z.conf"}},
		{"no link", "", noLink, []string{"/etc/sysctl.d/zz.conf", "/etc/sysctl.conf"}},
		{"bare host", "", nil, []string{"/etc/sysctl.conf"}},
		{"in a folder, absent", "/etc/sysctl.d/60-ct.conf", noLink, []string{"/etc/sysctl.d/60-ct.conf", "/etc/sysctl.d/zz.conf", "/etc/sysctl.conf"}},
		{"elsewhere, absent", "/srv/ct", noLink, []string{"/etc/sysctl.d/zz.conf", "/etc/sysctl.conf", "/srv/ct"}},
		{"no sysctl.conf", "/etc/sysctl.d/60-ct.conf", nil, []string{"/etc/sysctl.d/60-ct.conf"}},
		{"by the link", "/etc/sysctl.d/99-sysctl.conf", debian, []string{"/usr/local/lib/sysctl.d/10-local.conf", "/run/sysctl.d/10-run.conf", "/usr/lib/sysctl.d/99-protect.conf", "/etc/sysctl.d/99-sysctl.conf", "/etc/sysctl.d/99-z.conf"}},
		{"behind sysctl.conf", "/etc/sysctl.d/99-t.conf", debian, []string{"/usr/local/lib/sysctl.d/10-local.conf", "/run/sysctl.d/10-run.conf", "/usr/lib/sysctl.d/99-protect.conf", "/etc/sysctl.conf as /etc/sysctl.d/99-sysctl.conf", "/etc/sysctl.d/99-t.conf", "/etc/sysctl.d/99-z.conf"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := sysctl.Paths(testhost.Tree(t, c.files), c.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(fmt.Sprint(c.want), fmt.Sprint(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	type entry struct {
		Key, Value string
		IgnoreErr  bool
		Line       int
	}
	const content = "# net.a = 1\n" +
		"; net.a = 2\n" +
		"  net.netfilter.nf_conntrack_max = 10  \n" +
		"net/netfilter/nf_conntrack_max=20\n" +
		"-net.a=\t30 # not a comment\n" +
		"\t- net.a = 40\r\n" +
		"net.ipv4.conf.eth0/100.forwarding = 1\n" +
		"net/ipv4/conf/eth0.100/forwarding = 1\n" +
		"/net/a = 1\n" +
		"net.*.nf_conntrack_max = 5\n" +
		"-net.excluded\n" +
		"no equals sign\n" +
		"= 5\n" +
		"- = 5\n" +
		"net.empty =  \r\n" +
		"net.eq = a=b\n" +
		"\n" +
		"net.last=1"
	want := []entry{
		{"net.netfilter.nf_conntrack_max", "10", false, 3},
		{"net.netfilter.nf_conntrack_max", "20", false, 4},
		{"net.a", "30 # not a comment", true, 5},
		{"net.a", "40", true, 6},
		{"net.ipv4.conf.eth0/100.forwarding", "1", false, 7},
		{"net.ipv4.conf.eth0/100.forwarding", "1", false, 8},
		{"net.a", "1", false, 9},
		{"net.*.nf_conntrack_max", "5", false, 10},
		{"net.empty", "", false, 15},
		{"net.eq", "a=b", false, 16},
		{"net.last", "1", false, 18},
	}
	var got []entry
	for _, e := range parse(content) {
		got = append(got, entry{e.Key, e.Value, e.IgnoreErr, e.Line})
		if content[e.ValueSpan.Start:e.ValueSpan.End] != e.Value {
			t.Errorf("line %d: ValueSpan holds %q", e.Line, content[e.ValueSpan.Start:e.ValueSpan.End])
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func parse(content string) []host.SysctlEntry {
	return sysctl.Parse(host.File{Content: content}).Entries
}

// FuzzParse holds that spans are exact, and that a value put into a ValueSpan
// is read back as that value while nothing else is read differently.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "a=1", "a = 1\r\nb=\n", "# x=1\n;y=2\n - k = v \n", "a/b.c=1\n\n=\n-=\n", "a=\xff\x00b\n", "k=\v\f\n", "\r=\r", "a\r=\r\n",
	} {
		f.Add(s, "524288")
	}
	f.Fuzz(func(t *testing.T, content, value string) {
		entries := parse(content)
		at, line := 0, 0
		for _, e := range entries {
			if e.Span.Start < at || e.Span.End > len(content) || e.ValueSpan.Start < e.Span.Start || e.ValueSpan.End > e.Span.End {
				t.Fatalf("spans out of order: %+v", e)
			}
			at = e.Span.End
			if content[e.ValueSpan.Start:e.ValueSpan.End] != e.Value || content[e.ValueSpan.Start-1:e.ValueSpan.Start] == "\n" {
				t.Fatalf("ValueSpan of %+v holds %q", e, content[e.ValueSpan.Start:e.ValueSpan.End])
			}
			if s := e.Span; s.Start > 0 && content[s.Start-1] != '\n' || s.End < len(content) && content[s.End-1] != '\n' {
				t.Fatalf("Span of %+v is not whole lines", e)
			}
			if want := 1 + strings.Count(content[:e.Span.Start], "\n"); e.Line != want || e.Line <= line {
				t.Fatalf("line %d, want %d", e.Line, want)
			}
			line = e.Line
		}
		if value != strings.Trim(value, " \t\r\v\f\n") || value == "" || strings.Contains(value, "\n") {
			return
		}
		for i, e := range entries {
			edited := content[:e.ValueSpan.Start] + value + content[e.ValueSpan.End:]
			again := parse(edited)
			if len(again) != len(entries) {
				t.Fatalf("%d entries, then %d", len(entries), len(again))
			}
			for j := range again {
				want := entries[j]
				if j == i {
					want.Value = value
				}
				if again[j].Key != want.Key || again[j].Value != want.Value || again[j].IgnoreErr != want.IgnoreErr || again[j].Line != want.Line {
					t.Fatalf("entry %d became %+v, want %+v", j, again[j], want)
				}
			}
		}
	})
}

// TestParseLikeProcps compares with the real sysctl, which prints what it
// would set before it tries. Nothing is set: the keys do not exist.
func TestParseLikeProcps(t *testing.T) {
	bin, err := exec.LookPath("sysctl")
	if err != nil {
		if bin = "/usr/sbin/sysctl"; !sysctlWorks(bin) {
			testhost.Lacks(t, "no sysctl here")
		}
	}
	for _, line := range []string{
		"ctplan.none.a=1", " ctplan.none.b = 2 ", "# ctplan.none.c=1", ";ctplan.none.d=1", "ctplan/none/e=1", "ctplan.none.f = 1\r",
	} {
		name := filepath.Join(t.TempDir(), "f.conf")
		if err := os.WriteFile(name, []byte(line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, _ := exec.Command(bin, "-p", name).CombinedOutput()
		said := strings.Contains(string(out), "/proc/sys/ctplan/none/")
		entries := parse(line)
		if said != (len(entries) == 1) {
			t.Errorf("%q: sysctl says %q, Parse %+v", line, out, entries)
		}
		if said && !strings.Contains(string(out), strings.ReplaceAll(entries[0].Key, ".", "/")+":") {
			t.Errorf("%q: sysctl says %q, Parse has key %q", line, out, entries[0].Key)
		}
	}
}

func sysctlWorks(bin string) bool { return exec.Command(bin, "--version").Run() == nil }

func TestReadKeys(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/proc/sys/net/netfilter/nf_conntrack_max":         "262144\n",
		"/proc/sys/net/netfilter/nf_conntrack_count":       "7\n",
		"/proc/sys/net/netfilter/nf_log":                   "x",
		"/proc/sys/net/nf_conntrack_max":                   "262144\n",
		"/proc/sys/net/netfilter/nf_conntrack_udp_timeout": "30\n",
	})
	if err := os.Chmod(filepath.Join(root, "/proc/sys/net/netfilter/nf_conntrack_count"), 0o444); err != nil {
		t.Fatal(err)
	}
	got, err := sysctl.ReadKeys(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]host.Sysctl{
		"net.netfilter.nf_conntrack_max":         {Value: "262144", Writable: true},
		"net.nf_conntrack_max":                   {Value: "262144", Writable: true},
		"net.netfilter.nf_conntrack_count":       {Value: "7"},
		"net.netfilter.nf_conntrack_udp_timeout": {Value: "30", Writable: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = sysctl.ReadKeys(root, []string{"net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_none"})
	if err != nil || len(got) != 1 {
		t.Error(got, err)
	}
	for _, key := range []string{"kernel.panic", "net.netfilter.nf_conntrack_../x", "net.netfilter.nf_conntrack_max\n", ""} {
		if _, err := sysctl.ReadKeys(root, []string{key}); err == nil {
			t.Errorf("ReadKeys(%q): no error", key)
		}
	}
	if got, err := sysctl.ReadKeys(t.TempDir(), nil); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestWrite(t *testing.T) {
	root := testhost.Tree(t, map[string]string{"/proc/sys/net/netfilter/nf_conntrack_max": "262144\n", "/proc/sys/kernel/panic": "0"})
	if err := sysctl.Write(root, "net.netfilter.nf_conntrack_max", "5"); err != nil {
		t.Fatal(err)
	}
	if got, _ := sysctl.ReadKeys(root, nil); got["net.netfilter.nf_conntrack_max"].Value != "5" {
		t.Error(got)
	}
	for _, c := range []struct{ key, value, want string }{
		{"net.netfilter.nf_conntrack_none", "1", "no such key"},
		{"net.netfilter.nf_conntrack_max", "1\n2", "not a whole number"},
		{"net.netfilter.nf_conntrack_max", "", "not a whole number"},
		{"net.netfilter.nf_conntrack_../../kernel/panic", "1", "not a key"},
		{"kernel.panic", "1", "not a key"},
	} {
		if err := sysctl.Write(root, c.key, c.value); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Write(%q, %q) = %v, want %q", c.key, c.value, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "/proc/sys/net/netfilter/nf_conntrack_none")); err == nil {
		t.Error("a key was made")
	}
}
