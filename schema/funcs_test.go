package schema

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// TestFunctionsPage holds the list of functions in docs/language.md to what
// there is.
func TestFunctionsPage(t *testing.T) {
	page, err := os.ReadFile("../docs/language.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "Functions, with the names")
	list, _, _ = strings.Cut(list, "\n\n")
	var named []string
	for _, m := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(list, -1) {
		named = append(named, m[1])
	}
	slices.Sort(named)
	if there := slices.Sorted(maps.Keys(folderOf(nil).functions())); !slices.Equal(named, there) {
		t.Errorf("the page names\n%v\nthere are\n%v", named, there)
	}
}

// TestNetworkFunctions has the examples of Terraform's documentation, IPv6, and
// what is refused.
func TestNetworkFunctions(t *testing.T) {
	for call, want := range map[string]string{
		`cidrhost("10.12.112.0/20", 16)`:                    "10.12.112.16",
		`cidrhost("10.12.112.0/20", 268)`:                   "10.12.113.12",
		`cidrhost("10.12.112.0/20", -1)`:                    "10.12.127.255",
		`cidrhost("fd00:fd12:3456:7890:00a2::/72", 34)`:     "fd00:fd12:3456:7890::22",
		`cidrhost("10.0.0.0/30", 4)`:                        "error",
		`cidrnetmask("172.16.0.0/12")`:                      "255.240.0.0",
		`cidrnetmask("2001:db8::/32")`:                      "error",
		`cidrnetmask("10.0.0.1")`:                           "error",
		`cidrsubnet("172.16.0.0/12", 4, 2)`:                 "172.18.0.0/16",
		`cidrsubnet("10.1.2.0/24", 4, 15)`:                  "10.1.2.240/28",
		`cidrsubnet("fd00:fd12:3456:7890::/56", 16, 162)`:   "fd00:fd12:3456:7800:a200::/72",
		`cidrsubnet("10.0.0.0/8", 99, 0)`:                   "error",
		`cidrsubnet("10.0.0.0/8", 8, 256)`:                  "error",
		`join(" ", cidrsubnets("10.1.0.0/16", 4, 4, 8, 4))`: "10.1.0.0/20 10.1.16.0/20 10.1.32.0/24 10.1.48.0/20",
		`cidrsubnets("10.1.0.0/16", 1, 1, 1)`:               "error",
		`length(setproduct(["a", "b"], [1, 2, 3]))`:         "6",
		`setproduct(range(1000), range(1000))`:              "error",
	} {
		expr, diags := hclsyntax.ParseExpression([]byte(call), "", hcl.InitialPos)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		v, diags := newScope(nil, folderOf(nil)).eval(expr)
		got := "error"
		if !diags.HasErrors() && v.Type() == cty.String {
			got = v.AsString()
		} else if !diags.HasErrors() && v.Type() == cty.Number {
			got = v.AsBigFloat().Text('f', -1)
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", call, got, want, diags)
		}
	}
}
