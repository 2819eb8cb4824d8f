// Package rules says which VMs may run where, and beside whom.
//
// One form, [Rule], serves the vocabularies that administrators bring: VM–host
// rules (must and should, on and off a group of hosts), VM–VM rules and resource
// affinity (together, apart), node affinity (weights, strict or preferred). A
// list of rules is in the order of age, the oldest first: an older rule wins.
//
// [Check] decides whether the hard rules of a list can all hold at once, with
// every host and after the loss of some. It is complete: chains of together-rules,
// apart-groups that other rules squeeze onto too few hosts and anything else that
// follows from the rules is found, because it searches for a placement that obeys
// them all and fails only when there is none. Of each contradiction it names an
// irreducible set of rules (without any one of them the others could hold) and
// disables the newest, so that what is left can hold. It does not look at room:
// that is admission control's question.
//
// The package is pure: no I/O, clock, randomness or goroutine; the same input
// gives the same output, in the same order.
package rules
