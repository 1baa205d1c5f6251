package host

// BootScript is a script of boot with the modules that it loads.
type BootScript struct {
	File
	Loads []ScriptLoad
}

// ScriptLoad is a command that loads a module.
type ScriptLoad struct {
	Module string // with "-" written as "_"
	Line   int
	Text   string // the line
	Past   bool   // goes past what modprobe.d says of the module
}

// Boot is what a host does at boot, beside reading files that Live has.
type Boot struct {
	// Init is what starts the host: "systemd", "sysv", "openrc", or "" where ctplan does
	// not know it.
	Init string `json:"init"`
	// Services are the enabled ones that make rules at boot, by their names
	// without a suffix, in the order of those: "netfilter-persistent", "docker".
	Services []string `json:"services"`
	// Running are those of them, enabled or not, that run now.
	Running []string `json:"running,omitempty"`
	// Restorers are the commands found that a boot, or an event of the network, runs
	// and that load, make or flush rules: those of one starter in the order in which
	// they run. Services whose files are known by name are not among them.
	Restorers []Restorer `json:"restorers,omitempty"`
	// Cmdline are the words of the kernel's command line that are about modules.
	Cmdline []string `json:"cmdline,omitempty"`
	// NFTables are the files that nftables.service loads; a command of it that
	// loads none in a way that is known stands for itself. Nil: it was not read.
	NFTables []string `json:"nftables,omitempty"`
}

// The values of Boot.Init.
const (
	InitSystemd = "systemd"
	InitSysv    = "sysv"
	InitOpenRC  = "openrc"
)

// Restorer is a command that loads, makes or flushes rules.
type Restorer struct {
	By   string     `json:"by"`   // what starts it: "firewall.service", "/etc/rc.local", "/etc/crontab"
	At   string     `json:"at"`   // where it stands: FILE:LINE
	Does RestorerDo `json:"does"` //
	// Family is that of iptables' rules; "" of both, or of neither.
	Family Family `json:"family,omitempty"`
	File   string `json:"file,omitempty"` // that DoRestore, DoAdd and DoNative load; "" where it is not known
}

// RestorerDo is what a Restorer does with rules.
type RestorerDo string

// What a Restorer does.
const (
	DoRestore RestorerDo = "restore" // iptables-restore: the file's tables are what it says
	DoAdd     RestorerDo = "add"     // iptables-restore --noflush
	DoMake    RestorerDo = "make"    // iptables -A and the like, rule by rule
	DoFlush   RestorerDo = "flush"   // iptables -F
	DoNative  RestorerDo = "native"  // nft
	DoUnknown RestorerDo = "unknown" // may do any of it: what it runs cannot be followed
)
