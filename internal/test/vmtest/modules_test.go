package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctplan/ctplan/internal/test/vmlab"
	"github.com/ctplan/ctplan/planner/boot"
	live "github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/providers/kmod"
)

// TestModuleNames holds what the forecast says of names in modules-load.d to what
// modprobe makes of them, on the modules of Debian's kernels.
func TestModuleNames(t *testing.T) {
	t.Parallel()
	lab := open(t)
	for _, k := range vmlab.Kernels() {
		t.Run(string(k), func(t *testing.T) {
			t.Parallel()
			root, release := lab.Modules(t, k)
			conf := filepath.Join(root, "modprobe.d")
			const aliases = "alias tracker nf_conntrack\nalias twice ip_conntrack\n"
			if err := os.Mkdir(conf, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(conf, "a.conf"), []byte(aliases), 0o644); err != nil {
				t.Fatal(err)
			}
			l := live.Live{
				Conntrack: live.Conntrack{Kind: live.ConntrackModule}, Boot: &live.Boot{Init: live.InitSystemd}, Trees: kmod.ReadTrees(root),
				ModprobeFiles: []live.ModprobeFile{kmod.ParseModprobe(live.File{Path: "/etc/modprobe.d/a.conf", Exists: true, Content: aliases})},
			}
			if len(l.Trees) != 1 || l.Trees[0].Release != release {
				t.Fatalf("the kernels are %+v", l.Trees)
			}
			seen := map[boot.ModuleState]int{}
			for _, name := range []string{
				"nf_conntrack", "nf-conntrack", "nf_conntrack_ipv4", "nf-conntrack-ipv6", "nf_nat_ipv4", "ip_conntrack", "ip-conntrack", "nf_conntrack-2", "nf_conntrack_10", "nf_conntrack-11",
				"ipt_conntrack", "ip6t_conntrack", "xt_conntrack", "xt_state", "nf_conntrack_ftp", "ip_conntrack_ftp", "ip_nat_ftp", "nft-expr-ct", "nft_ct", "iptable_nat", "ip_vs_rr", "openvswitch", "act_ct",
				"nf_defrag_ipv4", "xt_tcpudp", "ip_tables", "tracker", "twice", "no_such_module",
			} {
				out, err := exec.Command("modprobe", "-n", "--show-depends", "-d", root, "-S", release, "-C", conf, name).CombinedOutput()
				want := boot.ModuleUnloaded
				if strings.Contains(string(out), "/nf_conntrack.ko") {
					want = boot.ModuleLoaded
				}
				l.ModulesLoad = []live.ModulesLoadFile{kmod.ParseModulesLoad(live.File{Path: "/etc/modules-load.d/x.conf", Exists: true, Content: name + "\n"})}
				got := boot.Foresee(l).Module
				if got.State != want {
					t.Errorf("%s: the forecast is %+v, and modprobe says %v\n%s", name, got, err, out)
				}
				seen[want]++
				if gone := strings.HasPrefix(strings.ReplaceAll(name, "-", "_"), "nf_conntrack_ipv"); gone && !strings.Contains(got.Source, "which kernel "+release+" does not have") {
					t.Errorf("%s: the forecast does not tell that there is no such module: %+v", name, got)
				}
			}
			if seen[boot.ModuleLoaded] < 10 || seen[boot.ModuleUnloaded] < 5 {
				t.Errorf("too few of a kind: %v", seen)
			}
		})
	}
}
