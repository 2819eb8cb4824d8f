// Package hypervisor is the boundary between Hanok and what runs virtual
// machines on a host: the words for domains, their events and their errors,
// and the interface that a driver fulfils. It has no implementation; the
// driver for libvirt is in the package below it.
//
// # What a driver promises
//
//   - Every call takes a context and ends by its own deadline even when the
//     hypervisor's daemon is hung, or a VM is frozen. A call that ended with
//     KindTimeout or KindUnavailable may still have been carried out, now or
//     later; List tells. All others have happened, or not, when they return.
//   - The driver connects by itself, for ever, with backoff. Events says when
//     the connection was lost and when it is back.
//   - After every connect there is an EventResync, and whenever events were
//     lost or domains changed without one. Whoever keeps a picture of the
//     host's domains calls List then.
//   - List and Stats answer while VMs are frozen. All other calls about a
//     frozen VM run into their deadline, and what they asked for may be
//     carried out when it thaws. Do not make them.
//   - Nothing is started, stopped or resumed on the driver's own initiative.
//
// # What it does not promise
//
// Events of different kinds (lifecycle, guest agent, I/O error, watchdog) may
// overtake each other; lifecycle events of one domain do not.
package hypervisor
