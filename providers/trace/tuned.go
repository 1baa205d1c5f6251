package trace

import (
	"strings"
)

// maxProfiles bounds how many profiles are read: they include each other.
const maxProfiles = 16

// readTuned reads the sysctls that TuneD's active profiles set (tuned.conf(5)).
func (e *Evidence) readTuned(q Query) {
	active, err := readSmall(q.Root + "/etc/tuned/active_profile")
	if err != nil {
		return
	}
	todo, seen := strings.Fields(string(active)), map[string]bool{}
	for len(todo) > 0 && len(seen) < maxProfiles {
		name := todo[0]
		todo = todo[1:]
		if seen[name] || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
			continue
		}
		seen[name] = true
		for _, dir := range []string{"/etc/tuned/profiles/", "/etc/tuned/", "/usr/lib/tuned/profiles/", "/usr/lib/tuned/"} {
			path := dir + name + "/tuned.conf"
			data, err := readSmall(q.Root + path)
			if err != nil {
				continue
			}
			settings, includes := parseTuned(path, string(data))
			e.Settings = append(e.Settings, settings...)
			todo = append(todo, includes...)
			break
		}
	}
}

// parseTuned reads the sysctls of a profile, and the profiles that it includes.
func parseTuned(path, content string) (settings []Setting, includes []string) {
	section := ""
	n := 0
	for line := range strings.Lines(content) {
		n++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case section == "main" && key == "include":
			includes = append(includes, strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })...)
		case section == "sysctl":
			key = strings.ReplaceAll(key, "/", ".")
			settings = append(settings, Setting{"TuneD", key, strings.Trim(value, `"'`), Record{Where: place(path, n), Text: clip(line)}})
		}
	}
	return settings, includes
}
