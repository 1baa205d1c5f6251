package initscript_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/test/inittest"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/initscript"
)

func parse(script string) host.InitScript {
	return initscript.Parse(host.File{Path: "/etc/init.d/iptables", Exists: true, Content: script})
}

func words(list *host.WordList) []string {
	if list == nil {
		return nil
	}
	texts := []string{}
	for _, w := range list.Words {
		texts = append(texts, w.Text)
	}
	return texts
}

// inBash has the real bash evaluate an assignment and says what it assigned.
// The assignment is untrusted, so bash is restricted and finds no command.
func inBash(t testing.TB, assignment, name string) []string {
	t.Helper()
	cmd := exec.Command("/bin/bash", "--norc", "--noprofile", "-r", "-c", assignment+"\nprintf '%s\\0' \"${"+name+"[@]}\"")
	cmd.Env = []string{"PATH=/nonexistent", "LC_ALL=C"}
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash on %q: %v", assignment, err)
	}
	got := strings.Split(string(out), "\x00")
	return got[:len(got)-1]
}

// TestParseShapes reads what releases write: scripts that machines really run.
func TestParseShapes(t *testing.T) {
	whole := []string{"x_tables", "nf_nat", "nf_conntrack"}
	for _, c := range []struct {
		shape inittest.Shape
		array []string
		flush bool
	}{
		{inittest.EL5, nil, true},
		{inittest.EL6, whole, false},
		{inittest.Early, whole, true},
		{inittest.EL7, whole, false},
		{inittest.EL8, nil, false},
	} {
		for _, family := range host.Families {
			script := c.shape.Script(family)
			check := exec.Command("/bin/bash", "-n")
			check.Stdin = strings.NewReader(script)
			if out, err := check.CombinedOutput(); err != nil {
				t.Fatalf("%s is not valid bash: %s", c.shape.Name, out)
			}
			s := parse(script)
			if s.Refusal != "" {
				t.Fatalf("%s: refused, line %d: %s", c.shape.Name, s.RefusalLine, s.Refusal)
			}
			if diff := cmp.Diff(c.array, words(s.Array)); diff != "" {
				t.Error(c.shape.Name, diff)
			}
			if s.Array != nil {
				checkSpans(t, s.Content, s.Array)
				if line := 1 + strings.Count(script[:strings.Index(script, "NF_MODULES_COMMON=")], "\n"); s.Array.Line != line {
					t.Errorf("%s: line %d, want %d", c.shape.Name, s.Array.Line, line)
				}
			}
			if s.FlushesFirst != c.flush || s.Unloads != (c.shape.Unload != "") {
				t.Errorf("%s: flushes first %v, unloads %v", c.shape.Name, s.FlushesFirst, s.Unloads)
			}
			if diff := cmp.Diff(c.shape.Sysctl, s.SysctlFrom); diff != "" {
				t.Error(c.shape.Name, diff)
			}
		}
	}
}

func TestFlushesFirst(t *testing.T) {
	for script, want := range map[string]bool{
		"stop() { iptables -F; iptables -P INPUT ACCEPT; }":                                           true,
		"stop() { iptables -P INPUT ACCEPT; iptables --flush; }":                                      false,
		"a() { $IPTABLES -t $t -F; }\nb() { $IPTABLES -P INPUT $1; }\nstop() { b ACCEPT; a; }":        false,
		"function stop { if x; then a; fi; b; }\na() { \"$IPT\" -F; }\nb() { $IPT -P INPUT ACCEPT; }": true,
		"stop() { stop; iptables -F; }":                                                               true,
		"stop() { grep -F x y; fgrep -P z; ip6tables --policy INPUT ACCEPT; }":                        false,
		"start() { iptables -F; }\nstop() { iptables -P INPUT ACCEPT; iptables -F; }":                 false,
		"stop() { inner() { iptables -F; }; iptables -P INPUT ACCEPT; }":                              false,
		"iptables -F":            false,
		"stop() { iptables -F; ": false,
	} {
		if s := parse(script); s.FlushesFirst != want {
			t.Errorf("%q: %v, want %v", script, s.FlushesFirst, want)
		}
	}
}

