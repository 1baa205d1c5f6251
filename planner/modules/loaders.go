package modules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/words"
)

// loaders sees to what would load connection tracking again, or would fail at
// boot because it cannot. What only modprobe loads is kept out by the block:
// those lines are named. What the block does not stop blocks the plan.
func (p *stage) loaders() {
	if p.l.Conntrack.Kind == host.ConntrackModule {
		p.installs()
		p.scriptLoads()
	}
	p.nftFiles()
	if p.l.Boot == nil {
		return
	}
	for _, s := range etc.Services {
		var how []string
		if slices.Contains(p.l.Boot.Running, s.Name) {
			how = append(how, "runs")
		}
		if slices.Contains(p.l.Boot.Services, s.Name) {
			how = append(how, "starts at boot")
		}
		if len(how) > 0 && s.Does != "" {
			p.Warn("service."+s.Name, fmt.Sprintf(`%s %s and %s, which it cannot without connection tracking: stop and disable it, or use mode = "tuned"`,
				s.Name, strings.Join(how, " and "), s.Does), p.d.ModeSource)
		}
	}
}

// installs takes away the install commands of nf_conntrack that are no block:
// modprobe runs the first that it finds (kmod_module_get_install_commands in
// libkmod), so one in an earlier file would have the block's place.
func (p *stage) installs() {
	target := words.Or(p.d.Files.Modprobe, etc.DefaultModprobeFile)
	for _, f := range p.l.ModprobeFiles {
		for _, e := range f.Entries {
			where := etc.Place(f.Path, e.Line)
			named := slices.IndexFunc(e.Args, func(a host.ModprobeArg) bool { return IsConntrack(strings.ReplaceAll(a.Text, "-", "_")) })
			switch {
			case e.Command == "install" && etc.Globs(e.Module, "nf_conntrack"):
				if etc.IsNoop(e) {
					continue
				}
				if etc.Editable(f.File, target) {
					w := p.edit.File(f.File, "file.")
					w.Replace(e.Span, "")
					w.Because("this command would be run for nf_conntrack in place of the one that blocks it", p.d.ModeSource)
					continue
				}
				p.Block(change.Block{
					Risk: declared.RiskModuleHeld, Address: "file." + f.Path, Where: where,
					Why:    "this command would be run for nf_conntrack in place of the one that blocks it",
					Remedy: `mask the file by one of the same name in /etc/modprobe.d, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
				})
			case e.Command == "softdep" && named >= 0 && !IsConntrack(e.Module):
				p.Warn("file."+f.Path, fmt.Sprintf("%s: a load of %s asks for %s too, which is blocked: it goes without", where, e.Module, e.Args[named].Text), p.d.ModeSource)
			case e.Command == "install" && named >= 0 && !IsConntrack(e.Module):
				p.Warn("file."+f.Path, fmt.Sprintf("%s: a load of %s runs a command about %s: see that it does not load it past the block", where, e.Module, e.Args[named].Text), p.d.ModeSource)
			}
		}
	}
}

// scriptLoads names the lines of scripts and of the initramfs that load
// connection tracking.
func (p *stage) scriptLoads() {
	for _, s := range p.l.Scripts {
		for _, load := range s.Loads {
			if Named(p.l, load.Module).Module == "" {
				continue
			}
			where := fmt.Sprintf("%s:%d: %s", s.Path, load.Line, load.Text)
			if !load.Past {
				p.Warn("file."+s.Path, where+": this fails while loading is blocked: take it away", p.d.ModeSource)
				continue
			}
			p.Block(change.Block{
				Risk: declared.RiskModuleHeld, Address: "file." + s.Path, Where: where,
				Why:    "this loads " + load.Module + " whatever modprobe.d says, so the next boot would have connection tracking again",
				Remedy: `take the line away, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
			})
		}
	}
	for _, f := range p.l.Initramfs {
		for _, e := range f.Entries {
			if Named(p.l, e.Module).Module == "" {
				continue
			}
			p.Block(change.Block{
				Risk: declared.RiskModuleHeld, Address: "file." + f.Path, Where: fmt.Sprintf("%s:%d: %s", f.Path, e.Line, e.Module),
				Why:    "the initramfs loads this module before the root file system with its modprobe.d is there, so the next boot would have connection tracking again",
				Remedy: `take the line away and make the initramfs anew, or allow_risk = ["module_held"]`, Override: true, Source: p.d.ModeSource,
				Commands: []string{"update-initramfs -u -k all"},
			})
		}
	}
}

// nftFiles: nft loads a file whole or not at all, so one line that needs
// connection tracking leaves a host that cannot load it without any of them.
func (p *stage) nftFiles() {
	enabled := p.l.Boot != nil && slices.Contains(p.l.Boot.Services, etc.NFTablesService)
	for _, f := range p.l.NFTFiles {
		for i, l := range f.Lines {
			where := fmt.Sprintf("%s:%d: %s", f.Path, l.Line, l.Text)
			if i == change.MaxNamed && len(f.Lines) > change.MaxNamed+1 {
				var lines []string
				for _, l := range f.Lines[i:] {
					lines = append(lines, fmt.Sprint(l.Line))
				}
				where = fmt.Sprintf("%s: lines %s too", f.Path, strings.Join(lines, ", "))
			}
			if !enabled {
				p.Warn("file."+f.Path, where+": this needs connection tracking; nftables.service, which would load the file at boot, is not enabled", p.d.ModeSource)
			} else {
				p.Block(change.Block{
					Risk: declared.RiskSavedRules, Address: "file." + f.Path, Where: where,
					Why:    "nftables.service loads this file at boot, which fails as a whole while connection tracking is blocked: the host would come up without any of its rules",
					Remedy: `rewrite the line without connection state or translation, or allow_risk = ["saved_rules"] to leave the file as it is`, Override: true, Source: p.d.ModeSource,
				})
			}
			if i == change.MaxNamed {
				break
			}
		}
		for _, inc := range f.Includes {
			if !slices.ContainsFunc(p.l.NFTFiles, func(o host.NFTFile) bool { return etc.Globs(inc.Path, o.Path) }) && !etc.IsGlob(inc.Path) {
				p.Warn("file."+f.Path, fmt.Sprintf("%s:%d includes %s, which was not read: whether that needs connection tracking is not known", f.Path, inc.Line, inc.Path), p.d.ModeSource)
			}
		}
	}
}
