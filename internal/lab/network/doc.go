// Package network is the lab's cabling: one network namespace that holds a
// bridge per network and a port per host and network, and the faults of those
// ports.
//
// Nothing of it is visible in the machine's own namespace, so labs with the
// same addresses live side by side, and all of it vanishes with the process
// that made it.
package network
