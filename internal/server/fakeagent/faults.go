package fakeagent

import "hanok.dev/hanok/internal/model"

// SetBehind makes a host report an older version of the cluster file than the
// primary; 0: no longer.
func (f *Cluster) SetBehind(host model.HostID, version uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.behind == nil {
		f.behind = map[model.HostID]uint64{}
	}
	if f.behind[host] = version; version == 0 {
		delete(f.behind, host)
	}
}

// SetStuck makes power orders be taken and bring nothing about, or work again.
func (f *Cluster) SetStuck(stuck bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stuck = stuck
}

// Forget makes a host lose its oldest events and end what is followed there: as if
// its log had overflowed while no server could ask it.
func (f *Cluster) Forget(host model.HostID, events int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events[host] = f.events[host][min(events, len(f.events[host])):]
	f.forgot++
	f.wake()
}
