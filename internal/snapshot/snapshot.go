package snapshot

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/nftconf"
	"github.com/ctplan/ctplan/providers/iptables"
)

// MaxBytes is the size of the largest snapshot that Decode takes, in bytes.
const MaxBytes = 256 << 20

// Snapshot is what was read from one host.
type Snapshot struct {
	FormatVersion int                    `json:"format_version"`
	Host          host.Host              `json:"host"`
	Conntrack     host.Conntrack         `json:"conntrack"`
	Modules       []host.Module          `json:"modules"`           // null: the kernel has no module support
	Loading       *host.Loading          `json:"loading,omitempty"` // absent: the kernel loads nothing, or it was not read
	Trees         []host.ModuleTree      `json:"module_trees,omitempty"`
	Sysctls       map[string]host.Sysctl `json:"sysctls"`
	Addresses     []netip.Prefix         `json:"addresses,omitempty"` // of the host, where it routes; absent: not read
	Rules         []Rules                `json:"rules"`
	NFT           []host.NFTTable        `json:"nftables,omitempty"`        // what Rules do not hold
	NFTUnread     string                 `json:"nftables_unread,omitempty"` // why they could not be read
	Links         map[string]uint32      `json:"links,omitempty"`           // network interfaces and their indexes; absent: not read, or there are no tables
	Namespaces    []Namespace            `json:"namespaces,omitempty"`      // other network namespaces with rules that may need tracking
	Files         []File                 `json:"files"`
	Boot          *host.Boot             `json:"boot,omitempty"`        // absent: not read
	Connections   *host.Connections      `json:"connections,omitempty"` // absent: not read
	Notes         []string               `json:"notes,omitempty"`       // what could not be read, and what follows from that

	Archive *Archive `json:"-"` // what it was read from, where a script took it
}

// Rules is what one family's iptables-save printed.
type Rules struct {
	Family  host.Family
	Backend host.Backend
	Primary bool   // plain iptables speaks to this backend
	Version string // of iptables, "1.8.9"
	Text    string

	Incompatible []string // tables that it does not show, because of what nft has put there

	read iptables.Raw // where it was read on this host: parsed by then
}

// Kind says what a file is, and so which parser reads it.
type Kind string

// The kinds of files.
const (
	KindSysctl      Kind = "sysctl"       // sysctl.conf or a file of sysctl.d
	KindModprobe    Kind = "modprobe"     // a file of modprobe.d
	KindModulesLoad Kind = "modules_load" // a file of modules-load.d, or /etc/modules
	KindInitScript  Kind = "init_script"  // the init script of iptables or ip6tables
	KindInitConfig  Kind = "init_config"  // iptables-config or ip6tables-config
	KindRulesV4     Kind = "rules_v4"     // a saved rules file
	KindRulesV6     Kind = "rules_v6"
	KindScript      Kind = "script"    // a script of boot that may load modules
	KindInitramfs   Kind = "initramfs" // a list of modules for the initramfs
	KindNFTables    Kind = "nftables"  // a rules file of nft
)

// File is a file with what it is for. Files of one kind stand in the order in
// which boot reads them.
type File struct {
	Kind Kind
	File host.File
	As   string // the link in a drop-in folder by which boot reads it; empty: only as itself
}

// Live parses the snapshot. It reads nothing but the snapshot; equal snapshots
// give equal values. An error names the ruleset or file that is not in its
// language.
func (s *Snapshot) Live() (host.Live, error) {
	l := host.Live{
		Host:      s.Host,
		Conntrack: s.Conntrack,
		Modules:   s.Modules,
		Loading:   s.Loading,
		Trees:     s.Trees,
		Sysctls:   s.Sysctls,
		Addresses: s.Addresses,
		Notes:     s.Notes,
		NFT:       s.NFT,
		NFTUnread: s.NFTUnread,
		Links:     s.Links,

		Boot:        s.Boot,
		Connections: s.Connections,
	}
	// Rulesets are what takes time on a busy firewall: one goroutine each,
	// and one for all the files.
	l.Rulesets = make([]host.Ruleset, len(s.Rules))
	errs := make([]error, len(s.Rules))
	var wg sync.WaitGroup
	for i, r := range s.Rules {
		wg.Go(func() { l.Rulesets[i], errs[i] = parseRules(r) })
	}
	var fileErr error
	for _, f := range s.Files {
		if err := parseFile(f, &l); err != nil && fileErr == nil {
			fileErr = fmt.Errorf("reading %s: %w", f.File.Path, err)
		}
	}
	l.NFTConf = nftconf.Of(l.Boot, l.NFTFiles)
	wg.Wait()
	for _, n := range s.Namespaces {
		live, err := n.live()
		errs = append(errs, err)
		l.Namespaces = append(l.Namespaces, live)
	}
	if err := errors.Join(append(errs, fileErr)...); err != nil {
		return host.Live{}, err
	}
	return l, nil
}
