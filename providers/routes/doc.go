// Package routes reads how the host chooses the way of a packet by more than
// where it goes: ip rule, the routes of its tables, rp_filter, and filters of tc
// and policies of IPsec that go by marks.
//
// It reads, and changes nothing; what a packet's way is decides its caller. Of
// all it takes no more than it has room for, and says when there is more.
package routes
