package host

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestProgram(t *testing.T) {
	rule := NFTRule{Handle: 7, Text: "x", Exprs: NFTProgram{
		{Name: "payload", Dst: 1, Base: 1, Offset: 12, Len: 4},
		{Name: "cmp", Src: 1, Data: Hex{10, 0, 0, 1}},
		{Name: "ct", Src: 9, Dir: "reply", Sets: true},
		{Name: "dynset", Set: "a; b=c d%", Inner: NFTProgram{{Name: "limit", Flags: 1}, {Name: "quota"}}},
		{Name: "immediate", Verdict: "jump", Chain: "to"},
		{Name: "odd name;="},
	}}
	b, err := json.Marshal(rule)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"handle":7,"text":"x","exprs":"payload dst=1 base=1 offset=12 len=4; cmp src=1 data=0a000001; ct src=9 dir=reply sets; ` +
		`dynset set=a%3B+b%3Dc+d%25 inner=limit+flags%3D1%3B+quota; immediate verdict=jump chain=to; odd+name%3B%3D"}`
	if string(b) != want {
		t.Errorf("%s\nwant %s", b, want)
	}
	var back NFTRule
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, rule) {
		t.Errorf("%v, %+v", err, back)
	}
	for _, bad := range []string{"cmp dat=00", "cmp data=0", "cmp src=x", "cmp src=4294967296", " src=1", "cmp src=1;cmp", "cmp  src=1"} {
		if err := new(NFTProgram).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestProgramFields holds that every field of an expression is in its text.
func TestProgramFields(t *testing.T) {
	var e NFTExpr
	if n := reflect.TypeOf(e).NumField(); n != exprFields+1 { // and the name
		t.Errorf("%d fields, and the text has %d", n, exprFields+1)
	}
	for i, f := range e.fields() {
		if tag := reflect.TypeOf(e).Field(i + 1).Tag.Get("json"); tag != f.name+",omitempty" {
			t.Errorf("field %d is %q in JSON and %q in the text", i, tag, f.name)
		}
	}
}

func FuzzProgram(f *testing.F) {
	f.Add("payload dst=1 base=1 offset=12 len=4; cmp src=1 data=0a000001")
	f.Add("dynset set=a%3B+b inner=limit+flags%3D1%3B+quota; immediate verdict=jump chain=to; ct sets")
	f.Fuzz(func(t *testing.T, text string) {
		var p, again NFTProgram
		if p.UnmarshalText([]byte(text)) != nil {
			return
		}
		b, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalText(b); err != nil || !reflect.DeepEqual(p, again) {
			t.Errorf("%q becomes %q: %v", text, b, err)
		}
	})
}
