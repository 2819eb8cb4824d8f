// Package supervisor is the process that owns a lab: the cables, storage
// paths and watchdogs of its hosts, their power, and the observer.
//
// It runs outside every host and serves a small HTTP interface on a Unix
// socket (package lab has the client). When it is killed, the hosts lose their
// storage and networks at once; `hanok lab down` cleans up after it.
package supervisor
