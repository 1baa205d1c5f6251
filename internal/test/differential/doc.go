// Package differential holds planner's evaluator of rulesets to the kernel:
// generated rulesets are loaded into network namespaces through both backends,
// real packets are sent to, through and from them, and every verdict that the
// evaluator calls known must be what happened.
//
// It owns no code of the program, and changes nothing outside of namespaces
// that it makes.
package differential
