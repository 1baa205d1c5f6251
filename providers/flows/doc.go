// Package flows reads what is connected now: the table of tracked connections
// over ctnetlink, and TCP and UDP sockets over inet_diag, which exist also when
// nothing is tracked; the statistics of connection tracking; the host's addresses
// and routes, which say where a connection passes; and which of them is the
// session that ctplan runs in.
//
// It owns the reading. It never changes a connection, loads no module (a host
// without connection tracking has no table to read), and promises that a
// connection is either read whole or left out.
package flows
