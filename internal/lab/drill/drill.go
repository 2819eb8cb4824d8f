package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// poll is the pause between two looks at a condition. It bounds how exactly a
// condition is timed, not what is measured: benchmarks take their figures from
// timelines and the observer.
const poll = 200 * time.Millisecond

// askTimeout bounds a question to one host.
const askTimeout = 4 * time.Second

// Drill works on one lab that is up.
type Drill struct {
	*lab.Client
}

// Status asks the agents and returns the primary's account, or the first that
// answers when none is primary.
func (d Drill) Status(ctx context.Context) (local.Status, error) {
	s, err := d.State(ctx)
	if err != nil {
		return local.Status{}, err
	}
	var found *local.Status
	var problems []error
	for _, h := range s.Hosts {
		if h.Power != "on" || h.Frozen {
			continue
		}
		st, err := d.StatusOf(ctx, h.Name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if st.Role == model.RolePrimary {
			return st, nil
		}
		if found == nil {
			found = &st
		}
	}
	if found != nil {
		return *found, nil
	}
	return local.Status{}, fmt.Errorf("no agent answers: %w", errors.Join(problems...))
}

// StatusOf asks one host's agent.
func (d Drill) StatusOf(ctx context.Context, host string) (local.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var st local.Status
	out, err := d.Exec(ctx, host, "hanok", "status", "-o", "json")
	if len(out) > 0 {
		// A status with problems is still a status.
		if jerr := json.Unmarshal(out, &st); jerr == nil {
			return st, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%s: hanok status printed no JSON", host)
	}
	return st, err
}

// Primary is the host that says it is primary and that all others follow.
func (d Drill) Primary(ctx context.Context) (string, error) {
	st, err := d.Status(ctx)
	if err != nil {
		return "", err
	}
	if st.Role != model.RolePrimary {
		return "", errors.New("no host is primary")
	}
	return string(st.Host), nil
}

// Settled returns nil when every host is on, armed if it has a watchdog, and
// connected to one primary, and every VM runs once, unfrozen, protected, with a
// guest that answers.
func (d Drill) Settled(ctx context.Context) error {
	s, err := d.State(ctx)
	if err != nil {
		return err
	}
	watched := map[string]bool{}
	for _, h := range s.Hosts {
		if h.Power != "on" || h.Frozen {
			return fmt.Errorf("%s is not on", h.Name)
		}
		watched[h.Name] = h.Watchdog != "none"
	}
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	if st.Role != model.RolePrimary {
		return errors.New("no host is primary")
	}
	for _, h := range st.Hosts {
		if h.State != model.HostConnected && h.State != model.HostPrimary {
			return fmt.Errorf("%s is %s: %s", h.Name, h.State, h.Reason)
		}
		if !h.Guard || !h.Hypervisor || !h.Hook || !h.Armed && watched[string(h.Name)] {
			return fmt.Errorf("%s: guard %v, hypervisor %v, hook %v, armed %v", h.Name, h.Guard, h.Hypervisor, h.Hook, h.Armed)
		}
	}
	for _, v := range s.VMs {
		if err := Once(s, v.Name); err != nil {
			return err
		}
		seen := st.VMByName(v.Name)
		if seen == nil || seen.State != model.VMStarted || !seen.Protected || !seen.Alive {
			return fmt.Errorf("%s is not settled: %s", v.Name, Describe(seen))
		}
	}
	return nil
}

// Describe says in one line what the cluster says of a VM; nil means unknown.
func Describe(v *local.VM) string {
	if v == nil {
		return "the cluster does not know it"
	}
	return fmt.Sprintf("state %s on %q, protected %v, alive %v, reason %q", v.State, v.Host, v.Protected, v.Alive, v.Reason)
}

// Instances are the instances of a VM by the processes of all hosts.
func Instances(s supervisor.State, vm string) []observer.Instance {
	var id string
	for _, v := range s.VMs {
		if v.Name == vm {
			id = v.ID
		}
	}
	var out []observer.Instance
	for _, i := range s.Instances {
		if i.VM == id {
			out = append(out, i)
		}
	}
	return out
}

// Once returns nil when a VM has exactly one instance, and that may run.
func Once(s supervisor.State, vm string) error {
	all := Instances(s, vm)
	if len(all) != 1 || all[0].Frozen || all[0].Paused {
		return fmt.Errorf("%s has %d instances %+v, want one that runs", vm, len(all), all)
	}
	return nil
}

// On lists the VMs that have an instance on a host, by name.
func On(s supervisor.State, host string) []string {
	var out []string
	for _, v := range s.VMs {
		for _, i := range Instances(s, v.Name) {
			if i.Host == host {
				out = append(out, v.Name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Until waits until check returns nil; its last error is in the error.
func Until(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s: %w", limit, what, err)
		}
	}
}

// Settle waits until the cluster is Settled.
func (d Drill) Settle(ctx context.Context, limit time.Duration) error {
	return Until(ctx, limit, "the cluster settles", func() error { return d.Settled(ctx) })
}

// Violations returns every breach that the observer saw or a disk shows.
func (d Drill) Violations(ctx context.Context) ([]lab.Violation, error) {
	st, err := d.Client.Status(ctx, true)
	return st.Violations, err
}

// LastTimeline returns the newest failover by the primary's events.
func (d Drill) LastTimeline(ctx context.Context) (event.Timeline, error) {
	return d.timeline(ctx, "last")
}

// Timeline returns the newest failover in which host failed, or an error if
// there is none yet.
func (d Drill) Timeline(ctx context.Context, host string) (event.Timeline, error) {
	var list []event.Summary
	if err := d.events(ctx, "list", &list); err != nil {
		return event.Timeline{}, err
	}
	for _, s := range slices.Backward(list) {
		if string(s.Host) == host {
			return d.timeline(ctx, s.Failover)
		}
	}
	return event.Timeline{}, fmt.Errorf("no failover of %s among %d", host, len(list))
}

func (d Drill) timeline(ctx context.Context, failover string) (event.Timeline, error) {
	var t event.Timeline
	err := d.events(ctx, failover, &t)
	return t, err
}

func (d Drill) events(ctx context.Context, failover string, into any) error {
	on, err := d.Primary(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	out, err := d.Exec(ctx, on, "hanok", "events", "--failover", failover, "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("events of failover %s: %w", failover, err)
	}
	return nil
}

// Daemons are a host's daemons and the patterns that find their processes.
var Daemons = map[string]string{
	"agent":    "hanok agent",
	"guard":    "hanok-guard run",
	"libvirtd": "libvirtd",
}

// Signal sends a signal, such as KILL, to a daemon of a host.
func (d Drill) Signal(ctx context.Context, host, daemon, signal string) error {
	pattern, ok := Daemons[daemon]
	if !ok {
		return fmt.Errorf("unknown daemon %q: agent, guard or libvirtd", daemon)
	}
	_, err := d.Exec(ctx, host, "pkill", "-"+strings.ToUpper(signal), "-o", "-f", pattern)
	return err
}
