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
	// Init is what starts the host: "systemd", "sysv", or "" where ctplan does
	// not know it.
	Init string `json:"init"`
	// Services are the enabled ones that make rules at boot, by their names
	// without a suffix, in the order of those: "netfilter-persistent", "docker".
	Services []string `json:"services"`
	// Running are those of them, enabled or not, that run now.
	Running []string `json:"running,omitempty"`
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
)
