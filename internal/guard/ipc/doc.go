// Package ipc carries lease.Request, lease.Reply and lease.Notice between the
// guard and those who ask it, over a unix stream socket.
//
// A frame is its length in four bytes, most significant first, and that many
// bytes of JSON, at most MaxFrame. Both ends bound what they queue: a peer that
// does not read is disconnected. Only processes of the permitted user (root)
// are served.
//
// The package uses system calls instead of package net, which the guard must
// not contain.
package ipc