// FuzzBehaviour holds that any script can be read, and that what is only said
// in a comment changes nothing.
func FuzzBehaviour(f *testing.F) {
	for _, s := range inittest.Shapes() {
		f.Add(s.Script(host.IPv4))
	}
	f.Add("stop() { a; }; a() { b; }; b() { a; iptables -F; }")
	f.Add("stop() { $(iptables -F) <(rmmod x) ${a:-$(modprobe -r y)}; }")
	f.Add("TABLES_SYSCTL_LOAD_LIST=/etc/sysctl.conf/x; cat /etc/sysctl.d")
	f.Fuzz(func(t *testing.T, script string) {
		s := parse(script)
		for _, place := range s.SysctlFrom {
			if !strings.Contains(script, place) {
				t.Errorf("%q looks in %s", script, place)
			}
		}
		if s.FlushesFirst && !strings.Contains(script, "stop") || s.Unloads && !strings.Contains(script, "mod") {
			t.Errorf("%q flushes first %v, unloads %v", script, s.FlushesFirst, s.Unloads)
		}
		if !strings.HasSuffix(script, "\n") {
			return
		}
		again := parse(script + "# iptables -F; rmmod x; /etc/sysctl.conf\n")
		if again.FlushesFirst != s.FlushesFirst || again.Unloads != s.Unloads || !slices.Equal(again.SysctlFrom, s.SysctlFrom) {
			// An open here-document takes the comment for its text.
			if !strings.Contains(script, "<<") {
				t.Errorf("a comment changes what %q does", script)
			}
		}
	})
}

func checkSpans(t testing.TB, content string, list *host.WordList) {
	t.Helper()
	at := list.Inner.Start
	for _, w := range list.Words {
		if w.Span.Start < at || w.Span.End > list.Inner.End || w.Span.End < w.Span.Start {
			t.Fatalf("span %+v out of place in %+v", w.Span, list.Inner)
		}
		if raw := content[w.Span.Start:w.Span.End]; raw != w.Text && raw != `"`+w.Text+`"` && raw != "'"+w.Text+"'" {
			t.Fatalf("the span of %q holds %q", w.Text, raw)
		}
		at = w.Span.End
	}
}

