package planner

import (
	"fmt"
	"slices"
	"strings"
)

// services are those that need connection tracking, and for what; those that
// restore rules files need what stands in the files.
var services = []struct{ name, does string }{
	{"netfilter-persistent", ""}, {"iptables-persistent", ""}, {"iptables", ""}, {"ip6tables", ""}, {nftService, ""},
	{"docker", "makes nat rules for its containers"},
	{"containerd", "runs containers, whose network plugins make nat rules"},
	{"crio", "runs containers, whose network plugins make nat rules"},
	{"podman-restart", "starts containers, for which podman makes nat rules"},
	{"kubelet", "runs pods, for which kube-proxy makes nat rules"},
	{"kube-proxy", "makes nat rules"},
	{"k3s", "makes nat rules"},
	{"k3s-agent", "makes nat rules"},
	{"rke2-server", "makes nat rules"},
	{"rke2-agent", "makes nat rules"},
	{"libvirtd", "makes nat rules for its networks"},
	{"virtnetworkd", "makes nat rules for its networks"},
	{"lxc-net", "makes nat rules for its bridge"},
	{"lxd", "makes nat rules for its networks"},
	{"snap.lxd.daemon", "makes nat rules for its networks"},
	{"incus", "makes nat rules for its networks"},
	{"firewalld", "filters by connection state"},
	{"ufw", "filters by connection state"},
	{"shorewall", "filters by connection state"},
	{"shorewall6", "filters by connection state"},
	{"ferm", "filters, mostly by connection state"},
	{"firehol", "filters by connection state"},
	{"csf", "filters by connection state"},
	{"tailscaled", "makes nat rules and rules on connection marks"},
	{"openvswitch-switch", "can track connections in its bridges"},
	{"conntrackd", "shares tracked connections with other hosts"},
}

// nftService is the service that loads nftables.conf.
const nftService = "nftables"

// Services are the names of the services that a plan can be about, as boot
// knows them.
func Services() []string {
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.name
	}
	return names
}

// loaders sees to what would load connection tracking again, or would fail at
// boot because it cannot. What only modprobe loads is kept out by the block:
// those lines are named. What the block does not stop blocks the plan.
func (p *stageModules) loaders() {
	if p.l.Conntrack.Kind == ConntrackModule {
		p.installs()
		p.scriptLoads()
	}
	p.nftFiles()
	if p.l.Boot == nil {
		return
	}
	for _, s := range services {
		var how []string
		if slices.Contains(p.l.Boot.Running, s.name) {
			how = append(how, "runs")
		}
		if slices.Contains(p.l.Boot.Services, s.name) {
			how = append(how, "starts at boot")
		}
		if len(how) > 0 && s.does != "" {
			p.Warn("service."+s.name, fmt.Sprintf(`%s %s and %s, which it cannot without connection tracking: stop and disable it, or use mode = "tuned"`,
				s.name, strings.Join(how, " and "), s.does), p.d.ModeSource)
		}
	}
}

