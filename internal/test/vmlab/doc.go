// Package vmlab boots Debian's stock kernels in QEMU, for tests of what only a
// whole machine can show: modules that load and unload, the order of boot,
// what survives a reboot or a power cut. Tests alone import it. A test reads as
// a script:
//
//	lab := vmlab.Open(t, "path/to/ctplan")
//	vm := lab.Boot(t, vmlab.Kernel61, vmlab.Memory(512))
//	vm.Run("modprobe nf_conntrack")
//	vm.Expect("cat /proc/sys/net/netfilter/nf_conntrack_max", "4096")
//	vm.Reboot()
//	vm.Expect("lsmod | grep -c ^nf_conntrack || true", "0")
//
// It owns a cache folder, $XDG_CACHE_HOME/ctplan-vm or ~/.cache/ctplan-vm, and
// nothing else: QEMU, the kernels and the programs inside the machines are
// Debian packages, fetched by apt with state of its own, verified by Debian's
// keyring, and unpacked there. It installs nothing, changes nothing on the
// machine that runs the tests and needs neither root nor KVM. Making the root
// that Systemd asks for takes root: debootstrap runs in namespaces of its own,
// without a network.
//
// A machine has one ext4 disk as its root, so everything written survives a
// reboot. It boots in the order in which Debian does: modules-load.d,
// sysctl --system, then the services in /etc/rc2.d; see the guest folder. With
// Systemd it is a Debian that has systemd do all this. Commands go
// through an agent on a virtio-serial port; the console is kept for the log.
//
// It promises that at most two machines run at once, over all test processes
// of the user, that every byte which is run from the cache comes from packages
// whose digests were checked, and that no machine outlives its test.
package vmlab
