package schema

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/ctplan/ctplan/planner/declared"
	"github.com/ctplan/ctplan/planner/host"
)

// commentWidth is where comments are wrapped, in columns.
const commentWidth = 100

// Write writes a declaration as HCL in canonical layout. What it declares,
// loaded again, is d.Desired but for the places in the file; its values are
// taken to be ones that the language has. Comments may hold anything: what
// could end a line, or hide in one, is taken out.
func Write(d declared.Declaration) []byte {
	f := hclwrite.NewEmptyFile()
	head := d.Notes[declared.NoteHead]
	glob, plain := hostGlob(d.Host)
	if d.Host != "" && !plain {
		head = append(slices.Clip(head), "The name of the host cannot be written as a pattern: hosts is left out, so that this is for every host.")
	}
	comment(f.Body(), head)
	want := d.Desired
	b := f.Body().AppendNewBlock("conntrack", []string{want.Block}).Body()
	set := func(name string, value cty.Value) {
		if len(d.Notes[name]) > 0 {
			b.AppendNewline()
			comment(b, d.Notes[name])
		}
		b.SetAttributeValue(name, value)
	}
	if plain {
		set("hosts", list([]string{glob}))
	}
	set("mode", cty.StringVal(string(want.Mode)))
	if want.Mode == declared.Tuned && want.Max != nil {
		set("max", cty.NumberIntVal(want.Max.Value))
		if want.Hashsize != nil {
			set("hashsize", cty.NumberIntVal(want.Hashsize.Value))
		}
	}
	if len(want.Timeouts) > 0 {
		if len(d.Notes["timeouts"]) > 0 {
			b.AppendNewline()
			comment(b, d.Notes["timeouts"])
		}
		b.SetAttributeRaw("timeouts", timeoutTokens(want.Timeouts))
	}
	if want.StatefulRules != "" && want.StatefulRules != declared.RefuseStateful {
		set("stateful_rules", cty.StringVal(string(want.StatefulRules)))
	}
	if want.Firewall != "" {
		set("firewall", cty.StringVal(string(want.Firewall)))
	}
	if len(want.AllowRisk) > 0 {
		set("allow_risk", list(want.AllowRisk))
	}
	if len(want.Families) == 1 {
		set("families", list(want.Families))
	}
	if len(want.InitScripts) > 0 {
		set("init_scripts", list(want.InitScripts))
	}
	if want.Files != (declared.Files{}) {
		b.AppendNewline()
		comment(b, d.Notes["files"])
		files := b.AppendNewBlock("files", nil).Body()
		for _, p := range []struct{ name, path string }{
			{"sysctl", want.Files.Sysctl}, {"modprobe", want.Files.Modprobe}, {"modules_load", want.Files.ModulesLoad}, {"rules_v4", want.Files.RulesV4}, {"rules_v6", want.Files.RulesV6},
		} {
			if p.path != "" {
				files.SetAttributeValue(p.name, cty.StringVal(p.path))
			}
		}
	}
	for _, t := range want.Notrack {
		writeTraffic(b, "notrack", t, want.Families, d.Notes["notrack "+t.Name])
	}
	for _, t := range want.Accept {
		writeTraffic(b, "accept", t, want.Families, d.Notes["accept "+t.Name])
	}
	out := hclwrite.Format(f.Bytes())
	if formatted, diags := Format(Source{Name: "written", Content: out}); !diags.HasErrors() {
		return formatted
	}
	return out
}

func writeTraffic(parent *hclwrite.Body, kind string, t declared.Traffic, families []host.Family, notes []string) {
	parent.AppendNewline()
	comment(parent, notes)
	b := parent.AppendNewBlock(kind, []string{t.Name}).Body()
	if t.Protocol != "" {
		b.SetAttributeValue("protocol", cty.StringVal(t.Protocol))
	}
	if t.Interface != "" {
		b.SetAttributeValue("interface", cty.StringVal(t.Interface))
	}
	for _, a := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{"local", t.Local}, {"remote", t.Remote}} {
		switch texts := prefixTexts(a.prefixes, t.Families); len(texts) {
		case 0:
		case 1:
			b.SetAttributeValue(a.name, cty.StringVal(texts[0]))
		default:
			b.SetAttributeRaw(a.name, stringTokens(texts))
		}
	}
	for _, a := range []struct {
		name  string
		ports []host.PortRange
	}{{"local_port", t.LocalPorts}, {"remote_port", t.RemotePorts}} {
		switch len(a.ports) {
		case 0:
		case 1:
			b.SetAttributeValue(a.name, portValue(a.ports[0]))
		default:
			var values []cty.Value
			for _, p := range a.ports {
				values = append(values, portValue(p))
			}
			b.SetAttributeValue(a.name, cty.TupleVal(values))
		}
	}
	if t.Direction != declared.Both && t.Direction != "" {
		b.SetAttributeValue("direction", cty.StringVal(string(t.Direction)))
	}
	if t.Initiator != declared.EitherSide {
		b.SetAttributeValue("initiator", cty.StringVal(string(t.Initiator)))
	}
	if implied := impliedFamilies(t, families); !slices.Equal(implied, t.Families) {
		b.SetAttributeValue("families", list(t.Families))
	}
}

