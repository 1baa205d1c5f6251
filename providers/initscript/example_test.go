package initscript_test

import (
	"fmt"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/initscript"
)

// The array is changed by splicing its span: the comment behind it stays.
func ExampleParse() {
	f := host.File{Path: "/etc/init.d/iptables", Exists: true, Content: `#!/bin/bash
NF_MODULES_COMMON=(x_tables nf_nat nf_conntrack) # Used by netfilter v4 and v6
`}
	array := initscript.Parse(f).Array
	for _, w := range array.Words {
		fmt.Println(w.Text)
	}
	fmt.Print(f.Content[:array.Inner.Start] + "x_tables" + f.Content[array.Inner.End:])

	// What cannot be edited safely is a refusal, with its line.
	f.Content += "NF_MODULES_COMMON+=(nf_conntrack_ftp)\n"
	script := initscript.Parse(f)
	fmt.Println(script.Array == nil, script.RefusalLine, script.Refusal)
	// Output:
	// x_tables
	// nf_nat
	// nf_conntrack
	// #!/bin/bash
	// NF_MODULES_COMMON=(x_tables) # Used by netfilter v4 and v6
	// true 3 NF_MODULES_COMMON is appended to
}

// The lists of iptables-config.
func ExampleParseConfig() {
	config := initscript.ParseConfig(host.File{Path: "/etc/sysconfig/iptables-config", Exists: true, Content: `
IPTABLES_MODULES="nf_conntrack_ftp nf_nat_ftp"
IPTABLES_SYSCTL_LOAD_LIST=".nf_conntrack"
`})
	for _, w := range config.Modules.Words {
		fmt.Println(config.ModulesName, w.Text)
	}
	for _, w := range config.SysctlLoad.Words {
		fmt.Println(config.SysctlLoadName, w.Text)
	}
	// Output:
	// IPTABLES_MODULES nf_conntrack_ftp
	// IPTABLES_MODULES nf_nat_ftp
	// IPTABLES_SYSCTL_LOAD_LIST .nf_conntrack
}
