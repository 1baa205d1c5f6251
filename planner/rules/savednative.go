package rules

import (
	"slices"

	"github.com/ctplan/ctplan/planner/change"
	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/etc"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
	"github.com/ctplan/ctplan/planner/nftconf"
)

// savedNative has the files that nftables.service loads end with what the kernel
// ends with: ctplan's own file, and what goes of others cut out. What cannot be
// edited safely blocks the plan; where no service loads them, nothing outlives a boot.
func (p *stage) savedNative() {
	conf := &p.l.NFTConf
	var ops []change.NFTOp
	for _, c := range p.out.Kernel {
		if n, ok := c.(*change.NFTChange); ok {
			ops = append(ops, n.Ops...)
		}
	}
	own := nftconf.OwnPath(conf.Mains)
	stands := slices.ContainsFunc(p.l.NFTFiles, func(f host.NFTFile) bool { return f.Path == own })
	if p.carrier != declared.NFTables && !stands {
		return // ctplan has nothing in nftables' own tables, and never had
	}
	if p.l.Boot == nil || !slices.Contains(p.l.Boot.Services, etc.NFTablesService) {
		p.nativeUnsaved()
		return
	}
	edit, refused := nftconf.Keep(conf, p.l.NFT, nftables.Apply(p.l.NFT, ops))
	edit.Because, edit.Source = "nftables.service loads this file at boot", p.d.ModeSource
	if len(refused) == 0 {
		refused = edit.Apply(conf, p.l.NFTFiles, &p.out.Files)
	}
	for i, r := range refused {
		if i == change.MaxNamed {
			break
		}
		p.Block(change.Block{
			Risk: declared.RiskSavedRules, Address: "file." + own, Where: r.At, Why: "what nftables.service loads at boot cannot be brought in line with the kernel: " + r.Why,
			Remedy: `mend that, or allow_risk = ["saved_rules"] to change the kernel alone: a reboot, or a restart or reload of nftables.service, undoes it`, Override: true, Source: p.d.ModeSource,
		})
	}
}

// nativeUnsaved says that what is planned for nftables does not outlive a boot.
func (p *stage) nativeUnsaved() {
	if len(p.d.Native) > 0 {
		p.Warn("nftables", "what ctplan puts into nftables, and takes out of it, is changed in the kernel alone: it does not survive a reboot, nor a restart or reload of nftables.service, which is not enabled. Run ctplan apply again after either", p.d.ModeSource)
	}
}
