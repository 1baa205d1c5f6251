package journal

import (
	"encoding/json"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// JSON holds Unicode, while files and rules hold any bytes. A byte that is no
// part of UTF-8 is written as the character of its own at byteBase, in the last
// plane for private use; and so are the bytes of these characters.
const (
	byteBase  = 0x10ff00
	firstByte = byteBase + utf8.RuneSelf
)

// marshal is json.Marshal that loses no byte of a string.
func marshal(r Record) ([]byte, error) {
	return json.Marshal(mapStrings(reflect.ValueOf(r), escapeBytes).Interface())
}

// unmarshal takes marshal back.
func unmarshal(line []byte, r *Record) error {
	if err := json.Unmarshal(line, r); err != nil {
		return err
	}
	*r = mapStrings(reflect.ValueOf(*r), unescapeBytes).Interface().(Record)
	return nil
}

func escapeBytes(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, isByte) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 || isByte(r) {
			for ; size > 0; size-- {
				b.WriteRune(byteBase + rune(s[i]))
				i++
			}
			continue
		}
		b.WriteString(s[i : i+size])
		i += size
	}
	return b.String()
}

func unescapeBytes(s string) string {
	if strings.IndexFunc(s, isByte) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isByte(r) {
			b.WriteByte(byte(r - byteBase))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func isByte(r rune) bool { return r >= firstByte }

// mapStrings copies a value with every string in it mapped.
func mapStrings(v reflect.Value, to func(string) string) reflect.Value {
	if !v.IsValid() || v.Type() == reflect.TypeFor[time.Time]() {
		return v
	}
	out := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.String:
		out.SetString(to(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			out.Set(reflect.New(v.Type().Elem()))
			out.Elem().Set(mapStrings(v.Elem(), to))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			out.Field(i).Set(mapStrings(v.Field(i), to))
		}
	case reflect.Slice:
		if !v.IsNil() {
			out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				out.Index(i).Set(mapStrings(v.Index(i), to))
			}
		}
	case reflect.Map:
		if !v.IsNil() {
			out.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
			for k, e := range v.Seq2() {
				out.SetMapIndex(mapStrings(k, to), mapStrings(e, to))
			}
		}
	default:
		out.Set(v)
	}
	return out
}
