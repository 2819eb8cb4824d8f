// Package hook answers libvirt's QEMU hook: it asks the guard whether a domain
// may start here, and decides by itself when the guard does not answer.
//
// Operations that may bring a managed disk to life fail closed within 3 s. All
// others always succeed: a failing reconnect kills the running QEMU. libvirt is
// never called from here; it would wait for itself.
package hook
