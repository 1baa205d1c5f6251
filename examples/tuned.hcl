# A gateway that needs connection tracking, with a table of the right size.
#
# For hosts that translate addresses or filter on connection state, and log
# "nf_conntrack: table full, dropping packet". The table may hold max
# connections in hashsize buckets; four connections share a bucket on average
# when it is full. Both values are set at once and again at every boot: in
# sysctl.conf, in modprobe.d, and by loading the module before sysctl runs.
# Rules stay as they are.
#
# A full table of this size takes about 200 MiB.
#
#   ctplan plan examples/tuned.hcl
#   ctplan plan --snapshot host.json examples/tuned.hcl      # in code review

conntrack "nat-gateway" {
  mode     = "tuned"
  max      = 524288
  hashsize = 131072

  timeouts = {
    tcp_established = 86400 # a day; the kernel's five days keep dead connections
    tcp_time_wait   = 30
  }
}
