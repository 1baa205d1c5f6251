package vmlab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var (
	debootstrapBundle = bundle{"debootstrap", "bookworm", []string{"debootstrap"}, false, false}
	// debianBundle is what a machine with systemd is made from.
	debianBundle = bundle{"debian", "bookworm", append([]string{"apt", "usr-is-merged"}, included...), true, true}
)

// included are the packages that a machine with systemd has beside those that
// every Debian has.
var included = []string{"systemd-sysv", "kmod", "procps", "iproute2", "iptables", "iptables-persistent",
	"netfilter-persistent", "conntrack", "nftables", "netcat-openbsd", "iputils-ping"}

// silenced are the units that a machine without a terminal, a network and a
// message bus has no use for.
var silenced = []string{"getty.target", "timers.target", "systemd-logind.service", "e2scrub_reap.service"}

// systemdImage returns the path of a disk image with a minimal Debian, but
// without the programs under test, made once for each set of packages.
func (c cache) systemdImage(ctx context.Context, _, kernel, release string) (string, error) {
	tree, err := c.debian(ctx)
	if err != nil {
		return "", err
	}
	base := c.path("images", "systemd-"+release+"-"+sources(tree, kernel, strings.Join(silenced, " "))+".ext4")
	err = c.make(base, func(tmp string) error {
		dir := tmp + ".root"
		defer os.RemoveAll(dir)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := command(ctx, "cp", "-a", "--reflink=auto", tree, dir).run(); err != nil {
			return err
		}
		r := rootfs{dir: dir}
		for _, unit := range silenced {
			r.link("/dev/null", "etc/systemd/system/"+unit)
		}
		r.check(os.MkdirAll(filepath.Join(dir, "usr/lib/vmlab"), 0o755))
		r.embedded("guest/agent", "usr/lib/vmlab/agent")
		r.embedded("guest/agent.service", "etc/systemd/system/agent.service")
		r.link("../agent.service", "etc/systemd/system/multi-user.target.wants/agent.service")
		r.link("/run/vmlab/ctplan", "usr/sbin/ctplan")
		for name, text := range map[string]string{"etc/hostname": "vm\n", "etc/machine-id": machineID, "etc/fstab": ""} {
			r.check(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
		if r.err == nil {
			r.err = copyModules(ctx, moduleFolder(kernel, release), filepath.Join(dir, "usr/lib/modules", release), release, dir)
		}
		if r.err != nil {
			return r.err
		}
		return command(ctx, "mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
			"-d", dir, tmp, fmt.Sprintf("%dM", 2*diskMiB)).run()
	})
	if err != nil {
		return "", fmt.Errorf("making the disk image with systemd for %s: %w", release, err)
	}
	return base, nil
}

// debian returns a folder with a minimal Debian as debootstrap makes it.
//
// The packages come from the cache, through a mirror of files that has nothing
// else. What they run while they are set up has namespaces of its own, without
// a network, and starts no service (policy-rc.d).
func (c cache) debian(ctx context.Context) (string, error) {
	tool, err := c.unpacked(ctx, debootstrapBundle)
	if err != nil {
		return "", err
	}
	folder, p, err := c.packages(ctx, debianBundle)
	if err != nil {
		return "", err
	}
	tree := c.path("trees", "debian-"+p.digest())
	err = c.make(tree, func(tmp string) error {
		mirror := tmp + ".mirror"
		defer os.RemoveAll(mirror)
		if err := makeMirror(ctx, mirror, folder, p); err != nil {
			return err
		}
		apart := func(args ...string) error {
			run := command(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc"}, args...)...)
			run.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
			if args[0] != "chroot" {
				run.Env = append(run.Env, "DEBOOTSTRAP_DIR="+filepath.Join(tool, "usr/share/debootstrap"))
			}
			return run.run()
		}
		if err := apart("sh", filepath.Join(tool, "usr/sbin/debootstrap"), "--foreign", "--no-check-gpg", "--arch=amd64", "--variant=minbase",
			"--include="+strings.Join(included, ","), p.Suite, tmp, "file://"+mirror); err != nil {
			return err
		}
		policy, unsafe := filepath.Join(tmp, "usr/sbin/policy-rc.d"), filepath.Join(tmp, "etc/dpkg/dpkg.cfg.d/unsafe-io")
		if err := errors.Join(os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755), os.WriteFile(unsafe, []byte("force-unsafe-io\n"), 0o644)); err != nil {
			return err
		}
		if err := apart("chroot", tmp, "/debootstrap/debootstrap", "--second-stage"); err != nil {
			return err
		}
		var gone []error
		for _, name := range []string{policy, unsafe, "debootstrap", "var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man",
			"usr/share/locale", "usr/share/info", "usr/share/zoneinfo", "usr/share/perl5"} {
			gone = append(gone, os.RemoveAll(filepath.Join(tmp, strings.TrimPrefix(name, tmp))))
		}
		return errors.Join(gone...)
	})
	if err != nil {
		return "", fmt.Errorf("making a minimal Debian: %w", err)
	}
	return tree, nil
}

// makeMirror makes a Debian archive of the packages in a folder. apt has
// verified them, and the pin holds them to that.
func makeMirror(ctx context.Context, mirror, folder string, p pin) error {
	index := filepath.Join(mirror, "dists", p.Suite, "main/binary-amd64/Packages")
	pool := filepath.Join(mirror, "pool")
	if err := errors.Join(os.RemoveAll(mirror), os.MkdirAll(filepath.Dir(index), 0o755), os.MkdirAll(pool, 0o755)); err != nil {
		return err
	}
	var packages strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p.Packages)) {
		file := filepath.Join(folder, name)
		control, err := command(ctx, "dpkg-deb", "-f", file).output()
		if err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&packages, "%sFilename: pool/%s\nSize: %d\nSHA256: %s\n\n", control, name, info.Size(), p.Packages[name])
		if err := os.Link(file, filepath.Join(pool, name)); err != nil {
			return err
		}
	}
	text := packages.String()
	sum := sha256.Sum256([]byte(text))
	release := fmt.Sprintf("Codename: %s\nComponents: main\nArchitectures: amd64\nSHA256:\n %s %d main/binary-amd64/Packages\n",
		p.Suite, hex.EncodeToString(sum[:]), len(text))
	return cmp.Or(os.WriteFile(index, []byte(text), 0o644),
		os.WriteFile(filepath.Join(mirror, "dists", p.Suite, "Release"), []byte(release), 0o644))
}
