// Package lab brings up a real multi-host cluster on one machine and breaks it
// on request: hosts made of namespaces with their own libvirtd, shared
// datastores, networks and watchdogs, real virtual machines on them.
//
// Up starts a lab and leaves a supervisor running that owns it; Open returns a
// Client of a running lab, for faults, commands inside hosts and the truth
// about what runs where; Down removes a lab, whatever state it is in. Several
// labs with different names run side by side and share nothing but the
// machine's processors.
package lab
