// Package fuzz is random disasters: from one seed a cluster and a script of
// faults and operations, run in virtual time, and, when an invariant breaks,
// the shortest script found that still breaks it.
//
// What is run is a scenario file and nothing else: [Generate] makes one,
// [Run] plays it, [Shrink] takes steps out of it, [Format] writes it, and
// `hanok sim run --seed` plays what was written in exactly the same way.
package fuzz
