// Package wire carries bytes between the agents of a cluster: sealed datagrams
// over UDP and ordered messages over mutual TLS, both on port 8182. What the
// bytes mean is the agent's business.
//
// # Messages
//
// Send queues and never blocks. A connection is made when there is something
// to send and kept while it is used; between two hosts either may dial, and
// should both dial at once both connections stay, each host sending on one.
// Messages of one sender arrive in order, at most once. They may be lost when
// a connection is: the sender is then told by Disconnected and decides what to
// say again. Nothing is delivered late: what could not be sent in one round of
// connecting is dropped, not kept.
//
// Each side sends something every interval, and drops a connection on which
// nothing came for three and a half. Connecting tries the peer's networks in
// order, each a little after the one before, and takes the first that answers.
//
// # Datagrams
//
// The keys of datagrams come from the TLS sessions between the two hosts
// (exported keying material), one per direction, so that a datagram proves its
// sender: another member's certificate makes other keys. At start a host
// connects to every peer to make keys, the one with the lower name at once, the
// other when that has not worked after a moment; both try until it has. Keys
// outlive their connection, because heartbeats must go on when TCP is cut.
// Sessions are numbered by agreement of both sides, both send with the highest
// they agreed on, and forget a lower one as soon as the peer used a higher.
//
// # What is not promised
//
// A datagram may be lost or reordered, never repeated. Times are the kernel's
// monotonic clock, which stops in suspend: after one, connections break a
// little later than by CLOCK_BOOTTIME.
package wire
