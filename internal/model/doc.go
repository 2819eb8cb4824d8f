// Package model is Hanok's vocabulary: hosts, virtual machines, datastores,
// slots, lock records and the words used for their states everywhere.
//
// It holds values only. Nothing in it performs I/O, reads a clock or draws
// random numbers, and it imports nothing of Hanok, so every other package may
// import it.
package model
