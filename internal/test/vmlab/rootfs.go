package vmlab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// guest holds the scripts that bring a machine up.
//
//go:embed guest
var guest embed.FS

// programs are what a machine has beside busybox; their libraries follow.
var programs = []string{
	"/bin/bash", "/bin/kmod", "/sbin/sysctl", "/usr/sbin/conntrack", "/usr/sbin/nft",
	"/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi", "/bin/ip", "/sbin/tc", "/sbin/ipvsadm", "/usr/bin/socat",
}

// kept are the folders of modules that a machine has, beside those that its
// devices and the kept ones need.
var kept = []string{
	"kernel/net/netfilter/", "kernel/net/ipv4/netfilter/", "kernel/net/ipv6/netfilter/", "kernel/net/bridge/",
	"kernel/net/ipv4/tcp_diag.", "kernel/net/ipv4/udp_diag.", "kernel/net/ipv4/raw_diag.", "kernel/net/ipv4/inet_diag.",
	"kernel/drivers/net/dummy.", "kernel/drivers/net/veth.", "kernel/drivers/net/virtio_net.",
	// Tunnels, and what else rules know by its protocol alone.
	"kernel/net/ipv4/gre.", "kernel/net/ipv4/ip_gre.", "kernel/net/ipv4/ipip.", "kernel/net/ipv4/esp4.", "kernel/net/ipv6/ip6_gre.", "kernel/net/ipv6/ip6_tunnel.",
	"kernel/net/ipv6/esp6.", "kernel/net/xfrm/xfrm_user.", "kernel/net/sctp/", "kernel/drivers/net/vxlan", "kernel/drivers/net/geneve.",
	"kernel/crypto/authenc.", "kernel/crypto/echainiv.",
	"kernel/net/sched/act_connmark.", "kernel/net/sched/act_gact.", "kernel/net/sched/act_mirred.", "kernel/net/sched/cls_fw.", "kernel/net/sched/cls_u32.", "kernel/net/sched/sch_ingress.", "kernel/net/sched/sch_prio.",
}

// early are the modules that the disk needs, and what the agent needs.
var early = []string{"virtio_pci", "virtio_blk", "ext4", "virtio_console"}

// diskMiB is the size of the disk; the image is sparse.
const diskMiB = 384

// rootfs assembles a machine's root.
type rootfs struct {
	user string // packages of programs, unpacked
	dir  string // the root that comes to be
	err  error
}

// image returns the path of a disk image with everything but the programs
// under test, made once for each set of packages.
func (c cache) image(ctx context.Context, user, kernel, release string) (string, error) {
	base := c.path("images", release+"-"+sources(user, kernel)+".ext4")
	err := c.make(base, func(tmp string) error {
		dir := tmp + ".root"
		defer os.RemoveAll(dir)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		r := rootfs{user: user, dir: dir}
		r.fill(ctx)
		if r.err == nil {
			r.err = copyModules(ctx, moduleFolder(kernel, release), filepath.Join(dir, "usr/lib/modules", release), release, dir)
		}
		if r.err != nil {
			return r.err
		}
		return command(ctx, "mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
			"-d", dir, tmp, fmt.Sprintf("%dM", diskMiB)).run()
	})
	if err != nil {
		return "", fmt.Errorf("making the disk image for %s: %w", release, err)
	}
	return base, nil
}

