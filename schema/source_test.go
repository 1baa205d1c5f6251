package schema

import (
	"strings"
	"testing"
)

// TestNestsLittle holds that the quick look at a file never passes what the
// slow one refuses, and passes what people write.
func TestNestsLittle(t *testing.T) {
	many := func(s string) string { return strings.Repeat(s, 2*maxDepth) }
	for _, deep := range []string{
		"a = " + many("("),
		"a = " + many("["),
		"a = " + many("{b="),
		"a = " + many("{b=\n"),
		"a = b" + many("[0]"),
		"a = " + many("1+") + "1",
		"a = " + many("!") + "true",
		"a = " + many("("+"/*\n)\n*/"),
		"a = " + many("(\")\"+"),
		"a = \"" + many("${\"") + "\"",
		"a = \"x\n\"" + many("("),
		"a = \"\\\n\"" + many("("),
		"a = <<E\n\"\nE\n" + "b = " + many("("),
		"# \"\na = " + many("("),
		"// \"\na = " + many("("),
		"a = \"//\" +" + many("("),
		"a = (\n" + many("1+\n"),
		"a = " + strings.Repeat(strings.Repeat("1+", 50)+"{b=\n", 50),
	} {
		if nestsLittle([]byte(deep)) {
			t.Errorf("passed %.60q", deep)
		}
		if checkDepth(Source{Content: []byte(deep)}) == nil {
			t.Errorf("checkDepth passed %.60q", deep)
		}
	}
	usual := strings.Repeat(`
# What the API needs: 100% of it.
conntrack "web" { // one host
  hosts = ["web-*", "10.0.0.0/8"]
  accept "in" {
    protocol   = "tcp"
    local_port = var.ports[0] + 1
    sources    = [
      "10.0.0.0/24", # a comment with "quotes" {
      "10.0.1.0/24",
    ]
  }
}
`, 300)
	if !nestsLittle([]byte(usual)) {
		t.Error("the usual file is looked at twice")
	}
}
