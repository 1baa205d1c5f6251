package nft

import (
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// match adds a match of xtables, of which the kernel has its private data alone.
func (b *builder) match(e *host.NFTExpr) {
	switch name, _, _ := strings.Cut(e.Object, "/"); name {
	case "comment":
	case "limit", "hashlimit":
		b.program().Rate()
	default:
		b.vague()
	}
}

// target adds a target of xtables.
func (b *builder) target(e *host.NFTExpr) {
	switch name, _, _ := strings.Cut(e.Object, "/"); name {
	case "LOG", "NFLOG", "TCPMSS", "DSCP", "TOS", "TTL", "HL", "CLASSIFY", "CHECKSUM", "TRACE":
	default:
		b.anything, b.done = true, true
	}
}
