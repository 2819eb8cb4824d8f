// Package config is the cluster file: its fields, its strict reader and the
// store that keeps the highest version on a host's disk.
//
// A [Cluster] that came out of [Parse] is valid as a whole: names are legal and
// unique, references lead somewhere, durations fit each other. Callers need no
// checks of their own, except [Cluster.CheckDeployable] before real hosts use
// it (the simulator needs no addresses).
//
// The package imports neither net nor anything that does, because the guard
// reads the cluster file too. docs/configuration.md describes every field.
package config
