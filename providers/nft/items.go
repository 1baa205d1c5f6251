package nft

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftables"
)

// uses names the part, and the parts inside it, as host.NFTItem does.
func uses(e *host.NFTExpr) []string {
	switch e.Name {
	case "match", "target":
		return []string{e.Name + " " + extension(e)}
	case "objref":
		if kind := objectKinds[uint64(e.Key)]; kind != "" {
			return []string{kind}
		}
	case "dynset":
		list := []string{e.Name}
		for i := range e.Inner {
			list = append(list, uses(&e.Inner[i])...)
		}
		return list
	}
	return []string{e.Name}
}

// usesOf are those of all parts, each once, and whether one of them needs
// connection tracking.
func usesOf(parts []expression) (list []string, needs bool) {
	for i := range parts {
		if name := parts[i].Name; nftables.Module(name) == "" && name != "match" && name != "target" && name != "objref" && name != "dynset" {
			continue
		}
		for _, u := range uses(&parts[i].NFTExpr) {
			needs = needs || nftables.Module(u) != ""
		}
	}
	if !needs {
		return nil, false
	}
	for i := range parts {
		for _, u := range uses(&parts[i].NFTExpr) {
			if !slices.Contains(list, u) {
				list = append(list, u)
			}
		}
	}
	return list, true
}

// drops reports whether a part lets a packet go no further: drop, reject, or
// queue. A map of verdicts may hold some.
func drops(parts []expression) bool {
	for i := range parts {
		e := &parts[i]
		switch e.Name {
		case "reject", "queue":
			return true
		case "target":
			if slices.Contains([]string{"REJECT", "NFQUEUE", "DROP"}, extension(&e.NFTExpr)) {
				return true
			}
		case "lookup":
			if dst := attribute(e.raw, unix.NFTA_LOOKUP_DREG); dst != nil && e.Dst == unix.NFT_REG_VERDICT {
				return true
			}
		case "immediate":
			if e.Verdict == "drop" || e.Verdict == "queue" {
				return true
			}
		}
	}
	return false
}

// objectKinds are the objects of connection tracking, by type.
var objectKinds = map[uint64]string{
	unix.NFT_OBJECT_CT_HELPER: "ct helper", unix.NFT_OBJECT_CT_TIMEOUT: "ct timeout", unix.NFT_OBJECT_CT_EXPECT: "ct expectation",
	unix.NFT_OBJECT_SYNPROXY: "synproxy",
}

func addObject(t *host.NFTTable, m *message) {
	if kind := objectKinds[m.number(attrObjType)]; kind != "" {
		item := host.NFTItem{Kind: kind, Name: m.text(attrObjName), Uses: []string{kind}}
		if kind == "ct helper" {
			item.Text = cstring(attribute(m.attrs[attrObjData], attrHelperName))
		}
		t.Items = append(t.Items, item)
	}
}

// sorted puts items in the order of their kinds: chains, rules, objects, sets,
// flowtables.
func sorted(items []host.NFTItem) []host.NFTItem {
	rank := func(i host.NFTItem) int {
		switch i.Kind {
		case "chain":
			return 0
		case "rule":
			return 1
		case "set":
			return 3
		case "flowtable":
			return 4
		}
		return 2
	}
	slices.SortStableFunc(items, func(a, b host.NFTItem) int { return rank(a) - rank(b) })
	return items
}
