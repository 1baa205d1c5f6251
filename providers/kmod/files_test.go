package kmod_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

// entry is a ModprobeEntry without its spans.
type entry struct {
	Command, Module string
	Args            []string
	Line            int
}

func modprobe(content string) []host.ModprobeEntry {
	return kmod.ParseModprobe(host.File{Content: content}).Entries
}

func plain(entries []host.ModprobeEntry) []entry {
	var list []entry
	for _, e := range entries {
		p := entry{Command: e.Command, Module: e.Module, Line: e.Line}
		for _, a := range e.Args {
			p.Args = append(p.Args, a.Text)
		}
		list = append(list, p)
	}
	return list
}

func TestParseModprobe(t *testing.T) {
	const content = "# options nf_conntrack hashsize=1\n" +
		"options nf-conntrack hashsize=131072\tacct=1 \n" +
		"  options nf_conntrack \\\n   tstamp=1 \\\n\n" +
		"# a comment that goes on \\\noptions nf_conntrack hashsize=2\n" +
		"install nf_conntrack /bin/false\n" +
		"blacklist nf_conntrack\n" +
		"alias ip_conntrack nf_conntrack\n" +
		"options foo bar=\"a hashsize=3\" b\n" +
		"install foo sh -c \"echo x\"\n" +
		"opt\\ions nf_conntrack a=1\\\nb=2\n" +
		"blacklist crlf\r\n" +
		"options\nnonsense nf_conntrack x\n" +
		"softdep nf_conntrack pre: a post: b\\"
	want := []entry{
		{"options", "nf_conntrack", []string{"hashsize=131072", "acct=1"}, 2},
		{"options", "nf_conntrack", []string{"tstamp=1"}, 3},
		{"install", "nf_conntrack", []string{"/bin/false"}, 8},
		{"blacklist", "nf_conntrack", nil, 9},
		{"alias", "ip_conntrack", []string{"nf_conntrack"}, 10},
		{"options", "foo", []string{`bar="a hashsize=3"`, "b"}, 11},
		{"install", "foo", []string{"sh", "-c", `"echo`, `x"`}, 12},
		{"options", "nf_conntrack", []string{"a=1b=2"}, 13},
		{"blacklist", "crlf\r", nil, 15},
		{"softdep", "nf_conntrack", []string{"pre:", "a", "post:", "b"}, 18},
	}
	entries := modprobe(content)
	if diff := cmp.Diff(want, plain(entries)); diff != "" {
		t.Fatal(diff)
	}
	if got := content[entries[1].Span.Start:entries[1].Span.End]; got != "  options nf_conntrack \\\n   tstamp=1 \\\n\n" {
		t.Errorf("the span over several lines holds %q", got)
	}
	if got := content[:entries[0].End]; !strings.HasSuffix(got, "acct=1") {
		t.Errorf("End is behind %q", got)
	}
}

// FuzzParseModprobe holds that spans are exact and that replacing, adding or
// removing an argument changes that argument alone, and a line taken out
// takes out its entry alone.
func FuzzParseModprobe(f *testing.F) {
	for _, s := range []string{
		"", "options a b=1 c", "options a \\\n b\n", "options a b\\", "#\\\noptions a b\ninstall a /bin/false\n", "options a \"b c\" d\nblacklist a", "alias a-b c\r\n", "options a b\\ c\n", "options a\\\\ b", "\\\noptions a b", "options a \"b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content string) {
		entries := modprobe(content)
		at := 0
		for i, e := range entries {
			if e.Span.Start < at || e.Span.End > len(content) || e.End <= e.Span.Start || e.End > e.Span.End {
				t.Fatalf("spans out of order: %+v", e)
			}
			if want := 1 + strings.Count(content[:e.Span.Start], "\n"); e.Line != want {
				t.Fatalf("line %d, want %d", e.Line, want)
			}
			at = e.Span.Start
			for j, a := range e.Args {
				if a.Span.Start < at || a.Span.End > e.End {
					t.Fatalf("argument out of place: %+v", e)
				}
				at = a.Span.End
				if raw := content[a.Span.Start:a.Span.End]; !strings.Contains(raw, `\`) && raw != a.Text {
					t.Fatalf("the span of %q holds %q", a.Text, raw)
				}
				want := plain(entries)
				want[i].Args = slices.Clone(want[i].Args)
				want[i].Args[j] = "hashsize=131072"
				check(t, content[:a.Span.Start]+"hashsize=131072"+content[a.Span.End:], want, strings.Contains(content[a.Span.Start:a.Span.End], "\n"))
			}
			at = e.Span.End
			last := len(e.Args) - 1
			if last < 0 || strings.Count(e.Args[last].Text, `"`)%2 == 0 {
				want := plain(entries)
				want[i].Args = append(slices.Clone(want[i].Args), "hashsize=131072")
				check(t, content[:e.End]+" hashsize=131072"+content[e.End:], want, false)
			}
			check(t, content[:e.Span.Start]+content[e.Span.End:], slices.Delete(plain(entries), i, i+1), true)
		}
	})
}