func TestParseAccepts(t *testing.T) {
	for script, want := range map[string][]string{
		"NF_MODULES_COMMON=()":                                   {},
		"NF_MODULES_COMMON=(a 'b' \"c\") NF_MODULES=(d)":         {"a", "b", "c"},
		"declare -a NF_MODULES_COMMON=(a b)":                     {"a", "b"},
		"typeset NF_MODULES_COMMON=(a)":                          {"a"},
		"x=1; NF_MODULES_COMMON=(a\n\n b # c\n)":                 {"a", "b"},
		"NF_MODULES_COMMON=(a \\\n b)":                           {"a", "b"},
		"NF_MODULES_COMMON=(a)\necho NF_MODULES_COMMON is set":   {"a"},
		"NF_MODULES_COMMON=(a)\nx=${NF_MODULES_COMMON[*]/a/b}":   {"a"},
		"# NF_MODULES_COMMON=(z)\nNF_MODULES_COMMON=(a)":         {"a"},
		"NF_MODULES_COMMON_V6=(z)\nMY_NF_MODULES_COMMON=(y)":     nil,
		"# no array, only a word about NF_MODULES_COMMON":        nil,
		"for m in \"${NF_MODULES_COMMON[@]}\"; do :; done":       nil,
		"this is ( not bash":                                     nil,
		"NF_MODULES_COMMON=(caf-e x_tables.ko nf/nat a:b,c@1+%)": {"caf-e", "x_tables.ko", "nf/nat", "a:b,c@1+%"},
	} {
		s := parse(script)
		if s.Refusal != "" {
			t.Errorf("%q: refused: %s", script, s.Refusal)
		}
		if diff := cmp.Diff(want, words(s.Array)); diff != "" {
			t.Errorf("%q: %s", script, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const ok = "NF_MODULES_COMMON=(a)\n"
	for _, c := range []struct {
		script, why string
		line        int
	}{
		{ok + "\nNF_MODULES_COMMON=(b)", "assigned twice, on line 1", 3},
		{ok + "NF_MODULES_COMMON+=(b)", "appended to", 2},
		{ok + "NF_MODULES_COMMON[1]=b", "by index", 2},
		{ok + "unset NF_MODULES_COMMON", "may be changed", 2},
		{ok + "unset 'NF_MODULES_COMMON[0]'", "may be changed", 2},
		{ok + "read -a NF_MODULES_COMMON </dev/null", "may be changed", 2},
		{ok + "mapfile -t NF_MODULES_COMMON", "may be changed", 2},
		{ok + "printf -v NF_MODULES_COMMON x", "may be changed", 2},
		{ok + "eval 'NF_MODULES_COMMON=(b)'", "may be changed", 2},
		{ok + "eval \"NF_MODULES_COMMON=($x)\"", "may be changed", 2},
		{ok + "declare -n ref=NF_MODULES_COMMON", "may be changed", 2},
		{ok + "(( NF_MODULES_COMMON[0] = 1 ))", "", 2},
		{ok + "let NF_MODULES_COMMON=1", "", 2},
		{ok + "for NF_MODULES_COMMON in b; do :; done", "may be changed", 2},
		{ok + ": ${NF_MODULES_COMMON:=b}", "by an expansion", 2},
		{ok + "echo ${NF_MODULES_COMMON:=b}", "by an expansion", 2},
		{ok + "echo \"$(unset NF_MODULES_COMMON; :)\"", "may be changed", 2},
		{ok + "f() {\nlocal NF_MODULES_COMMON\n}", "without a value", 3},
		{ok + "export NF_MODULES_COMMON", "without a value", 2},
		{ok + "stop() {\n NF_MODULES_COMMON=(b)\n}", "inside a function", 3},
		{"f() { NF_MODULES_COMMON=(b); }", "inside a function", 1},
		{"if x; then\nNF_MODULES_COMMON=(b)\nfi", "inside a function, a condition", 2},
		{"x && NF_MODULES_COMMON=(b)", "a condition", 1},
		{"NF_MODULES_COMMON=(b) >x", "another command", 1},
		{"NF_MODULES_COMMON=(b) &", "another command", 1},
		{"! NF_MODULES_COMMON=(b)", "another command", 1},
		{"declare -A NF_MODULES_COMMON=(b)", "another command", 1},
		{"declare -r NF_MODULES_COMMON=(b)", "another command", 1},
		{"readonly NF_MODULES_COMMON=(b)", "another command", 1},
		{"NF_MODULES_COMMON='a b'", "not assigned as an array", 1},
		{"NF_MODULES_COMMON=", "not assigned as an array", 1},
		{"NF_MODULES_COMMON=([0]=a)", "with an index", 1},
		{"NF_MODULES_COMMON=(a\n$x)", "not a plain word", 2},
		{"NF_MODULES_COMMON=($(lsmod))", "not a plain word", 1},
		{"NF_MODULES_COMMON=(`lsmod`)", "not a plain word", 1},
		{"NF_MODULES_COMMON=(nf_*)", "not a plain word", 1},
		{"NF_MODULES_COMMON=({a,b})", "not a plain word", 1},
		{"NF_MODULES_COMMON=(~)", "not a plain word", 1},
		{"NF_MODULES_COMMON=(a\\ b)", "not a plain word", 1},
		{"NF_MODULES_COMMON=('a'b)", "not a plain word", 1},
		{"NF_MODULES_COMMON=($'a')", "not a plain word", 1},
		{"NF_MODULES_COMMON=(\"a$b\")", "not a plain word", 1},
		{"NF_MODULES_COMMON=(a)\nif", "not valid bash", 2},
		{"x=1\r\nNF_MODULES_COMMON=(a)", "carriage return", 1},
	} {
		s := parse(c.script)
		if s.Array != nil || s.Refusal == "" || !strings.Contains(s.Refusal, c.why) || s.RefusalLine != c.line {
			t.Errorf("%q: array %q, line %d: %q; want line %d: %q", c.script, words(s.Array), s.RefusalLine, s.Refusal, c.line, c.why)
		}
	}
}

// FuzzParse holds that an array which Parse accepts is what bash assigns, and
// that taking out a word or adding one changes just that.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"x_tables nf_nat nf_conntrack", "\n a # b\n 'c d' \"e\"\n", "", "a\\\n b", "a#b", "#a\n", "[0]=a", "a=b", "~", "!x", "\"!a\"", "-n", "''", "a;b", "$'a'", "a\tb", "(a)", "a\vb", "\xc2\xa0", "a)#", "if then", "{a,b}", "'a'\\\n'b'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, inner string) {
		script := "# before\nNF_MODULES_COMMON=(" + inner + ") # after\n: \"${NF_MODULES_COMMON[@]}\"\n"
		s := parse(script)
		if (s.Array == nil) == (s.Refusal == "") {
			t.Fatalf("neither array nor refusal, or both: %+v", s)
		}
		if s.Array == nil {
			return
		}
		checkSpans(t, script, s.Array)
		got := words(s.Array)
		in := s.Array.Inner
		bash := inBash(t, "NF_MODULES_COMMON=("+script[in.Start:in.End]+")", "NF_MODULES_COMMON")
		if len(got) == 0 && slices.Equal(bash, []string{""}) { // printf prints once for no words
			bash = nil
		}
		if !slices.Equal(got, bash) {
			t.Fatalf("%q: we say %q, bash says %q", script, got, bash)
		}
		for i, w := range s.Array.Words {
			edits := map[string][]string{
				script[:w.Span.Start] + script[w.Span.End:]:               slices.Delete(slices.Clone(got), i, i+1),
				script[:w.Span.End] + " nf_nat" + script[w.Span.End:]:     slices.Insert(slices.Clone(got), i+1, "nf_nat"),
				script[:w.Span.Start] + "new_word" + script[w.Span.End:]:  slices.Replace(slices.Clone(got), i, i+1, "new_word"),
				script[:w.Span.Start] + "nf_nat " + script[w.Span.Start:]: slices.Insert(slices.Clone(got), i, "nf_nat"),
			}
			for edited, want := range edits {
				again := parse(edited)
				if !slices.Equal(words(again.Array), want) {
					t.Fatalf("%q: %q (%s), want %q", edited, words(again.Array), again.Refusal, want)
				}
			}
		}
	})
}

