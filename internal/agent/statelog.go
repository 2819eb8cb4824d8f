package agent

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
)

// boundEvents sets how much of the events this host keeps.
func (a *Agent) boundEvents(c *config.Cluster) {
	size, files := eventBounds(c)
	if err := a.events.Bound(size, files); err != nil {
		a.log.Warn("old events are not removed", "err", err)
	}
}

func eventBounds(c *config.Cluster) (size int64, files int) {
	return int64(c.HA.Options.Int("das.config.log.maxFileSize")), c.HA.Options.Int("das.config.log.maxFileNum")
}

// stateLogInterval is the pause between two summaries; 0 is never.
func stateLogInterval(c *config.Cluster) time.Duration {
	return c.HA.Options.Duration("das.config.fdm.stateLogInterval")
}

// logState writes a summary of the cluster into the log now and then, on the
// primary, so that a log alone tells how things stood.
func (a *Agent) logState(ctx context.Context) {
	every(ctx, a.optionsChanged, func() time.Duration { return stateLogInterval(a.setup.Load().cluster) }, func() {
		var v fdm.ClusterView
		if a.ask(ctx, func(m core) { v = m.View(a.cfg.Ports.Now()) }) && v.Primary == a.host {
			a.log.Info("cluster state", summary(v)...)
		}
	})
}

// every calls f each interval until ctx ends; changed says that the interval may
// be another. While it is 0 nothing is called.
func every(ctx context.Context, changed <-chan struct{}, interval func() time.Duration, f func()) {
	last := time.Now()
	for {
		var due <-chan time.Time
		if d := interval(); d > 0 {
			due = time.After(time.Until(last.Add(d)))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-due:
			last = time.Now()
			f()
		}
	}
}

// summary is a view in a line: how many hosts and VMs are in each state, who
// owns the protected lists, and what is wrong.
func summary(v fdm.ClusterView) []any {
	hosts, vms := map[string]int{}, map[string]int{}
	unprotected := 0
	for _, h := range v.Hosts {
		hosts[string(h.State)]++
	}
	for _, x := range v.VMs {
		vms[string(x.State)]++
		if !x.Protected {
			unprotected++
		}
	}
	var lists []string
	for _, d := range v.Datastores {
		owner := string(d.Owner)
		if owner == "" {
			owner = "nobody"
		}
		lists = append(lists, fmt.Sprintf("%s=%s", d.Name, owner))
	}
	return []any{"version", v.Version, "hosts", countText(hosts), "vms", countText(vms), "unprotected", unprotected, "lists", strings.Join(lists, " ")}
}

func countText(n map[string]int) string {
	var out []string
	for k, x := range n {
		out = append(out, fmt.Sprintf("%s=%d", k, x))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}