// impliedFamilies are those that a block has without saying so.
func impliedFamilies(t declared.Traffic, families []host.Family) []host.Family {
	for _, p := range protocols {
		if p.name == t.Protocol && p.family != "" {
			families = common(families, []host.Family{p.family})
		}
	}
	return common(common(families, familiesOf(t.Local)), familiesOf(t.Remote))
}

func prefixTexts(prefixes []netip.Prefix, families []host.Family) []string {
	var out []string
	for _, p := range simplify(prefixes, families) {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
			continue
		}
		out = append(out, p.String())
	}
	return out
}

func portValue(p host.PortRange) cty.Value {
	if p.From == p.To {
		return cty.NumberIntVal(int64(p.From))
	}
	return cty.StringVal(fmt.Sprintf("%d-%d", p.From, p.To))
}

func list[T ~string](words []T) cty.Value {
	values := make([]cty.Value, len(words))
	for i, w := range words {
		values[i] = cty.StringVal(string(w))
	}
	return cty.TupleVal(values)
}

// stringTokens is a list of strings, one line each where one line is too long.
func stringTokens(values []string) hclwrite.Tokens {
	total := 0
	for _, v := range values {
		total += len(v) + 4
	}
	if total <= commentWidth-20 {
		return hclwrite.TokensForValue(list(values))
	}
	newline := &hclwrite.Token{Type: hclsyntax.TokenNewline, Bytes: []byte("\n")}
	out := hclwrite.Tokens{{Type: hclsyntax.TokenOBrack, Bytes: []byte("[")}, newline}
	for _, v := range values {
		out = append(out, hclwrite.TokensForValue(cty.StringVal(v))...)
		out = append(out, &hclwrite.Token{Type: hclsyntax.TokenComma, Bytes: []byte(",")}, newline)
	}
	return append(out, &hclwrite.Token{Type: hclsyntax.TokenCBrack, Bytes: []byte("]")})
}

func timeoutTokens(timeouts []declared.Timeout) hclwrite.Tokens {
	var attrs []hclwrite.ObjectAttrTokens
	for _, t := range timeouts {
		attrs = append(attrs, hclwrite.ObjectAttrTokens{Name: hclwrite.TokensForIdentifier(t.Name), Value: hclwrite.TokensForValue(cty.NumberIntVal(t.Seconds))})
	}
	return hclwrite.TokensForObject(attrs)
}

// hostGlob is a pattern that matches the host of that name alone. It reports
// false for a name that cannot be written plainly.
func hostGlob(name string) (string, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || len(name) > 253 || strings.IndexFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return "", false
	}
	var b strings.Builder
	for _, r := range name {
		if strings.ContainsRune(`*?[\`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	ok, err := path.Match(b.String(), name)
	return b.String(), ok && err == nil
}

// comment appends paragraphs as comments, wrapped.
func comment(b *hclwrite.Body, paragraphs []string) {
	var tokens hclwrite.Tokens
	line := func(text string) {
		text = strings.TrimRight("# "+text, " ") + "\n"
		tokens = append(tokens, &hclwrite.Token{Type: hclsyntax.TokenComment, Bytes: []byte(text)})
	}
	for i, p := range paragraphs {
		if text, ok := strings.CutPrefix(p, "  "); ok { // to copy, whole
			line("  " + commentText(text))
			continue
		}
		if i > 0 && (len(p) > commentWidth || len(paragraphs[i-1]) > commentWidth) {
			line("")
		}
		at := ""
		for word := range strings.FieldsSeq(commentText(p)) {
			if at != "" && len(at)+len(word) >= commentWidth-2 {
				line(at)
				at = ""
			}
			if at != "" {
				at += " "
			}
			at += word
		}
		if at != "" {
			line(at)
		}
	}
	b.AppendUnstructuredTokens(tokens)
}

// commentText is a text of which nothing breaks out of a line: what cannot be
// printed, or turns the direction of writing, becomes U+FFFD.
func commentText(s string) string { return visible(s) }
