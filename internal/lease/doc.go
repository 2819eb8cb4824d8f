// Package lease is the pure core of the guard: it decides every storage call,
// freeze, thaw, kill and watchdog pet that keeps a VM from running twice
// (docs/protocol.md).
//
// # Contract
//
// A [Machine] is single-threaded. Its shell (the daemon, or a simulator)
//
//   - makes one with [New] from the configuration and what a predecessor of
//     the same boot saved,
//   - calls [Machine.Step] with every [Event], in the order in which they
//     happened, with the time of CLOCK_BOOTTIME; a Tick at the latest when
//     [Machine.Next] says so,
//   - carries out the returned effects in their order: SaveState before the
//     effects that follow it; an effect with a Before not later than that,
//     checked by the clock immediately before it is done, or not at all;
//     freezes, thaws and kills of one VM in the order of the effects,
//   - answers each effect that has an Op with one event of the same Op,
//     whenever that may be. An answer that comes after the machine lost
//     interest does no harm; one that never comes blocks only the lock or the
//     datastore that it is about.
//
// Nothing here reads a clock, draws a random number or starts a goroutine.
// Nonces come from Config.Nonce, digests from Config.Identify.
package lease
