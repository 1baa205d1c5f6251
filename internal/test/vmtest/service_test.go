package vmtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/inittest"
	"github.com/ctplan/ctplan/internal/test/vmlab"
	live "github.com/ctplan/ctplan/planner/host"
)

// service is a host whose rules an init script brings and takes away.
type service struct {
	*host
	shape inittest.Shape
}

// newService boots a machine with stateful rules, live and saved, that the
// scripts of a shape have started.
func newService(t *testing.T, k vmlab.Kernel, b live.Backend, shape inittest.Shape) *service {
	t.Helper()
	s := &service{newHost(t, k, b), shape}
	s.Run("mkdir -p /etc/rc.d /etc/sysconfig /usr/libexec/iptables && mv /etc/init.d /etc/rc.d/init.d && ln -s rc.d/init.d /etc/init.d")
	s.Run("cd /etc/iptables && mv rules.v4 ../sysconfig/iptables && mv rules.v6 ../sysconfig/ip6tables")
	for _, f := range live.Families {
		s.install(f)
		tool := inittest.Tool(f)
		s.Write("/etc/sysconfig/"+tool+"-config", fmt.Sprintf("# What the service loads.\n%s_MODULES=\"nf_conntrack_ftp\" # helpers\n%[1]s_MODULES_UNLOAD=yes\n", strings.ToUpper(tool)))
	}
	// As chkconfig does, or the unit that runs the helper in /usr/libexec.
	s.Disable("netfilter-persistent")
	for _, f := range live.Families {
		s.Run(fmt.Sprintf("ln -s %s /etc/rc2.d/S08%s", shape.Path(f), inittest.Tool(f)))
	}
	s.do("restart")
	return s
}

// install puts the script of a family where its release has it, as the
// package does anew with each update.
func (s *service) install(f live.Family) {
	s.t.Helper()
	path := s.shape.Path(f)
	s.Write(path, s.shape.Script(f))
	s.Run("chmod 755 " + path)
}

// do has the service stop, start or restart, IPv6 around IPv4, so that nothing
// of IPv6 holds a module while IPv4 stops.
func (s *service) do(how string) {
	s.t.Helper()
	v4, v6 := s.shape.Path(live.IPv4), s.shape.Path(live.IPv6)
	switch how {
	case "start", "stop":
		s.Run(v6 + " " + how + " && " + v4 + " " + how)
	case "restart":
		s.Run(v6 + " stop && " + v4 + " restart && " + v6 + " start")
	}
}

// rules are those of both families.
func (s *service) rules() string {
	s.t.Helper()
	return s.Run("for f in iptables ip6tables; do $f-save | grep -v '^#' | sed 's/ \\[.*\\]//'; done")
}

// steady holds the host to its declaration through everything that starts the
// service anew; check looks at what the mode is about.
func (s *service) steady(check func()) {
	s.t.Helper()
	rules := s.rules()
	hold := func(after string) {
		s.t.Helper()
		if plan := s.Try("ctplan plan --detailed-exitcode host.hcl"); plan.Status != 0 {
			s.Fail("after %s the host is not as declared:\n%s%s", after, plan.Stdout, plan.Stderr)
		}
		if now := s.rules(); now != rules {
			s.Fail("after %s the rules are:\n%s\nand were:\n%s", after, now, rules)
		}
		check()
	}
	s.do("restart")
	hold("apply and a restart of the service")
	s.do("stop")
	s.Expect("iptables-save | grep -c ^-A || true", "0")
	s.do("start")
	hold("stop and start")
	s.Reboot()
	if failed := s.BootFailed(); failed != "" {
		s.Fail("a step of the boot failed: %s\n%s", failed, s.BootLog())
	}
	hold("a reboot")
}

// reloads expects a stop of the service to unload nf_conntrack.
func (s *service) reloads() {
	s.t.Helper()
	s.do("stop")
	want := "unloaded"
	if s.shape.Unload == "" {
		want = "loaded"
	}
	s.Expect("if lsmod | grep -q ^nf_conntrack; then echo loaded; else echo unloaded; fi", want)
	s.do("start")
	s.Run("lsmod | grep -q ^nf_conntrack") // by rules or IPTABLES_MODULES
}