// installs takes away the install commands of nf_conntrack that are no block:
// modprobe runs the first that it finds (kmod_module_get_install_commands in
// libkmod), so one in an earlier file would have the block's place.
func (p *stageModules) installs() {
	target := orDefault(p.d.Files.Modprobe, DefaultModprobeFile)
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			where := place(f.Path, e.Line)
			named := slices.IndexFunc(e.Args, func(a ModprobeArg) bool { return IsConntrackModule(strings.ReplaceAll(a.Text, "-", "_")) })
			switch {
			case e.Command == "install" && globs(e.Module, "nf_conntrack"):
				if isNoop(e) {
					continue
				}
				if editable(f.File, target) {
					w := p.edit.File(f.File, "file.")
					w.Replace(e.Span, "")
					w.Because("this command would be run for nf_conntrack in place of the one that blocks it", p.d.ModeSource)
					continue
				}
				p.Block(Block{
					Risk: RiskModuleHeld, Address: "file." + f.Path, Where: where,
					Why:    "this command would be run for nf_conntrack in place of the one that blocks it",
					Remedy: `mask the file by one of the same name in /etc/modprobe.d, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
				})
			case e.Command == "softdep" && named >= 0 && !IsConntrackModule(e.Module):
				p.Warn("file."+f.Path, fmt.Sprintf("%s: a load of %s asks for %s too, which is blocked: it goes without", where, e.Module, e.Args[named].Text), p.d.ModeSource)
			case e.Command == "install" && named >= 0 && !IsConntrackModule(e.Module):
				p.Warn("file."+f.Path, fmt.Sprintf("%s: a load of %s runs a command about %s: see that it does not load it past the block", where, e.Module, e.Args[named].Text), p.d.ModeSource)
			}
		}
	}
}

// scriptLoads names the lines of scripts and of the initramfs that load
// connection tracking.
func (p *stageModules) scriptLoads() {
	for _, s := range p.l.Scripts {
		for _, load := range s.Loads {
			if !IsConntrackModule(load.Module) {
				continue
			}
			where := fmt.Sprintf("%s:%d: %s", s.Path, load.Line, load.Text)
			if !load.Past {
				p.Warn("file."+s.Path, where+": this fails while loading is blocked: take it away", p.d.ModeSource)
				continue
			}
			p.Block(Block{
				Risk: RiskModuleHeld, Address: "file." + s.Path, Where: where,
				Why:    "this loads " + load.Module + " whatever modprobe.d says, so the next boot would have connection tracking again",
				Remedy: `take the line away, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
			})
		}
	}
	for _, f := range p.l.Initramfs {
		for _, e := range f.Entries {
			if !IsConntrackModule(e.Module) {
				continue
			}
			p.Block(Block{
				Risk: RiskModuleHeld, Address: "file." + f.Path, Where: fmt.Sprintf("%s:%d: %s", f.Path, e.Line, e.Module),
				Why:    "the initramfs loads this module before the root file system with its modprobe.d is there, so the next boot would have connection tracking again",
				Remedy: `take the line away and make the initramfs anew, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
				Commands: []string{"update-initramfs -u -k all"},
			})
		}
	}
}

// nftFiles: nft loads a file whole or not at all, so one line that needs
// connection tracking leaves a host that cannot load it without any of them.
func (p *stageModules) nftFiles() {
	enabled := p.l.Boot != nil && slices.Contains(p.l.Boot.Services, nftService)
	for _, f := range p.l.NFTFiles {
		for i, l := range f.Lines {
			where := fmt.Sprintf("%s:%d: %s", f.Path, l.Line, l.Text)
			if i == MaxNamed && len(f.Lines) > MaxNamed+1 {
				var lines []string
				for _, l := range f.Lines[i:] {
					lines = append(lines, fmt.Sprint(l.Line))
				}
				where = fmt.Sprintf("%s: lines %s too", f.Path, strings.Join(lines, ", "))
			}
			if !enabled {
				p.Warn("file."+f.Path, where+": this needs connection tracking; nftables.service, which would load the file at boot, is not enabled", p.d.ModeSource)
			} else {
				p.Block(Block{
					Risk: RiskSavedRules, Address: "file." + f.Path, Where: where,
					Why:    "nftables.service loads this file at boot, which fails as a whole while connection tracking is blocked: the host would come up without any of its rules",
					Remedy: `rewrite the line without connection state or translation, or allow_risk = ["saved_rules"] to leave the file as it is`, Override: true, Source: p.d.ModeSource,
				})
			}
			if i == MaxNamed {
				break
			}
		}
		for _, inc := range f.Includes {
			if !slices.ContainsFunc(p.l.NFTFiles, func(o NFTFile) bool { return globs(inc.Path, o.Path) }) && !isGlob(inc.Path) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d includes %s, which was not read: whether that needs connection tracking is not known", f.Path, inc.Line, inc.Path), p.d.ModeSource)
			}
		}
	}
}
