// Package e2e tests the built ctplan binary from HCL file to changed kernel:
// real iptables rules of both backends in network namespaces, real files in
// mount namespaces, real sockets sending through them.
//
// It owns no code of the program. It never changes the machine it runs on, with
// one exception that the kernel forces: nf_conntrack_max and the hash size are
// one value for the whole machine. Tests that set them hold a machine-wide
// lock, and a process that outlives even a killed test run puts them back.
package e2e
