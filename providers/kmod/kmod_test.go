package kmod_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ctplan/ctplan/internal/run"
	"github.com/ctplan/ctplan/internal/test/testhost"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

// tree makes a root with files, and links where the content is "-> target".
func TestReadConntrack(t *testing.T) {
	const (
		dep     = "kernel/net/netfilter/nf_conntrack_ftp.ko.xz: kernel/net/netfilter/nf_conntrack.ko.xz\n"
		own     = "kernel/net/netfilter/nf_conntrack.ko.xz: kernel/net/ipv4/netfilter/nf_defrag_ipv4.ko.xz\n"
		release = "/proc/sys/kernel/osrelease"
		folder  = "/usr/lib/modules/6.1.0-test/"
		initial = "/proc/sys/net/core/netdev_max_backlog"
	)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  host.Conntrack
	}{
		{"module, loaded", map[string]string{
			"/sys/module/nf_conntrack/initstate":           "live\n",
			"/sys/module/nf_conntrack/parameters/hashsize": "65536\n",
			"/proc/sys/net/nf_conntrack_max":               "262144\n",
			"/proc/sys/net/netfilter/nf_conntrack_max":     "262144\n",
			"/proc/sys/net/netfilter/nf_conntrack_count":   "12\n",
		}, host.Conntrack{Kind: host.ConntrackModule, Loaded: true, Hashsize: 65536, InitialNetns: true, Count: 12, Max: 262144}},
		{"built in, seen from a namespace without sysfs for us", map[string]string{
			"/sys/module/nf_conntrack/parameters/acct":     "N\n",
			"/proc/sys/net/netfilter/nf_conntrack_buckets": "1024\n",
			"/proc/sys/net/netfilter/nf_conntrack_max":     "1024\n",
			"/proc/sys/net/netfilter/nf_conntrack_count":   "0\n",
		}, host.Conntrack{Kind: host.ConntrackBuiltin, Loaded: true, Hashsize: 1024, Max: 1024}},
		{"full at times", map[string]string{
			"/sys/module/nf_conntrack/parameters/hashsize": "1024\n",
			"/proc/net/stat/nf_conntrack": "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
				"000003e8  00000000 00000000 00000000 00000002 00000000 00000000 00000000 00000000 00000000 0000000a 00000001 00000000  00000000 00000000 00000000 00000000\n" +
				"000003e8  00000000 00000000 00000000 00000002 00000000 00000000 00000000 00000000 00000000 00000010 00000002 00000000  00000000 00000000 00000000 00000000\n",
		}, host.Conntrack{Kind: host.ConntrackBuiltin, Loaded: true, Hashsize: 1024, Drops: 26, EarlyDrops: 3}},
		{"module, not loaded", map[string]string{
			release: "6.1.0-test\n", initial: "1000\n", "/lib": "-> usr/lib", folder + "modules.dep": dep + own, folder + "modules.builtin": "kernel/fs/ext4/ext4.ko\n",
		}, host.Conntrack{Kind: host.ConntrackModule, InitialNetns: true}},
		{"another kernel's module, in a namespace", map[string]string{
			release: "6.2.0-test\n", "/lib": "-> usr/lib", folder + "modules.dep": own,
		}, host.Conntrack{Kind: host.ConntrackAbsent}},
		{"only something that needs it", map[string]string{
			release: "6.1.0-test\n", initial: "1000\n", "/lib": "-> usr/lib", folder + "modules.dep": dep,
		}, host.Conntrack{Kind: host.ConntrackAbsent, InitialNetns: true}},
		{"built in, by the list", map[string]string{
			release: "6.1.0-test\n", initial: "1000\n", "/lib": "-> usr/lib", folder + "modules.builtin": "kernel/net/netfilter/nf-conntrack.ko\n",
		}, host.Conntrack{Kind: host.ConntrackBuiltin, InitialNetns: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// /lib/modules is resolved by the kernel, so a relative link serves.
			got, err := kmod.ReadConntrack(testhost.Tree(t, c.files))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseModules(t *testing.T) {
	got := kmod.ParseModules("nf_conntrack 172032 2 nf_nat,xt_conntrack, Live 0xffffffffc0a00000\n" +
		"xt_tcpudp 20480 5 - Live 0x0000000000000000\n" +
		"unix 1 1 [permanent], Live 0x0\nold 5 -\nbroken\n\n")
	want := []host.Module{
		{Name: "nf_conntrack", Refs: 2, By: []string{"nf_nat", "xt_conntrack"}},
		{Name: "xt_tcpudp", Refs: 5},
		{Name: "unix", Refs: 1, By: []string{"[permanent]"}},
		{Name: "old", Refs: -1},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := kmod.ParseModules(""); got == nil {
		t.Error("no modules loaded is not the same as no module support")
	}
	if got, err := kmod.ReadModules(t.TempDir()); got != nil || err != nil {
		t.Error(got, err)
	}
}

func TestSetHashsize(t *testing.T) {
	const file = "/sys/module/nf_conntrack/parameters/hashsize"
	root := testhost.Tree(t, map[string]string{file: "65536000\n"})
	if err := kmod.SetHashsize(root, 512); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, file)); string(b) != "512\n" {
		t.Errorf("the file holds %q", b)
	}
	for _, n := range []int64{0, -1, 1 << 32} {
		if err := kmod.SetHashsize(root, n); err == nil {
			t.Errorf("SetHashsize(%d): no error", n)
		}
	}
	if err := kmod.SetHashsize(t.TempDir(), 512); err == nil || !strings.Contains(err.Error(), "not loaded") {
		t.Errorf("got %v", err)
	}
}

// kernel is a stateful fake of modprobe and rmmod over a root's /proc/modules.
type kernel struct {
	t      *testing.T
	root   string
	lines  map[string]string // of /proc/modules, by name
	drains int               // how often rmmod finds a module in use that nobody holds
	hollow bool              // modprobe ends well and does nothing, as "install … /bin/true" makes it
}

func newKernel(t *testing.T, lines ...string) *kernel {
	k := &kernel{t: t, root: testhost.Tree(t, map[string]string{"/proc/sys/kernel/osrelease": "6.1.0\n"}), lines: map[string]string{}}
	for _, l := range lines {
		k.lines[strings.Fields(l)[0]] = l
	}
	k.flush()
	return k
}

func (k *kernel) flush() {
	k.t.Helper()
	text := ""
	for _, l := range k.lines {
		text += l + "\n"
	}
	if err := os.WriteFile(filepath.Join(k.root, "/proc/modules"), []byte(text), 0o644); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernel) Run(ctx context.Context, c run.Cmd) ([]byte, error) {
	defer k.flush()
	name := c.Args[len(c.Args)-1]
	fail := func(why string) ([]byte, error) {
		return nil, &run.Error{Path: c.Path, Args: c.Args, Status: 1, Stderr: c.Path + ": ERROR: " + why + "\n"}
	}
	switch line := k.lines[name]; {
	case c.Path == "modprobe" && k.hollow:
	case c.Path == "modprobe" && name == "nf_missing":
		return fail("Module nf_missing not found in directory /lib/modules/6.1.0")
	case c.Path == "modprobe":
		k.lines[name] = name + " 1 0 - Live 0x0"
	case c.Path != "rmmod":
		return nil, &exec.Error{Name: c.Path, Err: exec.ErrNotFound}
	case line == "":
		return fail("Module " + name + " is not currently loaded")
	case strings.Contains(line, "[permanent]"):
		return fail("could not remove module " + name + ": Operation not permitted")
	case strings.Fields(line)[3] != "-":
		return fail("Module " + name + " is in use by: " + strings.Fields(line)[3])
	case k.drains > 0:
		k.drains--
		return fail("Module " + name + " is in use")
	default:
		delete(k.lines, name)
	}
	return nil, nil
}

func TestLoad(t *testing.T) {
	k := newKernel(t, "x_tables 1 0 - Live 0x0")
	ctx := context.Background()
	for range 2 {
		if err := kmod.Load(ctx, k, k.root, "nf_conntrack"); err != nil {
			t.Fatal(err)
		}
	}
	if k.lines["nf_conntrack"] == "" || len(k.lines) != 2 {
		t.Error(k.lines)
	}
	if err := kmod.Load(ctx, k, k.root, "nf_missing"); err == nil || !strings.Contains(err.Error(), "not found in directory") {
		t.Errorf("got %v", err)
	}
	k.hollow = true
	if err := kmod.Load(ctx, k, k.root, "nf_nat"); err == nil || !strings.Contains(err.Error(), "install command") {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"", "-r", "../x", "a b", "x;y"} {
		if kmod.Load(ctx, k, k.root, name) == nil || kmod.Unload(ctx, k, k.root, name) == nil {
			t.Errorf("%q is taken for a module's name", name)
		}
	}
}

func TestUnload(t *testing.T) {
	k := newKernel(t, "nf_conntrack 1 0 - Live 0x0", "nf_defrag_ipv4 1 0 - Live 0x0", "xt_CT 1 1 nf_foo, Live 0x0", "unix 1 1 [permanent], Live 0x0")
	k.drains = 2
	ctx := context.Background()
	for range 2 {
		if err := kmod.Unload(ctx, k, k.root, "nf-conntrack"); err != nil {
			t.Fatal(err)
		}
	}
	if k.lines["nf_conntrack"] != "" || len(k.lines) != 3 {
		t.Errorf("left are %v", k.lines)
	}
	if err := kmod.Unload(ctx, k, k.root, "unix"); err == nil || !strings.Contains(err.Error(), "cannot unload it") {
		t.Errorf("got %v", err)
	}
	if err := kmod.Unload(ctx, k, k.root, "xt_CT"); err == nil || !strings.Contains(err.Error(), "held by nf_foo") {
		t.Errorf("got %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	k.drains = 1000
	if err := kmod.Unload(cancelled, k, k.root, "nf_defrag_ipv4"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestThere: what is loaded or built in is there; where nothing tells what is
// built in, that is not known.
func TestThere(t *testing.T) {
	host := func(files map[string]string) string { return testhost.Tree(t, withModules(files)) }
	for name, tt := range map[string]struct {
		files        map[string]string
		there, known bool
	}{
		"a module, not loaded": {nil, false, true},
		"loaded":               {map[string]string{"sys/module/nf_tables/initstate": "live\n"}, true, true},
		"built in":             {map[string]string{modulesFolder + "modules.builtin": "kernel/net/netfilter/nf_tables.ko\n"}, true, true},
		"in no list":           {map[string]string{modulesFolder + "modules.dep": ""}, false, true},
		"no modules":           {map[string]string{"proc/modules": "none"}, false, false},
		"no tree":              {map[string]string{modulesFolder + "modules.dep": "none", modulesFolder + "modules.builtin": "none"}, false, false},
	} {
		if there, known := kmod.There(host(tt.files), "nf_tables"); there != tt.there || known != tt.known {
			t.Errorf("%s: %v %v, want %v %v", name, there, known, tt.there, tt.known)
		}
	}
}

const modulesFolder = "lib/modules/6.1.0-test/"

// withModules is a host of modules with changes: "none" takes a file away.
func withModules(files map[string]string) map[string]string {
	all := map[string]string{
		"proc/sys/kernel/osrelease": "6.1.0-test\n", "proc/modules": "x_tables 1 0 - Live 0x0\n",
		modulesFolder + "modules.dep":     "kernel/net/netfilter/nf_tables.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz\nkernel/net/netfilter/xt_CT.ko:\n",
		modulesFolder + "modules.builtin": "",
	}
	for name, content := range files {
		if all[name] = content; content == "none" {
			delete(all, name)
		}
	}
	return all
}

func TestLoading(t *testing.T) {
	names := []string{"xt_CT", "xt_comment", "nf_tables", "x_tables", "iptable_raw"}
	noTree := map[string]string{modulesFolder + "modules.dep": "none", modulesFolder + "modules.builtin": "none"}
	with := func(a, b map[string]string) map[string]string { out := maps.Clone(a); maps.Copy(out, b); return out }
	for name, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"all in the tree":             {nil, "tree: nf_tables x_tables xt_CT"},
		"disabled":                    {map[string]string{"proc/sys/kernel/modules_disabled": "1\n"}, "disabled tree: x_tables"},
		"not disabled":                {map[string]string{"proc/sys/kernel/modules_disabled": "0\n"}, "tree: nf_tables x_tables xt_CT"},
		"built in":                    {map[string]string{"proc/sys/kernel/modules_disabled": "1\n", modulesFolder + "modules.builtin": "kernel/net/netfilter/xt_CT.ko\n"}, "disabled tree: x_tables xt_CT"},
		"registered":                  {map[string]string{"proc/sys/kernel/modules_disabled": "1\n", "proc/thread-self/net/ip_tables_targets": "NOTRACK\n", "proc/thread-self/net/ip_tables_names": "raw\n"}, "disabled tree: iptable_raw x_tables xt_CT"},
		"tree gone":                   {noTree, ": x_tables"},
		"tree gone, nothing loaded":   {with(noTree, map[string]string{"proc/modules": "virtio 1 0 - Live 0x0\n"}), ":"},
		"tree gone, all of it inside": {with(noTree, map[string]string{"proc/modules": "virtio 1 0 - Live 0x0\n", "proc/thread-self/net/ip_tables_names": ""}), "nothing is known"},
		"no modules at all":           {map[string]string{"proc/modules": "none"}, "nothing is known"},
	} {
		got := "nothing is known"
		if l := kmod.ReadLoading(testhost.Tree(t, withModules(tt.files)), names, false); l != nil {
			got = ": " + strings.Join(l.Usable, " ")
			if l.Tree {
				got = "tree" + got
			}
			if l.Disabled {
				got = "disabled " + got
			}
			got = strings.TrimSpace(got)
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
