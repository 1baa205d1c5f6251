package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ctplan/ctplan/planner"
	"github.com/ctplan/ctplan/planner/host"
)

// Encode writes the snapshot as indented JSON.
func (s *Snapshot) Encode(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

// Decode reads one snapshot and nothing behind it, in JSON or as Script prints it. It refuses what is too
// large, truncated, of another format version, has unknown fields, or holds a
// value that no host has.
func Decode(r io.Reader) (*Snapshot, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("larger than %d MiB, the most a snapshot may have", MaxBytes>>20)
	}
	var s Snapshot
	if found, ok := byScript(data); ok {
		return readArchive(found)
	}
	if err := StrictJSON(data, "snapshot", &s); err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("not a valid snapshot: %w", err)
	}
	return &s, nil
}

// StrictJSON decodes one JSON object of a known format version, what names it
// in errors. Unknown fields and anything behind the object are errors.
func StrictJSON(data []byte, what string, into any) error {
	var head struct {
		FormatVersion *int `json:"format_version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		var syntax *json.SyntaxError
		switch {
		case len(bytes.TrimSpace(data)) == 0:
			return fmt.Errorf("empty: not a ctplan %s", what)
		case errors.As(err, &syntax) && syntax.Offset >= int64(len(data)) && strings.HasPrefix(syntax.Error(), "unexpected end"):
			return fmt.Errorf("truncated at byte %d: make the %s again", len(data), what)
		}
		return fmt.Errorf("not a ctplan %s: %w", what, err)
	}
	switch v := head.FormatVersion; {
	case v == nil:
		return fmt.Errorf("not a ctplan %s: no format_version", what)
	case *v != planner.FormatVersion:
		return fmt.Errorf("format version %d: this ctplan reads version %d alone; use the ctplan that wrote it, or make the %s again", *v, planner.FormatVersion, what)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("not a ctplan %s: %w", what, err)
	}
	return nil
}

// Check refuses what no host can be, so that neither parsers nor planner meet
// it: a page size of 0, a family that does not exist, a relative path.
func (s *Snapshot) Check() error {
	h := s.Host
	switch {
	case h.Name == "":
		return errors.New("host.name is missing")
	case h.CPUs < 1:
		return fmt.Errorf("host.cpus is %d", h.CPUs)
	case h.Memory < 0:
		return fmt.Errorf("host.memory is %d", h.Memory)
	case h.PageSize < 1024 || h.PageSize > 1<<20 || bits.OnesCount64(uint64(h.PageSize)) != 1:
		return fmt.Errorf("host.page_size is %d: it should be a power of two from 1024", h.PageSize)
	case h.PointerSize != 4 && h.PointerSize != 8:
		return fmt.Errorf("host.pointer_size is %d: it should be 4 or 8", h.PointerSize)
	}
	c := s.Conntrack
	if !slices.Contains([]host.ConntrackKind{host.ConntrackAbsent, host.ConntrackModule, host.ConntrackBuiltin}, c.Kind) {
		return fmt.Errorf("conntrack.kind is %q", c.Kind)
	}
	if c.Hashsize < 0 || c.Count < 0 || c.Max < 0 {
		return errors.New("conntrack has a negative size")
	}
	for _, m := range s.Modules {
		if !plainName(m.Name) {
			return fmt.Errorf("module name %q", m.Name)
		}
	}
	if s.Loading != nil {
		for _, name := range s.Loading.Usable {
			if !plainName(name) {
				return fmt.Errorf("module name %q", name)
			}
		}
	}
	for _, t := range s.Trees {
		if t.Release == "" || strings.ContainsAny(t.Release, "/\x00\n") {
			return fmt.Errorf("module_trees: release %q", t.Release)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Sysctls)) {
		if !plainName(k) {
			return fmt.Errorf("sysctl name %q", k)
		}
	}
	if slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return !a.IsValid() || a.Addr().Zone() != "" }) {
		return errors.New("addresses: one is not valid")
	}
	if err := s.checkRules(); err != nil {
		return err
	}
	if b := s.Boot; b != nil {
		if !slices.Contains([]string{"", host.InitSystemd, host.InitSysv, host.InitOpenRC}, b.Init) {
			return fmt.Errorf("boot.init is %q", b.Init)
		}
		for _, name := range b.Services {
			if !plainName(name) {
				return fmt.Errorf("boot.services: %q", name)
			}
		}
	}
	if err := s.checkHolders(); err != nil {
		return err
	}
	if err := checkConnections(s.Connections); err != nil {
		return err
	}
	for _, f := range s.Files {
		if !slices.Contains(kinds, f.Kind) {
			return fmt.Errorf("files: kind %q", f.Kind)
		}
		if p := f.File.Path; !path.IsAbs(p) || path.Clean(p) != p || strings.Contains(p, "\x00") {
			return fmt.Errorf("files: path %q: it should be absolute and clean", p)
		}
	}
	return nil
}

func (s *Snapshot) checkRules() error {
	for i, r := range s.Rules {
		if !slices.Contains(host.Families, r.Family) {
			return fmt.Errorf("rules: family %q", r.Family)
		}
		if r.Backend != host.NFT && r.Backend != host.Legacy {
			return fmt.Errorf("rules: backend %q", r.Backend)
		}
		for _, o := range s.Rules[:i] {
			if o.Family == r.Family && (o.Backend == r.Backend || o.Primary && r.Primary) {
				return fmt.Errorf("rules: %s stands twice", r.Family)
			}
		}
	}
	return nil
}

var kinds = []Kind{KindSysctl, KindModprobe, KindModulesLoad, KindInitScript, KindInitConfig, KindRulesV4, KindRulesV6, KindScript, KindInitramfs, KindNFTables}

// plainName holds for what the kernel calls modules and sysctls.
func plainName(s string) bool {
	return s != "" && len(s) <= 255 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") == "" && !strings.Contains(s, "..")
}

// text is a string of any bytes: JSON carries it as a string where it is valid
// UTF-8, else as {"base64": "..."}.
type text string

type base64Text struct {
	Base64 *[]byte `json:"base64"`
}

func (t text) MarshalJSON() ([]byte, error) {
	if !utf8.ValidString(string(t)) {
		b := []byte(t)
		return json.Marshal(base64Text{&b})
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(string(t))
	return buf.Bytes(), err
}

func (t *text) UnmarshalJSON(data []byte) error {
	if data[0] != '{' {
		return json.Unmarshal(data, (*string)(t))
	}
	var b base64Text
	if err := strict(data, &b); err != nil {
		return err
	}
	if b.Base64 == nil {
		return errors.New("an object in place of a string has no base64")
	}
	*t = text(*b.Base64)
	return nil
}

// strict is for UnmarshalJSON methods: the decoder that calls them does not
// hand its strictness down.
func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}

type rulesJSON struct {
	Family  host.Family  `json:"family"`
	Backend host.Backend `json:"backend"`
	Primary bool         `json:"primary"`
	Version text         `json:"version"`
	Text    text         `json:"text"`

	Incompatible []string `json:"incompatible,omitempty"`
}

func (r Rules) MarshalJSON() ([]byte, error) {
	return json.Marshal(rulesJSON{r.Family, r.Backend, r.Primary, text(r.Version), text(r.Text), r.Incompatible})
}

func (r *Rules) UnmarshalJSON(data []byte) error {
	var j rulesJSON
	if err := strict(data, &j); err != nil {
		return err
	}
	*r = Rules{Family: j.Family, Backend: j.Backend, Primary: j.Primary, Version: string(j.Version), Text: string(j.Text), Incompatible: j.Incompatible}
	return nil
}

type fileJSON struct {
	Kind Kind         `json:"kind"`
	As   text         `json:"as,omitempty"`
	File fileBodyJSON `json:"file"`
}

// fileBodyJSON is planner.File with strings of any bytes.
type fileBodyJSON struct {
	Path    text            `json:"path"`
	Exists  bool            `json:"exists"`
	Content text            `json:"content,omitempty"`
	Mode    uint32          `json:"mode,omitempty"`
	UID     int             `json:"uid,omitempty"`
	GID     int             `json:"gid,omitempty"`
	Target  text            `json:"target,omitempty"`
	Xattrs  map[string]text `json:"xattrs,omitempty"`
}

func (f File) MarshalJSON() ([]byte, error) {
	p := f.File
	j := fileJSON{f.Kind, text(f.As), fileBodyJSON{
		Path: text(p.Path), Exists: p.Exists, Content: text(p.Content),
		Mode: p.Mode, UID: p.UID, GID: p.GID, Target: text(p.Target),
	}}
	if len(p.Xattrs) > 0 {
		j.File.Xattrs = make(map[string]text, len(p.Xattrs))
		for k, v := range p.Xattrs {
			j.File.Xattrs[k] = text(v)
		}
	}
	return json.Marshal(j)
}

func (f *File) UnmarshalJSON(data []byte) error {
	var j fileJSON
	if err := strict(data, &j); err != nil {
		return err
	}
	b := j.File
	*f = File{j.Kind, host.File{
		Path: string(b.Path), Exists: b.Exists, Content: string(b.Content),
		Mode: b.Mode, UID: b.UID, GID: b.GID, Target: string(b.Target),
	}, string(j.As)}
	if len(b.Xattrs) > 0 {
		f.File.Xattrs = make(map[string]string, len(b.Xattrs))
		for k, v := range b.Xattrs {
			f.File.Xattrs[k] = string(v)
		}
	}
	return nil
}
