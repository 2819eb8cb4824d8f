// Package guard is the shell around lease.Machine: it carries out the storage
// calls, freezes, thaws, kills and watchdog pets that the machine orders, and
// tells it what happened.
//
// One goroutine owns the machine. Storage runs in a datastore.Pool for each
// datastore, cgroups in one proc.Worker, the watchdog in a goroutine of its
// own, so that nothing that hangs stalls the rest.
package guard