func parseConfig(name, content string) host.InitConfig {
	return initscript.ParseConfig(host.File{Path: "/etc/sysconfig/" + name, Exists: true, Content: content})
}

func TestParseConfig(t *testing.T) {
	const content = `# Modules to load after the rules.
#IPTABLES_MODULES="nf_nat_ftp"
IPTABLES_MODULES="nf_conntrack_ftp	nf_nat_ftp" # helpers
IPTABLES_MODULES_UNLOAD="yes"
IPTABLES_SYSCTL_LOAD_LIST='.nf_conntrack
 .bridge-nf'
`
	c := parseConfig("iptables-config", content)
	if c.Refusal != "" {
		t.Fatal(c.Refusal)
	}
	if diff := cmp.Diff([]string{"nf_conntrack_ftp", "nf_nat_ftp"}, words(c.Modules)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{".nf_conntrack", ".bridge-nf"}, words(c.SysctlLoad)); diff != "" {
		t.Error(diff)
	}
	checkSpans(t, content, c.Modules)
	checkSpans(t, content, c.SysctlLoad)
	if c.Modules.Line != 3 || c.SysctlLoad.Line != 5 {
		t.Error(c.Modules.Line, c.SysctlLoad.Line)
	}
	if got := content[c.Modules.Inner.Start:c.Modules.Inner.End]; got != "nf_conntrack_ftp\tnf_nat_ftp" {
		t.Errorf("Inner holds %q", got)
	}

	for _, c := range []struct {
		content, refusal string
		line             int
		want             []string
		inner            string
	}{
		{"", "", 0, nil, ""},
		{"IP6TABLES_MODULES=", "", 0, []string{}, ""},
		{"IP6TABLES_MODULES= # c\n", "", 0, []string{}, ""},
		{"IP6TABLES_MODULES=\"\"", "", 0, []string{}, ""},
		{"IP6TABLES_MODULES=nf_conntrack_ftp", "", 0, []string{"nf_conntrack_ftp"}, "nf_conntrack_ftp"},
		{"IP6TABLES_MODULES=' a '", "", 0, []string{"a"}, " a "},
		{"IPTABLES_MODULES=\"x\"", "", 0, nil, ""},
		{"\nIP6TABLES_MODULES=\"$X a\"", "not a plain string", 2, nil, ""},
		{"IP6TABLES_MODULES=a\nIP6TABLES_MODULES=b", "assigned twice", 2, nil, ""},
		{"IP6TABLES_MODULES=a\nIP6TABLES_MODULES+=b", "appended to", 2, nil, ""},
		{"IP6TABLES_MODULES=(a b)", "as an array", 1, nil, ""},
		{"IP6TABLES_MODULES=a b", "another command", 1, nil, ""},
		{"[ -n x ] && IP6TABLES_MODULES=a", "a condition", 1, nil, ""},
		{"IP6TABLES_MODULES=\"a", "not valid bash", 1, nil, ""},
		{"IP6TABLES_SYSCTL_LOAD_LIST=$X", "SYSCTL_LOAD_LIST is not a plain string", 1, nil, ""},
	} {
		got := parseConfig("ip6tables-config", c.content)
		if !strings.Contains(got.Refusal, c.refusal) || (c.refusal == "") != (got.Refusal == "") || got.RefusalLine != c.line {
			t.Errorf("%q: line %d: %q", c.content, got.RefusalLine, got.Refusal)
		}
		if diff := cmp.Diff(c.want, words(got.Modules)); diff != "" {
			t.Errorf("%q: %s", c.content, diff)
		}
		if l := got.Modules; l != nil && c.content[l.Inner.Start:l.Inner.End] != c.inner {
			t.Errorf("%q: Inner holds %q", c.content, c.content[l.Inner.Start:l.Inner.End])
		}
	}
}

