package model

import (
	"fmt"
	"regexp"
)

// HostID names a host in its cluster. It is the `name` of the host in the
// cluster file, and the tie-breaker of elections, compared as text.
type HostID string

// VMID identifies a virtual machine: its libvirt domain UUID, lower case with
// dashes. Locks on datastores are named after it.
type VMID string

// DatastoreID is the UUID that `hanok datastore init` wrote on a datastore.
type DatastoreID string

// DatastoreName is the name of a datastore in the cluster file.
type DatastoreName string

// BootID identifies one boot of a host: the text of
// /proc/sys/kernel/random/boot_id.
type BootID string

// Epoch numbers the records of one lock, from 1. Zero means "no record".
// Numbers never restart.
type Epoch uint64

// Term numbers the owners of a datastore's protected list: it is the Epoch of
// the list's lock. Commands of a primary carry it; older terms are refused.
type Term uint64

// MiB is an amount of memory in mebibytes.
type MiB int64

// MHz is an amount of processor capacity in megahertz.
type MHz int64

var (
	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)
	namePattern = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.+-]{0,126}[a-zA-Z0-9_+-])?$`)
)

// Validate reports whether h may name a host: 1 to 63 letters, digits, dots
// and dashes, as a host name, safe as a file name.
func (h HostID) Validate() error {
	if !hostPattern.MatchString(string(h)) {
		return fmt.Errorf("host name %q: use 1 to 63 letters, digits, dots and dashes", string(h))
	}
	return nil
}

// isUUID reports whether s is 8-4-4-4-12 lower-case hexadecimal digits. Large
// clusters ask for every VM and host, so this is no regular expression.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return true
}

// Validate reports whether v is a lower-case UUID with dashes.
func (v VMID) Validate() error {
	if !isUUID(string(v)) {
		return fmt.Errorf("VM id %q: must be a lower-case UUID such as 6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", string(v))
	}
	return nil
}

// Validate reports whether d is a lower-case UUID with dashes.
func (d DatastoreID) Validate() error {
	if !isUUID(string(d)) {
		return fmt.Errorf("datastore id %q: must be a lower-case UUID", string(d))
	}
	return nil
}

// ValidateName reports whether s may name a VM, datastore, network, group or
// rule: 1 to 128 letters, digits, and _ . + -, safe as a file name.
func ValidateName(s string) error {
	if !namePattern.MatchString(s) {
		return fmt.Errorf("name %q: use 1 to 128 letters, digits, '_', '.', '+' and '-', not starting with '.' or '-'", s)
	}
	return nil
}
