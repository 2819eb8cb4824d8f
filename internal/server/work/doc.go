// Package work is what one server, the leader, does in the background: it
// follows the agents of each cluster, hands the wanted configuration to them,
// carries out tasks and removes what is old.
//
// For each cluster a follower asks the primary for its account once a second
// and writes what changed; for each host a stream of its own events, and one of
// all events of the primary, is followed from where it was left. Everything is
// written with the leadership as a condition.
package work