// FuzzParseConfig holds that a string which ParseConfig accepts is what bash
// assigns, split at blanks.
func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{`"a b"`, `'a b'`, "a", "", `"a`, `"a\b"`, "\"a\n b\"", `"!"`, "'!'", `"a"b`, "a b", "~", "a;b", "#", " #", `"'"`, `'"'`, "\"\t\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		content := "x=1\nIPTABLES_MODULES=" + value + "\n"
		c := parseConfig("iptables-config", content)
		if c.Modules == nil || c.Refusal != "" {
			return
		}
		checkSpans(t, content, c.Modules)
		in := c.Modules.Inner
		if in.Start > 0 && (content[in.Start-1] == '"' || content[in.Start-1] == '\'') {
			in = host.Span{Start: in.Start - 1, End: in.End + 1}
		}
		got := inBash(t, "IPTABLES_MODULES="+content[in.Start:in.End], "IPTABLES_MODULES")
		split := strings.FieldsFunc(strings.Join(got, ""), func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' })
		if !slices.Equal(split, words(c.Modules)) {
			t.Fatalf("%q: we say %q, bash says %q", content, words(c.Modules), split)
		}
	})
}

func TestPaths(t *testing.T) {
	root := testhost.Tree(t, map[string]string{
		"/etc/rc.d/init.d/iptables": "", "/usr/libexec/iptables/ip6tables.init": "", "/etc/sysconfig/iptables-config": "",
		"/etc/init.d": "-> rc.d/init.d",
	})
	check := func(want []string) func([]string, error) {
		return func(got []string, err error) {
			t.Helper()
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		}
	}
	check([]string{"/etc/init.d/iptables", "/usr/libexec/iptables/ip6tables.init"})(initscript.Paths(root, nil))
	check([]string{"/opt/fw", "/etc/rc.d/init.d/iptables"})(initscript.Paths(root, []string{"/opt/fw", "/etc/rc.d/init.d/iptables", "/etc/init.d/iptables"}))
	check(nil)(initscript.Paths(root, []string{}))
	check([]string{"/etc/sysconfig/iptables-config"})(initscript.ConfigPaths(root))
}
