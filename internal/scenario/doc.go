// Package scenario reads scenario files: a cluster, a script of faults and
// expectations, and the shape of the result of running them.
//
// A scenario is a txtar archive with the files cluster.yaml and script, and
// what else it needs. The package only reads: the lab runs a scenario on real
// hosts, the simulator in virtual time. docs/scenarios.md describes the
// steps.
package scenario
