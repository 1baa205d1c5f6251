package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
)

// told is what a plan says, by how it says it: "block ADDRESS WHERE" and
// "warning ADDRESS TEXT".
func told(p Plan) string {
	var b strings.Builder
	for _, x := range p.Blocks {
		b.WriteString("block " + x.Address + " " + string(x.Risk) + " " + x.Where + "\n")
	}
	for _, w := range p.Warnings {
		b.WriteString("warning " + w.Address + " " + w.Text + "\n")
	}
	return b.String()
}

// TestLoaders: whoever would load connection tracking again is named by file
// and line: in a warning where the block on loading holds it off, else in a
// block, which can be accepted.
func TestLoaders(t *testing.T) {
	script := func(loads ...host.ScriptLoad) []host.BootScript {
		return []host.BootScript{{File: host.File{Path: "/etc/rc.local", Exists: true}, Loads: loads}}
	}
	conf := func(lines ...host.NFTLine) []host.NFTFile {
		return []host.NFTFile{{File: host.File{Path: "/etc/nftables.conf", Exists: true}, Lines: lines}}
	}
	ct := host.NFTLine{Line: 4, Text: "ct state new accept"}
	var many []host.NFTLine
	for i := range 30 {
		many = append(many, host.NFTLine{Line: i + 1, Text: "ct state new"})
	}
	for name, test := range map[string]struct {
		change func(*host.Live)
		want   string // empty: nothing is said
	}{
		"nothing": {func(l *host.Live) {}, ""},
		"a script": {func(l *host.Live) {
			l.Scripts = script(host.ScriptLoad{Module: "nf_conntrack", Line: 3, Text: "modprobe nf_conntrack"})
		}, "warning file./etc/rc.local /etc/rc.local:3: modprobe nf_conntrack"},
		"insmod": {func(l *host.Live) {
			l.Scripts = script(host.ScriptLoad{Module: "nf_conntrack", Line: 3, Text: "insmod x", Past: true})
		}, "block file./etc/rc.local module_held /etc/rc.local:3: insmod x"},
		"no matter": {func(l *host.Live) {
			l.Scripts = script(host.ScriptLoad{Module: "loop", Line: 3, Text: "modprobe loop"})
		}, ""},
		"initramfs": {func(l *host.Live) {
			l.Initramfs = []host.ModulesLoadFile{{File: host.File{Path: "/etc/initramfs-tools/modules"}, Entries: []host.ModulesLoadEntry{{Module: "loop", Line: 1}, {Module: "nf_nat", Line: 2}}}}
		}, "block file./etc/initramfs-tools/modules module_held /etc/initramfs-tools/modules:2: nf_nat"},
		"softdep": {func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "\nsoftdep dummy pre: nf_conntrack\n")}
		}, "warning file./etc/modprobe.d/a.conf /etc/modprobe.d/a.conf:2: a load of dummy asks for nf_conntrack"},
		"install of another": {func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/etc/modprobe.d/a.conf", "install dummy /sbin/modprobe nf-conntrack\n")}
		}, "warning file./etc/modprobe.d/a.conf /etc/modprobe.d/a.conf:1: a load of dummy runs a command about nf-conntrack"},
		"install of a package": {func(l *host.Live) {
			l.ModprobeFiles = []host.ModprobeFile{modprobeFile("/usr/lib/modprobe.d/a.conf", "install nf_conn* /sbin/modprobe -i nf_conntrack; x\n")}
		}, "block file./usr/lib/modprobe.d/a.conf module_held /usr/lib/modprobe.d/a.conf:1"},
		"docker runs":               {func(l *host.Live) { l.Boot = &host.Boot{Running: []string{"docker"}} }, "warning service.docker docker runs and makes nat rules"},
		"ufw boots":                 {func(l *host.Live) { l.Boot = &host.Boot{Services: []string{"iptables", "ufw"}} }, "warning service.ufw ufw starts at boot and filters"},
		"nftables.conf, not loaded": {func(l *host.Live) { l.NFTFiles = conf(ct) }, "warning file./etc/nftables.conf /etc/nftables.conf:4: ct state new accept: "},
		"nftables.conf, loaded": {func(l *host.Live) {
			l.NFTFiles, l.Boot = conf(ct), &host.Boot{Services: []string{"nftables"}}
		}, "block file./etc/nftables.conf saved_rules /etc/nftables.conf:4: ct state new accept"},
		"nftables.conf without ct": {func(l *host.Live) { l.NFTFiles, l.Boot = conf(), &host.Boot{Services: []string{"nftables"}} }, ""},
		"many lines": {func(l *host.Live) {
			l.NFTFiles, l.Boot = conf(many...), &host.Boot{Services: []string{"nftables"}}
		}, "lines 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30 too"},
		"an include that was not read": {func(l *host.Live) {
			l.NFTFiles = conf()
			l.NFTFiles[0].Includes = []host.NFTInclude{{Path: "/etc/nftables.conf", Line: 1}, {Path: "/etc/no*.nft", Line: 2}, {Path: "/srv/x", Line: 3}}
		}, "warning file./etc/nftables.conf /etc/nftables.conf:3 includes /srv/x"},
	} {
		l := moduleHost()
		test.change(&l)
		plan := Diff(disabling(), l)
		got := told(plan)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || len(plan.Blocks) > change.MaxNamed+1 {
			t.Errorf("%s: says\n%swant %q", name, got, test.want)
		}
		for _, b := range plan.Blocks {
			if !b.Override || Diff(disabling(b.Risk), l).Blocked() {
				t.Errorf("%s: %s cannot be accepted", name, b.Risk)
			}
		}
		if got := told(Diff(declared.Desired{Mode: declared.Notrack, Families: host.Families}, l)); got != "" {
			t.Errorf("%s: mode notrack says\n%s", name, got)
		}
	}
}

// TestInstallCommand: one that is not ctplan's goes, whichever file modprobe
// reads first.
func TestInstallCommand(t *testing.T) {
	for _, path := range []string{"/etc/modprobe.d/a.conf", "/etc/modprobe.d/z.conf", etc.DefaultModprobeFile} {
		l := moduleHost()
		l.ModprobeFiles = []host.ModprobeFile{modprobeFile(path, "options x y=1\ninstall nf_conntrack /sbin/modprobe -i nf_conntrack; /sbin/sysctl -p\n")}
		l.ModprobeFiles[0].Exists = true
		plan := Diff(disabling(), l)
		after := map[string]string{}
		for _, c := range plan.Changes {
			if f, ok := c.(*change.FileChange); ok {
				after[f.After.Path] = f.After.Content
			}
		}
		const block = "install nf_conntrack /bin/false\n"
		want := map[string]string{path: "options x y=1\n", etc.DefaultModprobeFile: block}
		if path == etc.DefaultModprobeFile {
			want[path] = "options x y=1\n" + block
		}
		for p, text := range want {
			if after[p] != text {
				t.Errorf("%s: %s holds %q, want %q", path, p, after[p], text)
			}
		}
		if plan.Blocked() || len(after) != len(want) {
			t.Errorf("%s: %s%q", path, told(plan), after)
		}
	}
}

// TestServices: boot looks for each service once.
func TestServices(t *testing.T) {
	names := etc.ServiceNames()
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) || slices.Contains(names, "") {
		t.Errorf("%q", names)
	}
}
