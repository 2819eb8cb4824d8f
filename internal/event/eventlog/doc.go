// Package eventlog keeps a host's events on its local disk and tells followers
// of new ones.
//
// Events are JSON lines in a file that is renamed when it is full; a bounded
// number of files of bounded size is kept. Lines are not synced one by one: a power
// loss may take the last seconds, which the other hosts have as well. Lines
// that cannot be read are skipped and counted.
package eventlog