// TestService takes hosts of each shape through the modes. What each apply has
// made of the host stays through restarts of the service and reboots.
func TestService(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kernel  vmlab.Kernel
		backend live.Backend
		shape   inittest.Shape
		modes   []string
	}{
		{vmlab.Kernel510, live.Legacy, inittest.EL5, []string{"tuned", "disabled"}},
		{vmlab.Kernel510, live.Legacy, inittest.EL6, []string{"tuned", "notrack"}},
		{vmlab.Kernel61, live.NFT, inittest.EL7, []string{"tuned by restart", "disabled"}},
		{vmlab.Kernel612, live.NFT, inittest.EL8, []string{"tuned by restart"}},
		{vmlab.Kernel612, live.Legacy, inittest.Early, []string{"tuned by restart", "disabled", "tuned"}},
	} {
		t.Run(c.shape.Name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, c.kernel, c.backend, c.shape)
			s.reloads()
			for _, mode := range c.modes {
				switch mode {
				case "tuned", "tuned by restart":
					s.declare("tuned")
					if mode == "tuned by restart" {
						s.sizedByRestart()
					} else {
						s.change()
					}
					if c.shape.Sysctl == nil && c.shape.Unload != "" {
						s.resets()
						break
					}
					s.steady(s.sized)
					s.Run("grep -q '^IPTABLES_SYSCTL_LOAD_LIST=\".nf_conntrack\"' /etc/sysconfig/iptables-config")
					s.reloads() // also where disabled had emptied the array
				case "notrack":
					s.declare("notrack", removing...)
					s.change()
					s.steady(s.untracked)
				case "disabled":
					s.declare("disabled")
					s.change()
					s.steady(s.unloaded)
					s.update()
				}
			}
		})
	}
}

// sizedByRestart has apply set sizes by a restart of the service: plan says
// what it interrupts, and the table is a new one where stop unloads the module.
func (s *service) sizedByRestart() {
	s.t.Helper()
	s.declare("tuned", `mode     = "tuned"`, "mode     = \"tuned\"\n  reload   = \"restart-service\"")
	s.Run("conntrack -I -p udp -s 192.0.2.1 -d 192.0.2.2 --sport 1 --dport 2 -t 3600")
	plan := strings.Join(strings.Fields(s.Exits(2, "ctplan plan --detailed-exitcode host.hcl")), " ")
	want := []string{"service.iptables", "there are no rules for a moment"}
	if s.shape.FlushFirst {
		want = append(want, s.shape.Path(live.IPv4)+" flushes before it sets policies to ACCEPT: INPUT drops everything in between")
	}
	for _, w := range want {
		if !strings.Contains(plan, w) {
			s.Fail("the plan does not say %q:\n%s", w, plan)
		}
	}
	rules := s.rules()
	s.change()
	if now := s.rules(); now != rules {
		s.Fail("after the restart the rules are:\n%s\nand were:\n%s", now, rules)
	}
	s.sized()
	left := "0"
	if s.shape.Unload == "" {
		left = "1"
	}
	s.Expect("conntrack -L -p udp -s 192.0.2.1 2>/dev/null | wc -l", left)
}

// resets expects a restart of the service to lose max, where the script unloads
// the module and sets no sysctl again. Plan says so before, drift after, and
// what plan says to run mends it. A boot does not restart anything.
func (s *service) resets() {
	s.t.Helper()
	plan := strings.Join(strings.Fields(s.Run("ctplan plan host.hcl")), " ")
	const cure = "run sysctl -p /etc/sysctl.conf after it"
	if !strings.Contains(plan, "a restart by "+s.shape.Path(live.IPv4)+" that unloads nf_conntrack resets it") || !strings.Contains(plan, cure) {
		s.Fail("plan does not warn of what a restart does:\n%s", plan)
	}
	s.Run("! grep SYSCTL_LOAD_LIST /etc/sysconfig/*-config") // no script reads it
	s.sized()
	s.do("restart")
	if drift := s.Exits(2, "ctplan drift host.hcl"); !strings.Contains(drift, "sysctl.net.netfilter.nf_conntrack_max  1048576 -> 524288") {
		s.Fail("drift does not name max:\n%s", drift)
	}
	s.Run("sysctl -p /etc/sysctl.conf")
	s.sized()
	s.Exits(0, "ctplan drift host.hcl")
	s.Reboot()
	s.settled()
	s.sized()
}

// update is an update of the package while the mode is disabled: it brings the
// init scripts as they were delivered, which is drift that names them, and
// apply mends it. A script without the array has nothing to mend.
func (s *service) update() {
	s.t.Helper()
	if s.shape.Unload == "old names" {
		s.install(live.IPv4)
		s.Exits(0, "ctplan drift host.hcl")
		return
	}
	s.Exits(0, "ctplan drift host.hcl")
	edited := s.files()
	s.install(live.IPv4)
	s.install(live.IPv6)
	drift := s.Exits(2, "ctplan drift host.hcl")
	for _, f := range live.Families {
		if want := "initscript." + s.shape.Path(f); !strings.Contains(drift, want) {
			s.Fail("drift does not name %s:\n%s", want, drift)
		}
	}
	s.change()
	if now := s.files(); now != edited {
		s.Fail("after mending the files are\n%s\nand were\n%s", now, edited)
	}
}
