package wire

import (
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
)

// Members returns what SetPeers and Config.Listen need from a cluster file: the
// other hosts, and self's own addresses, on the heartbeat networks in the order
// of the file.
func Members(c *config.Cluster, self model.HostID) (peers map[model.HostID]Peer, own []Address) {
	peers = make(map[model.HostID]Peer, len(c.Hosts))
	networks := c.HeartbeatNetworks()
	for i := range c.Hosts {
		h := &c.Hosts[i]
		var addrs []Address
		for _, n := range networks {
			if a := h.AddressOf(n); a.IsValid() {
				addrs = append(addrs, Address{Network: n, Addr: a})
			}
		}
		if h.Name == self {
			own = addrs
		} else {
			peers[h.Name] = Peer{Addresses: addrs}
		}
	}
	return peers, own
}
