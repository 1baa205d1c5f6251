package host

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestElements(t *testing.T) {
	want := []NFTElement{
		{Key: []byte{0, 22}},
		{Key: []byte{10, 0, 0, 0}, Last: []byte{10, 0, 0, 255}, Expires: true},
		{Key: []byte{0, 80}, Verdict: "jump", Chain: "a chain=of~some: name~"},
		{Key: []byte{1}, Verdict: "accept"},
		{Key: []byte{2}, Data: []byte{127, 0, 0, 1}},
		{Key: []byte{3}, Object: "limit 1"},
		{Any: true, Verdict: "drop"},
	}
	l := MakeElements(slices.Values(want))
	var one Elements
	for _, e := range want {
		one.Append(e)
	}
	if one != l {
		t.Errorf("one after another they are %q, together %q", one, l)
	}
	var got []NFTElement
	for e, err := range l.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q\n%+v\nwant\n%+v", l, got, want)
	}
	if n := l.Len(); n != len(want) {
		t.Errorf("Len: %d", n)
	}
	if lasting := l.Lasting(); lasting.Len() != len(want)-1 || strings.Contains(string(lasting), "~") || !strings.HasPrefix(string(l), "0016 ") || !strings.HasPrefix(string(lasting), "0016 0050:") {
		t.Errorf("Lasting: %q", lasting)
	}
	for _, bad := range []Elements{"0g", "00-1", "00:0", "00:=%zz", "00:@%"} {
		for _, err := range bad.All() {
			if err == nil {
				t.Errorf("%q is taken", bad)
			}
		}
	}
}
