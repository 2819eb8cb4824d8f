// Package fusefs is a host's path to a shared datastore: a FUSE mount over a
// backing directory whose failures can be switched at once.
//
// Several mounts over one backing directory, in one process or in many, behave
// like several hosts that share one storage: nothing is cached in the kernel
// (every read, lookup and attribute comes from the backing directory), POSIX
// and OFD locks conflict across mounts, link(2), O_EXCL and rename are as
// atomic as on the backing file system. O_DIRECT is accepted and served
// through the machine's page cache, which all mounts share; O_DSYNC and fsync
// reach the backing file system.
//
// What is not promised: shared writable mmap, and O_APPEND from two mounts at
// once (each kernel mount computes the end of file by itself, as on NFS).
//
// Release and Flush are never delayed or failed, so that a dead process's
// files are always closed; everything else obeys the fault that is set.
package fusefs
