// Package inittest writes init scripts of iptables as releases of the Red Hat
// family shape them, for tests. The scripts are ctplan's own and run for real:
// they restore rules, unload modules through lsmod, load those of
// IPTABLES_MODULES and set sysctls again. Tests alone import it.
package inittest

import (
	_ "embed"
	"strings"
	"text/template"

	"github.com/ctplan/ctplan/planner/host"
)

//go:embed iptables.init
var text string

var script = template.Must(template.New("iptables.init").Parse(text))

// Shape is how a release writes its init script.
type Shape struct {
	Name string
	// Helper is whether it stands in /usr/libexec, where systemd's unit runs
	// it, and not in /etc/init.d.
	Helper bool
	// Unload is how stop unloads modules: "one line" and "many lines" are two
	// ways to write the arrays, "old names" has ip_conntrack and no arrays, ""
	// unloads nothing.
	Unload string
	// FlushFirst is whether stop flushes before it sets policies to ACCEPT.
	FlushFirst bool
	// Sysctl is where IPTABLES_SYSCTL_LOAD_LIST looks: /etc/sysctl.conf,
	// /etc/sysctl.d, or both in this order; nil where there is no such list.
	Sysctl []string
}

// The shapes.
var (
	EL5   = Shape{Name: "EL5", Unload: "old names", FlushFirst: true}
	EL6   = Shape{Name: "EL6", Unload: "one line", Sysctl: []string{"/etc/sysctl.conf"}}
	Early = Shape{Name: "early EL6", Unload: "one line", FlushFirst: true, Sysctl: []string{"/etc/sysctl.conf"}}
	EL7   = Shape{Name: "EL7", Helper: true, Unload: "many lines", Sysctl: []string{"/etc/sysctl.conf", "/etc/sysctl.d"}}
	EL8   = Shape{Name: "EL8", Helper: true, Sysctl: []string{"/etc/sysctl.d"}}
)

// Shapes lists all.
func Shapes() []Shape { return []Shape{EL5, EL6, Early, EL7, EL8} }

// Tool is the command of a family, after which its service is named.
func Tool(f host.Family) string {
	if f == host.IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// Path is where the family's script stands.
func (s Shape) Path(f host.Family) string {
	if s.Helper {
		return "/usr/libexec/iptables/" + Tool(f) + ".init"
	}
	return "/etc/init.d/" + Tool(f)
}

// Script is the family's script.
func (s Shape) Script(f host.Family) string {
	var b strings.Builder
	err := script.Execute(&b, struct {
		Shape
		Family host.Family
		Tool   string
		Prefix string
	}{s, f, Tool(f), strings.ToUpper(Tool(f))})
	if err != nil {
		panic(err) // a template without input of others
	}
	return b.String()
}
