// Package vmtest tests the built ctplan binary on whole machines: modules that
// load and unload, boots and power cuts. It has no code of the program, and
// changes nothing outside the machines that package vmlab makes.
package vmtest
