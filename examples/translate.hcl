# A stateful server whose TCP leaves connection tracking, by one word.
#
# For a host whose rules are as people write them: what belongs to a connection
# is let in, a few ports may be opened, the rest is refused. All TCP leaves
# tracking, and each rule that asks for its state is translated in its place:
# NEW becomes --syn, ESTABLISHED everything else, RELATED errors of ICMP. UDP stays
# tracked, since nothing in a packet of it tells an answer from a question.
#
#   ctplan plan examples/translate.hcl
#
# The plan says of each rule whether what stands for it is exact. Of INVALID it is
# wider unless a rule on RELATED stands ahead: errors of ICMP about TCP are INVALID
# then. Accept that by allow_risk = ["wider_rules"], or put the rules in that order.

conntrack "server" {
  mode           = "notrack"
  stateful_rules = "translate"

  notrack "tcp" {
    protocol = "tcp"
  }
}
