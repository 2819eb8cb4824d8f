// Package account knows who may log in: users with their passwords and roles,
// sessions of browsers, API tokens, and the one-time link that makes the first
// administrator.
//
// Of a password only an argon2id hash is kept, of every other secret only its
// SHA-256: they are random, so that nothing slower is needed. Each call reads
// what it rests on from the store, so that a revocation, a removed user or a
// lesser role counts at every server from the next call on.
//
// Every change of users rests on the set of users as it was read; two
// administrators cannot remove each other at the same moment, and the last one
// cannot be removed at all.
//
// Logins are slowed down per user and address ([Throttle]) in bounded memory.
package account
