package nftconf

import (
	"path"
	"strings"

	"github.com/ctplan/ctplan/planner/host"
)

// OwnPath is where ctplan's own file stands: beside the last file that the service
// loads, with that one's name, so that it is seen next to it and no pattern of
// nftables.d takes it in once more. Empty: the service loads none.
func OwnPath(conf *host.NFTConf) string {
	main := lastMain(conf)
	if main == "" {
		return ""
	}
	ext := path.Ext(main)
	return strings.TrimSuffix(main, ext) + "-ctplan" + ext
}

// lastMain is the last file that the service loads; empty where it loads none, or
// what it does is not known.
func lastMain(conf *host.NFTConf) string {
	if len(conf.Mains) == 0 || !path.IsAbs(conf.Mains[len(conf.Mains)-1]) || strings.ContainsAny(conf.Mains[len(conf.Mains)-1], " \"\n") {
		return ""
	}
	return conf.Mains[len(conf.Mains)-1]
}
