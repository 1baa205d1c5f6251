package host

import "fmt"

// KernelRelease is the version that a release begins with, "6.1.0-56-amd64"; not
// ok where it does not begin with two numbers.
func KernelRelease(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

// KernelBefore reports whether a release is known to be older than a version.
func KernelBefore(release string, major, minor int) bool {
	a, b, ok := KernelRelease(release)
	return ok && (a < major || a == major && b < minor)
}
