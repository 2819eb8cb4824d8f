// Package domainxml reads libvirt's domain XML: what Hanok must know of a VM,
// why a VM cannot be protected, the form in which its definition is kept
// beside its disks, and how two definitions differ.
//
// It performs no I/O. Input is bounded by MaxSize and in depth, so text from
// a shared datastore cannot exhaust a host.
package domainxml
