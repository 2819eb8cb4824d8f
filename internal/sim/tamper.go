package sim

import (
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Tamper switches things off between the machines and their surroundings, or
// in the surroundings, so that scenarios and invariants can be seen to fail.
// The machines themselves are never changed. The zero value changes nothing.
type Tamper struct {
	// Agent and AgentEvent may replace what passes; nil drops it.
	Agent      func(model.HostID, fdm.Effect) fdm.Effect
	AgentEvent func(model.HostID, fdm.Event) fdm.Event
	// Guard returns false to drop an effect.
	Guard func(model.HostID, *lease.Effect) bool
	// Config changes every version of the cluster file as the agents get it.
	Config func(*fdm.Cluster)

	NoFreeze    bool // freezes are confirmed and do nothing
	NoReset     bool // the watchdog never resets a host
	NoHook      bool // libvirt does not ask before it starts a domain
	NoRespawn   bool // daemons that were killed are not started again
	Unfenced    bool // guards take over whatever the fence class says
	NoSlotCheck bool // a heartbeat is written over whatever is there
}

// unknownEffect is an effect that this simulator does not carry out: a fault
// of the simulator, never silent.
func (s *Sim) unknownEffect(h *host, e fdm.Effect) {
	s.check.violate("simulator", string(h.name), "%s ordered %T, which is not simulated", h.name, e)
}