// check compares what an edited file says; the lines may have moved.
func check(t *testing.T, edited string, want []entry, moved bool) {
	t.Helper()
	got := plain(modprobe(edited))
	if moved {
		for i := range got {
			got[i].Line = 0
		}
		for i := range want {
			want[i].Line = 0
		}
	}
	if !slices.EqualFunc(got, want, func(a, b entry) bool {
		return a.Command == b.Command && a.Module == b.Module && a.Line == b.Line && slices.Equal(a.Args, b.Args)
	}) {
		t.Fatalf("%q is read as %+v, want %+v", edited, got, want)
	}
}

func TestModprobePaths(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/modprobe.d/local.conf": "", "/etc/modprobe.d/zz.conf": "", "/usr/lib/modprobe.d/aliases.conf": "",
		"/usr/lib/modprobe.d/local.conf": "", "/lib": "-> usr/lib",
	})
	for file, want := range map[string][]string{
		"":                        {"/usr/lib/modprobe.d/aliases.conf", "/etc/modprobe.d/local.conf", "/etc/modprobe.d/netfilter.conf", "/etc/modprobe.d/zz.conf"},
		"/etc/modprobe.d/zz.conf": {"/usr/lib/modprobe.d/aliases.conf", "/etc/modprobe.d/local.conf", "/etc/modprobe.d/zz.conf"},
		"/etc/modprobe.conf":      {"/usr/lib/modprobe.d/aliases.conf", "/etc/modprobe.d/local.conf", "/etc/modprobe.d/zz.conf", "/etc/modprobe.conf"},
	} {
		got, err := kmod.ModprobePaths(root, file)
		if diff := cmp.Diff(fmt.Sprint(want), fmt.Sprint(got)); diff != "" || err != nil {
			t.Errorf("%q: %v %s", file, err, diff)
		}
	}
}

func TestModulesLoadPaths(t *testing.T) {
	debian := map[string]string{
		"/etc/modules": "loop\n", "/etc/modules-load.d/modules.conf": "-> ../modules", "/usr/lib/modules-load.d/z.conf": "",
	}
	for _, c := range []struct {
		name, file string
		files      map[string]string
		want       []string
	}{
		{"debian", "", debian, []string{"/etc/modules as /etc/modules-load.d/modules.conf", "/etc/modules-load.d/netfilter.conf", "/usr/lib/modules-load.d/z.conf"}},
		{"no link", "", map[string]string{"/etc/modules": ""}, []string{"/etc/modules", "/etc/modules-load.d/netfilter.conf"}},
		{"own file", "/etc/modules", debian, []string{"/etc/modules as /etc/modules-load.d/modules.conf", "/usr/lib/modules-load.d/z.conf"}},
		{"bare", "", nil, []string{"/etc/modules-load.d/netfilter.conf"}},
	} {
		got, err := kmod.ModulesLoadPaths(testhost.Tree(t, c.files), c.file)
		if diff := cmp.Diff(fmt.Sprint(c.want), fmt.Sprint(got)); diff != "" || err != nil {
			t.Errorf("%s: %v %s", c.name, err, diff)
		}
	}
}

func TestParseModulesLoad(t *testing.T) {
	const content = "# nf_conntrack\n;x\n\n nf-conntrack \r\nloop max_loop=8 # eight\nlast"
	var got []string
	for _, e := range kmod.ParseModulesLoad(host.File{Content: content}).Entries {
		got = append(got, e.Module, content[e.Span.Start:e.Span.End])
		if want := 1 + strings.Count(content[:e.Span.Start], "\n"); e.Line != want {
			t.Errorf("%s: line %d, want %d", e.Module, e.Line, want)
		}
	}
	want := []string{"nf_conntrack", " nf-conntrack \r\n", "loop", "loop max_loop=8 # eight\n", "last", "last"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzParseModulesLoad holds that taking out a line takes out its module alone.
func FuzzParseModulesLoad(f *testing.F) {
	for _, s := range []string{"", "a\nb\n#c\n", "a b\r\n;\n\n-x", "\u00a0#a\n"} {
		f.Add(s)
	}
	modules := func(content string) []string {
		var list []string
		for _, e := range kmod.ParseModulesLoad(host.File{Content: content}).Entries {
			list = append(list, e.Module)
		}
		return list
	}
	f.Fuzz(func(t *testing.T, content string) {
		for i, e := range kmod.ParseModulesLoad(host.File{Content: content}).Entries {
			got := modules(content[:e.Span.Start] + content[e.Span.End:])
			if want := slices.Delete(modules(content), i, i+1); !slices.Equal(got, want) {
				t.Fatalf("without line %d: %q, want %q", e.Line, got, want)
			}
		}
	})
}
