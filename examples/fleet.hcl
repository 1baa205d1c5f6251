# A fleet in one file: three roles, each host in the mode that it needs.
#
# Hosts are matched by name, gateways are sized by what the machine has, and
# values that change from site to site are variables that check themselves. A
# host that no block matches is left alone; two blocks for one host are an
# error. Addresses here are static: with DHCP, accept it as notrack.hcl does.
#
#   ctplan validate examples/fleet.hcl
#   ctplan plan --var 'resolvers=["192.0.2.53"]' examples/fleet.hcl
#   ctplan plan --snapshot nat-1.json examples/fleet.hcl     # in code review
#
# Site values fit in a file: ctplan plan --var-file site.vars examples/fleet.hcl

variable "admins" {
  type        = list(string)
  description = "Networks that may log in by SSH."
  default     = ["10.0.0.0/8", "2001:db8:ad::/48"]

  validation {
    condition     = length(var.admins) > 0
    error_message = "Name at least one network: nobody could log in any more."
  }
}

variable "resolvers" {
  type        = list(string)
  description = "Name servers that the fleet asks."
  default     = ["10.0.0.53", "2001:db8::53"]
}

variable "api" {
  type = object({
    addresses = list(string)
    port      = optional(number, 443)
  })
  description = "The API that the clients call."
  default     = { addresses = ["54.239.25.200"] }

  validation {
    condition     = var.api.port > 0 && var.api.port < 65536
    error_message = "A port is a number from 1 to 65535, not ${var.api.port}."
  }
}

variable "entries_per_cpu" {
  type        = number
  description = "Connections that a gateway should be able to hold for each of its CPUs."
  default     = 65536

  validation {
    condition     = var.entries_per_cpu >= 1024 && floor(var.entries_per_cpu) == var.entries_per_cpu
    error_message = "Fewer than 1024 connections for each CPU fill in seconds."
  }
}

locals {
  # An entry takes up to about 400 bytes; a full table may take a sixteenth of
  # the memory.
  wanted     = max(262144, host.cpus * var.entries_per_cpu)
  affordable = floor(host.memory / 16 / 400)
  entries    = min(local.wanted, local.affordable)

  servers = ["web-*", "cdn-*"]
}

# Clients of the API: no TCP in the table.
conntrack "api-client" {
  hosts = ["api-*", "worker-[0-9]*"]
  mode  = "notrack"

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
    remote      = var.api.addresses
    remote_port = var.api.port
    initiator   = "local"
  }

  accept "dns" {
    protocol    = "udp"
    remote      = var.resolvers
    remote_port = 53
  }

  accept "dns-tcp" {
    protocol    = "tcp"
    remote      = var.resolvers
    remote_port = 53
    initiator   = "local"
  }

  accept "ntp" {
    protocol    = "udp"
    remote_port = 123
  }

  accept "icmp" {
    protocol = "icmp"
  }

  accept "icmpv6" {
    protocol = "ipv6-icmp"
  }
}

# Web servers: no connection tracking at all.
conntrack "web" {
  hosts          = local.servers
  mode           = "disabled"
  stateful_rules = "remove"

  accept "loopback" {
    interface = "lo"
  }

  accept "ssh" {
    protocol   = "tcp"
    local_port = 22
    remote     = var.admins
    initiator  = "remote"
  }

  accept "web" {
    protocol   = "tcp"
    local_port = [80, 443]
    initiator  = "remote"
  }

  accept "egress-tcp" {
    protocol  = "tcp"
    initiator = "local"
  }

  accept "dns" {
    protocol    = "udp"
    remote      = var.resolvers
    remote_port = 53
  }

  accept "ntp" {
    protocol    = "udp"
    remote_port = 123
  }

  accept "icmp" {
    protocol = "icmp"
  }

  accept "icmpv6" {
    protocol = "ipv6-icmp"
  }
}

# Gateways: NAT needs the table, so it is sized by the machine.
conntrack "nat-gateway" {
  hosts    = ["nat-*"]
  mode     = "tuned"
  max      = local.entries
  hashsize = ceil(local.entries / 4)

  timeouts = {
    tcp_established = 86400
  }
}
