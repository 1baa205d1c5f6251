package nstest

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Settle waits until the addresses of the calling thread's network namespace can
// be used. Those of IPv6 are tentative, and nothing can be bound to them, until
// a worker of the kernel has noticed that the link is up, duplicate address
// detection or not: on a busy machine that takes a while.
func Settle() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		tentative := ""
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_TENTATIVE != 0 && !a.IP.IsLinkLocalUnicast() {
				tentative = a.String()
			}
		}
		switch {
		case tentative == "":
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the address %s stays tentative: is the link up?", tentative)
		}
	}
}
