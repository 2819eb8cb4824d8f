package fdm

import (
	"fmt"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// startLimit is for how many times Config.Gather after it became primary a
// primary without predecessor counts VMs that nobody runs as victims of the
// loss of all power.
const startLimit = 3

// clusterStart is the failover that restarts after a start of the whole
// cluster belong to; "" when this is none. The first call tells people.
func (m *Machine) clusterStart() string {
	if !m.cold || m.now > m.since+startLimit*m.cfg.Gather {
		return ""
	}
	if m.coldID == "" {
		m.failSeq++
		m.coldID = fmt.Sprintf("cs-%s-%d-%d", m.cfg.Self, m.cfg.Start, m.failSeq)
		m.emit(event.Event{At: m.since, Kind: event.ClusterStart, Host: m.cfg.Self, Failover: m.coldID,
			Text: fmt.Sprintf("%s is the first primary after a start of the whole cluster", m.cfg.Self)})
	}
	if m.failovers[m.coldID] == nil {
		m.failovers[m.coldID] = &failover{id: m.coldID, at: m.since, open: map[model.VMID]bool{}}
	}
	return m.coldID
}

// newFailover is the failover for a VM that goes down, given the one of its
// failed host, if any.
func (m *Machine) newFailover(v *vm, ofHost string) string {
	if ofHost != "" || v.seen || len(v.askers) > 0 {
		return ofHost
	}
	return m.clusterStart()
}
