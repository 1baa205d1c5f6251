# An FTP server without connection tracking of TCP.
#
# Passive FTP opens a data connection on a port that only the control
# connection names. A conntrack helper reads it there and lets the connection
# in; without tracking, nothing does. So the server keeps its data ports in a
# range of its own, and the range is opened.
#
# Tell the server the same range: pasv_min_port and pasv_max_port of vsftpd,
# PassivePorts of ProFTPD, PassivePortRange of Pure-FTPd. Behind address
# translation it must also be told its public address. Active FTP, where the
# server calls the client back from port 20, is the last block: take it away
# where no client needs it.
#
#   ctplan plan examples/ftp.hcl
#   ctplan plan --var passive_ports=50000-50999 examples/ftp.hcl

variable "passive_ports" {
  type        = string
  description = "The ports for passive data connections, as the server is told them."
  default     = "49152-50175"

  validation {
    condition     = can(regex("^[0-9]+-[0-9]+$", var.passive_ports))
    error_message = "Give a range of ports like 49152-50175."
  }
}

conntrack "ftp-server" {
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
    initiator  = "remote"
  }

  accept "ftp-control" {
    protocol   = "tcp"
    local_port = 21
    initiator  = "remote"
  }

  accept "ftp-passive" {
    protocol   = "tcp"
    local_port = var.passive_ports
    initiator  = "remote"
  }

  accept "ftp-active" {
    protocol    = "tcp"
    local_port  = 20
    remote_port = "1024-65535"
    initiator   = "local"
  }

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

  accept "icmp" {
    protocol = "icmp"
  }

  accept "icmpv6" {
    protocol = "ipv6-icmp"
  }
}
