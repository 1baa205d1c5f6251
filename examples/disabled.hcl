# A web server without connection tracking.
#
# For a host that needs neither NAT nor rules on connection state. Every rule
# that needs conntrack goes, nf_conntrack and what stands on it is unloaded and
# kept from loading again, and the init scripts stop asking for it: there is no
# table left that could fill. Stateless rules take over, so they must name
# everything that the host says and hears; these suffice on a host that drops
# by default.
#
#   ctplan plan examples/disabled.hcl
#   ctplan plan --snapshot host.json examples/disabled.hcl   # in code review
#
# On a kernel with conntrack built in, unloading is impossible: plan says so,
# and does the rest.

conntrack "web" {
  mode = "disabled"

  # Such rules would load the modules again, live or at the next boot. What
  # they let through is let through by name below.
  stateful_rules = "remove"

  accept "loopback" {
    interface = "lo"
  }

  accept "ssh" {
    protocol   = "tcp"
    local_port = 22
    initiator  = "remote"
  }

  accept "web" {
    protocol   = "tcp"
    local_port = [80, 443]
    initiator  = "remote"
  }

  accept "http3" {
    protocol   = "udp"
    local_port = 443
  }

  # Whatever this host calls itself: answers come in, connections do not.
  accept "egress-tcp" {
    protocol  = "tcp"
    initiator = "local"
  }

  # UDP does not show who began. Only these answers come in.
  accept "dns" {
    protocol    = "udp"
    remote_port = 53
  }

  accept "ntp" {
    protocol    = "udp"
    remote_port = 123
  }

  accept "dhcp" {
    protocol    = "udp"
    local_port  = 68
    remote_port = 67
    families    = ["ipv4"]
  }

  accept "dhcpv6" {
    protocol    = "udp"
    local_port  = 546
    remote_port = 547
    families    = ["ipv6"]
  }

  # Path MTU, unreachable, ping.
  accept "icmp" {
    protocol = "icmp"
  }

  # The same for IPv6, and neighbour discovery.
  accept "icmpv6" {
    protocol = "ipv6-icmp"
  }
}
