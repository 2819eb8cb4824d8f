// Package api implements the services of hanok.v1 over the state: reads come
// from the cache, changes go to the store, work that follows from them is left
// to the leader as tasks.
//
// A change is one Commit: the wanted configuration, its version, the task, the
// event that says who did it, and the answer for whoever asks again with the
// same idempotency key. It is there as a whole or not at all.
package api