// sources is a digest of all that an image is made from. The trees have the
// digests of their packages in their names.
func sources(trees ...string) string {
	h := sha256.New()
	fmt.Fprintln(h, layout, programs, kept, diskMiB)
	for _, tree := range trees {
		fmt.Fprintln(h, filepath.Base(tree))
	}
	err := fs.WalkDir(guest, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := guest.ReadFile(name)
		fmt.Fprintf(h, "%s %q\n", name, text)
		return err
	})
	if err != nil {
		panic(err) // embedded
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

const machineID = "0123456789abcdef0123456789abcdef\n"

// layout changes whenever fill does.
const layout = 3

func (r *rootfs) fill(ctx context.Context) {
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "root", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64",
		"usr/local/sbin", "usr/lib/vmlab", "usr/lib/sysctl.d", "var/lib", "var/log", "etc/alternatives", "etc/sysctl.d",
		"etc/modprobe.d", "etc/modules-load.d", "etc/iptables", "etc/init.d", "etc/rc2.d"} {
		r.check(os.MkdirAll(filepath.Join(r.dir, dir), 0o755))
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		r.link("usr/"+name, name)
	}
	r.link("/run", "var/run")

	busybox := filepath.Join(r.user, "bin/busybox")
	r.copy("/bin/busybox")
	applets, err := command(ctx, busybox, "--list-full").output()
	r.check(err)
	for _, name := range programs {
		r.program(name)
	}
	plugins, err := filepath.Glob(filepath.Join(r.user, "usr/lib/x86_64-linux-gnu/xtables/*.so"))
	r.check(err)
	for _, plugin := range plugins {
		r.program(strings.TrimPrefix(plugin, r.user))
	}
	for _, name := range []string{"/etc/protocols", "/etc/services"} {
		r.copy(name)
	}

	r.link("bash", "usr/bin/sh")
	r.link("../bin/ip", "usr/sbin/ip") // which busybox would be otherwise
	for _, name := range []string{"lsmod", "modprobe", "insmod", "rmmod", "depmod", "modinfo"} {
		r.link("../bin/kmod", "usr/sbin/"+name)
	}
	// update-alternatives of Debian: iptables → /etc/alternatives/iptables →
	// iptables-nft → xtables-nft-multi. Use changes the middle.
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			for _, backend := range []string{"nft", "legacy"} {
				r.link("xtables-"+backend+"-multi", "usr/sbin/"+family+"-"+backend+suffix)
			}
			r.link("/etc/alternatives/"+family+suffix, "usr/sbin/"+family+suffix)
			r.link("/usr/sbin/"+family+"-nft"+suffix, "etc/alternatives/"+family+suffix)
		}
	}
	for name := range strings.FieldsSeq(applets) {
		to := path.Join("usr", strings.TrimPrefix(name, "usr/"))
		if _, err := os.Lstat(filepath.Join(r.dir, to)); err != nil {
			r.link("/usr/bin/busybox", to)
		}
	}

	os.Remove(filepath.Join(r.dir, "usr/sbin/init"))
	r.embedded("guest/boot", "usr/sbin/init")
	r.embedded("guest/modules-load", "usr/lib/vmlab/modules-load")
	r.embedded("guest/netfilter-persistent", "etc/init.d/netfilter-persistent")
	r.link("../init.d/netfilter-persistent", "etc/rc2.d/S10netfilter-persistent")
	r.link("/run/vmlab/ctplan", "usr/local/sbin/ctplan")
	for name, text := range map[string]string{
		"etc/hostname": "vm\n", "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n",
		"etc/machine-id":  machineID,
		"etc/sysctl.conf": "# Local settings.\nnet.ipv4.ip_forward = 0\n",
	} {
		r.check(os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644))
	}
	r.link("../sysctl.conf", "etc/sysctl.d/99-sysctl.conf")
}

func (r *rootfs) check(err error) { r.err = cmp.Or(r.err, err) }

func (r *rootfs) link(target, name string) { r.check(os.Symlink(target, filepath.Join(r.dir, name))) }

func (r *rootfs) embedded(from, to string) {
	text, err := guest.ReadFile(from)
	r.check(err)
	r.check(os.WriteFile(filepath.Join(r.dir, to), text, 0o755))
}

// merged is where a file of a package comes to be: /bin is /usr/bin, and so on.
func merged(name string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, first) {
		return "/usr" + name
	}
	return name
}

// copy takes a file of the packages, links followed, and reports whether it
// did: not if it was there already.
func (r *rootfs) copy(name string) bool {
	to := filepath.Join(r.dir, merged(name))
	if _, err := os.Lstat(to); err == nil || r.err != nil {
		return false
	}
	from := filepath.Join(r.user, name)
	info, err := os.Stat(from)
	r.check(err)
	content, err := os.ReadFile(from)
	r.check(err)
	if r.err != nil {
		return false
	}
	r.check(os.MkdirAll(filepath.Dir(to), 0o755))
	r.check(os.WriteFile(to, content, info.Mode().Perm()))
	return r.err == nil
}

// libraries are the folders of shared libraries in Debian's packages.
var libraries = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"}

// program takes a program or library with all the libraries that it needs.
func (r *rootfs) program(name string) {
	if !r.copy(name) {
		return
	}
	f, err := elf.Open(filepath.Join(r.user, name))
	r.check(err)
	if err != nil {
		return
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	r.check(err)
	for _, library := range needed {
		i := slices.IndexFunc(libraries, func(dir string) bool {
			_, err := os.Stat(filepath.Join(r.user, dir, library))
			return err == nil
		})
		if i < 0 {
			r.check(fmt.Errorf("%s needs %s, which no package has", name, library))
			return
		}
		r.program(libraries[i] + "/" + library)
	}
	if p := f.Section(".interp"); p != nil {
		text, err := p.Data()
		r.check(err)
		r.copy(string(bytes.TrimRight(text, "\x00")))
	}
}
