package schema_test

import (
	"fmt"
	"os"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
	"github.com/ctplan/ctplan/schema"
)

// What a file declares for one host, whose facts are given by hand.
func ExampleLoad() {
	source := schema.Source{Name: "gateway.hcl", Content: []byte(`
variable "entries_per_cpu" {
  type    = number
  default = 65536
}

conntrack "nat-gateway" {
  hosts    = ["nat-*"]
  mode     = "tuned"
  max      = max(262144, host.cpus * var.entries_per_cpu)
  timeouts = { tcp_established = 86400 }
}
`)}
	facts := schema.Facts{Host: host.Host{Name: "nat-1", CPUs: 8}}
	config, diags := schema.Load([]schema.Source{source}, schema.Vars{}, &facts)
	if diags.HasErrors() {
		diags.WriteText(os.Stderr, 0, false)
		return
	}
	desired, diags := config.For(facts.Host.Name)
	if diags.HasErrors() {
		diags.WriteText(os.Stderr, 0, false)
		return
	}
	fmt.Printf("%s at %s:%d: %s\n", desired.Block, desired.Source.File, desired.Source.Line, desired.Mode)
	fmt.Println("max", desired.Max.Value, "hashsize", desired.Hashsize.Value)
	for _, t := range desired.Timeouts {
		fmt.Println(t.Name, t.Seconds)
	}
	// Output:
	// nat-gateway at gateway.hcl:7: tuned
	// max 524288 hashsize 131072
	// tcp_established 86400
}

// All errors are reported at once, each where it stands.
func ExampleDiagnostics_WriteText() {
	source := schema.Source{Name: "web.hcl", Content: []byte(`conntrack "web" {
  mod = "disabled"
}
`)}
	_, diags := schema.Load([]schema.Source{source}, schema.Vars{}, nil)
	diags.WriteText(os.Stdout, 0, false)
	// Output:
	// Error: Missing required argument
	//
	//   on web.hcl line 1, in conntrack "web":
	//    1: conntrack "web" {
	//                       ^
	//
	// The argument "mode" is required, but no definition was found.
	//
	// Error: Unknown attribute
	//
	//   on web.hcl line 2, in conntrack "web":
	//    2:   mod = "disabled"
	//         ^^^
	//
	// There is no attribute "mod" in a conntrack block. Did you mean "mode"?
}

// A declaration as HCL, with comments.
func ExampleWrite() {
	hcl := schema.Write(declared.Declaration{
		Host: "web-1",
		Desired: declared.Desired{
			Block: "web-1", Mode: declared.Notrack, StatefulRules: declared.RefuseStateful,
			Families: []host.Family{host.IPv4, host.IPv6},
			Notrack: []declared.Traffic{{
				Name: "https", Protocol: "tcp", LocalPorts: []host.PortRange{{From: 443, To: 443}},
				Direction: declared.Both, Families: []host.Family{host.IPv4, host.IPv6},
			}},
		},
		Notes: map[string][]string{declared.NoteHead: {"Everything but HTTPS stays tracked."}},
	})
	fmt.Printf("%s", hcl)
	// Output:
	// # Everything but HTTPS stays tracked.
	// conntrack "web-1" {
	//   hosts = ["web-1"]
	//   mode  = "notrack"
	//
	//   notrack "https" {
	//     protocol   = "tcp"
	//     local_port = 443
	//   }
	// }
}
