# A client of one API, with TCP out of connection tracking.
#
# For a host that opens so many connections to an API that they fill the
# conntrack table. All TCP leaves tracking, in both directions, so no number of
# connections can fill it. What was let in because it was "established" is now
# let in by name: every block below states one kind of traffic, and ctplan
# writes the rule for each way. They suffice on a host that drops by default,
# with IPv6 too.
#
#   ctplan plan examples/notrack.hcl
#   ctplan plan --var 'admins=["198.51.100.0/24"]' examples/notrack.hcl
#   ctplan plan --snapshot host.json examples/notrack.hcl    # in code review
#
# Rules on connection state that are about TCP would stop matching. Plan names
# them and stops; once the blocks below cover what they did, set
# stateful_rules = "remove".

variable "api" {
  type        = string
  description = "The API that this host calls."
  default     = "54.239.25.200"
}

variable "admins" {
  type        = list(string)
  description = "Networks that may log in by SSH."
  default     = ["0.0.0.0/0", "::/0"]

  validation {
    condition     = length(var.admins) > 0
    error_message = "Without a network to log in from, nobody can mend this host."
  }
}

conntrack "api-client" {
  mode = "notrack"

  notrack "tcp" {
    protocol = "tcp"
  }

  accept "loopback" {
    interface = "lo"
  }

  accept "ssh" {
    protocol   = "tcp"
    local_port = 22
    remote     = var.admins
    initiator  = "remote"
  }

  accept "api" {
    protocol    = "tcp"
    remote      = var.api
    remote_port = 443
    initiator   = "local" # what comes in must not open a connection
  }

  # A long answer comes over TCP, which nothing tracks any more.
  accept "dns" {
    protocol    = "udp"
    remote_port = 53
  }

  accept "dns-tcp" {
    protocol    = "tcp"
    remote_port = 53
    initiator   = "local"
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

  # "Fragmentation needed" about an untracked connection is not "related" to
  # anything: dropped, it makes large transfers hang.
  accept "icmp" {
    protocol = "icmp"
  }

  # "Packet too big", and the neighbour discovery without which there is no IPv6.
  accept "icmpv6" {
    protocol = "ipv6-icmp"
  }
}
