// Package logging carries a daemon's log to where its host collects logs:
// journald with one field for each attribute, syslog, or text on a stream.
//
// It uses system calls on unix sockets only, because the guard, which has no
// network code, logs through it too. Nothing in it waits: a line that the
// collector does not take at once is dropped and counted, since a full log must
// never stall a heartbeat.
package logging
