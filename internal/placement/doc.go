// Package placement answers where VMs should run, and if nowhere, why.
//
// A [State] knows the hosts, the VMs, where each runs, and the rules. It is
// incremental: a change costs what it touches, and whether a VM fits on a host
// costs O(rules that touch the VM). Failover, admission control, power-on, and
// previews ask the same State.
//
// # Contract
//
//  1. Make a State with [New]; give it the rules in force, which is what
//     rules.Check left of the list. Keep it up to date with SetHost, SetVM, Run,
//     Move, Stop and their kin.
//  2. Tell it of a start when the start is decided ([State.Run]), not when it has
//     happened, and of a failure with [State.Stop]: so no room is given out twice.
//  3. Tell it of a move when it begins ([State.Move]) and when it has ended
//     ([State.Run]). Between the two the VM takes room on both hosts and counts
//     on both for rules, so that hard rules hold during moves too.
//  4. Queries ([State.Place], [State.PlaceAll], [State.WhyNot], [State.MakeRoom],
//     [State.Survives]) leave the State as it was. Answers are deterministic: they
//     depend on what the State knows, never on the order in which it learned it.
//  5. For a restart of many give PlaceAll all of them at once, those that must
//     still wait for others included, in order of restart. It keeps room for what
//     comes later and puts VMs that belong together onto one host.
//
// A State is not safe for concurrent use. Nothing here does I/O, reads a clock or
// draws random numbers.
package placement
