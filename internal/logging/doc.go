// Package logging carries a daemon's log to where its host collects logs:
// journald with one field for each attribute, syslog, or text on a stream.
//
// It uses system calls on unix sockets only, because the guard, which has no
// network code, logs through it too. Nothing in it waits: a line that the
// collector does not take at once is dropped and counted, and a stream is written by
// a goroutine of its own behind a bounded queue, since neither a full log nor the disk
// under it may stall a heartbeat or a watchdog.
package logging
