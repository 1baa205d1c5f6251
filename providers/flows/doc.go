// Package flows reads what is connected now: the table of tracked connections
// over ctnetlink, and TCP and UDP sockets over inet_diag, which exist also when
// nothing is tracked; the statistics of connection tracking; the host's addresses
// and routes, which say where a connection passes; and which of them is the
// session that ctplan runs in.
//
// It writes the table too: entries are saved whole, put in and taken out, in
// batches. Which ones is its callers' to say.
//
// It owns the reading, and that writing. It changes no socket, loads no module
// where it reads (a host without connection tracking has no table to read), and
// promises that a connection is either read whole or left out.
package flows
