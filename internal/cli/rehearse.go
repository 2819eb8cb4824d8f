package cli

import (
	"context"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/cli/simcmd"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/sim"
)

// rehearse has the server play a rehearsal, when the command line is about one.
func (a *app) rehearse(ctx context.Context, ask simcmd.Ask, told func(simcmd.Answer)) (bool, error) {
	l, err := a.readLogin()
	if err != nil || l == nil {
		return false, err
	}
	c, err := dialServer(l)
	if err != nil {
		return true, err
	}
	cluster, err := c.clusterName(ctx)
	if err != nil {
		return true, err
	}
	s, err := c.ha.Rehearse(ctx, &hanokv1.RehearseRequest{Cluster: cluster, Hosts: ask.Hosts, Two: ask.Two, Seed: ask.Seed})
	if err != nil {
		return true, err
	}
	defer s.Close()
	for s.Receive() {
		told(answerOf(s.Msg()))
	}
	return true, s.Err()
}

func answerOf(m *hanokv1.RehearseResponse) simcmd.Answer {
	out := simcmd.Answer{Losses: int(m.Losses), Loss: int(m.Loss), Absent: hostsOf(m.Absent),
		Rehearsal: sim.Rehearsal{Failed: hostsOf(m.Failed), VMs: []sim.RehearsedVM{}, Seconds: m.Seconds, Down: int(m.Down), Warning: m.Warning}}
	for _, v := range m.Vms {
		out.VMs = append(out.VMs, sim.RehearsedVM{Name: v.Name, From: model.HostID(v.From), To: model.HostID(v.To), Seconds: v.Seconds, Reason: v.Reason})
	}
	return out
}

func hostsOf(list []string) []model.HostID {
	var out []model.HostID
	for _, h := range list {
		out = append(out, model.HostID(h))
	}
	return out
}
