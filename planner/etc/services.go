package etc

// Service is a service that a plan can be about.
type Service struct {
	Name string
	Does string // for what it needs connection tracking: a predicate, "makes nat rules"
}

// NFTablesService is the service that loads nftables.conf.
const NFTablesService = "nftables"

// RestoresXtables is whether a service restores rules of iptables.
func RestoresXtables(service string) bool {
	switch service {
	case "netfilter-persistent", "iptables-persistent", "iptables", "ip6tables":
		return true
	}
	return false
}

// Services are those that need connection tracking, by their names without a
// suffix; those that restore rules files need what stands in the files.
var Services = []Service{
	{"netfilter-persistent", ""}, {"iptables-persistent", ""}, {"iptables", ""}, {"ip6tables", ""}, {NFTablesService, ""},
	{"docker", "makes nat rules for its containers"},
	{"containerd", "runs containers, whose network plugins make nat rules"},
	{"crio", "runs containers, whose network plugins make nat rules"},
	{"podman-restart", "starts containers, for which podman makes nat rules"},
	{"kubelet", "runs pods, for which kube-proxy makes nat rules"},
	{"kube-proxy", "makes nat rules"},
	{"k3s", "makes nat rules"},
	{"k3s-agent", "makes nat rules"},
	{"rke2-server", "makes nat rules"},
	{"rke2-agent", "makes nat rules"},
	{"libvirtd", "makes nat rules for its networks"},
	{"virtnetworkd", "makes nat rules for its networks"},
	{"lxc-net", "makes nat rules for its bridge"},
	{"lxd", "makes nat rules for its networks"},
	{"snap.lxd.daemon", "makes nat rules for its networks"},
	{"incus", "makes nat rules for its networks"},
	{"firewalld", "filters by connection state"},
	{"ufw", "filters by connection state"},
	{"shorewall", "filters by connection state"},
	{"shorewall6", "filters by connection state"},
	{"ferm", "filters, mostly by connection state"},
	{"firehol", "filters by connection state"},
	{"csf", "filters by connection state"},
	{"apf", "filters by connection state"},
	{"arno-iptables-firewall", "filters by connection state"},
	{"tailscaled", "makes nat rules and rules on connection marks"},
	{"openvswitch-switch", "can track connections in its bridges"},
	{"conntrackd", "shares tracked connections with other hosts"},
}

// ServiceNames are the names of Services.
func ServiceNames() []string {
	names := make([]string, len(Services))
	for i, s := range Services {
		names[i] = s.Name
	}
	return names
}
