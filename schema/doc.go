// Package schema reads ctplan's language: HCL files in, validated
// planner.Desired out.
//
// It owns the language: its blocks and attributes, variables and where their
// values come from, host facts, functions, and every rule about what a value
// may be. It promises that whatever it returns without an error can be
// rendered as it stands: names, interfaces and paths hold no quote, no line
// break and no control character, addresses are canonical, ports are sorted
// and in range, and numbers are whole and fit the kernel. It reports all
// errors of all files at once, each at the attribute that it is about.
//
// It never touches the host: facts are handed in, and the only files it reads
// are the sources and the variable files that the caller names. It is the
// only package that imports hcl and cty.
package schema
