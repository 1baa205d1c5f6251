package routes_test

import (
	"fmt"

	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/planner/routing"
	"github.com/ctplan/ctplan/providers/routes"
)

func ExampleRead() {
	for _, r := range routes.Read("").Rules {
		if r.Family == host.IPv4 && r.Table == host.TableMain && !r.Custom() {
			fmt.Println(routing.RuleString(&r))
		}
	}
	// Output: ip rule 32766: from all lookup main
}
