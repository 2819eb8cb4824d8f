package replay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// run is the state of one run on a stage. mu guards result and lost.
type run struct {
	*Stage
	scenario *scenario.Scenario
	cluster  *config.Cluster // the file in force
	before   map[string]bool // breaches of earlier runs on the same lab
	begin    time.Time
	later    sync.WaitGroup // expectations and ends of timed faults

	mu     sync.Mutex
	result scenario.Result
	lost   map[string]loss // by VM name: what took its instance away
}

// loss is an instance that a step of the script took away.
type loss struct {
	fault string
	at    time.Duration
	from  model.HostID
}

func (r *run) say(format string, args ...any) {
	r.tell(fmt.Sprintf("%6.1fs  %s", r.now().Seconds(), fmt.Sprintf(format, args...)))
}

// now is the scenario's time.
func (r *run) now() time.Duration { return time.Since(r.begin) }

// play does the steps at their times and collects the result.
func (r *run) play(ctx context.Context) (scenario.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, watched := make(chan struct{}), make(chan error, 1)
	go func() {
		watched <- r.client.Observe(ctx, func(e journal.Event) bool {
			if e.Kind == "" {
				close(ready)
			}
			r.seen(e)
			return true
		})
	}()
	select {
	case <-ready:
	case err := <-watched:
		return scenario.Result{}, err
	}
	r.mu.Lock()
	r.begin = time.Now()
	r.mu.Unlock()
	for _, step := range r.scenario.Steps {
		select {
		case <-time.After(step.At - r.now()):
		case <-ctx.Done():
			return scenario.Result{}, context.Cause(ctx)
		}
		if e, ok := step.Action.(scenario.Expect); ok {
			r.later.Go(func() { r.expect(ctx, step, e) })
			continue
		}
		r.say("%s", step.Text)
		r.remember(ctx, step)
		if err := r.do(ctx, step.Action); err != nil {
			return scenario.Result{}, fmt.Errorf("line %d: %s: %w", step.Line, step.Text, err)
		}
	}
	r.later.Wait()
	if err := r.finish(ctx); err != nil {
		return scenario.Result{}, err
	}
	cancel()
	<-watched
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Finish()
	return r.result, nil
}

// remember notes which VMs a step is about to take away.
func (r *run) remember(ctx context.Context, step scenario.Step) {
	host, vm := scenario.Victims(step.Action)
	if host == "" && vm == "" {
		return
	}
	s, err := r.client.State(ctx)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range s.Instances {
		if i.Host == string(host) || i.Name == vm {
			r.lost[i.Name] = loss{step.Text, r.now(), model.HostID(i.Host)}
		}
	}
}

// seen counts a recovery when a lost VM runs again, and dates violations.
func (r *run) seen(e journal.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := e.Time.Sub(r.begin)
	switch e.Kind {
	case journal.Running:
		if l, ok := r.lost[e.Name]; ok && at > l.at {
			delete(r.lost, e.Name)
			r.result.Recoveries = append(r.result.Recoveries, scenario.Recovery{VM: e.Name, Fault: l.fault,
				FaultAt: l.at.Seconds(), From: l.from, To: model.HostID(e.Host), Seconds: (at - l.at).Seconds()})
		}
	case journal.Violation:
		r.result.Violations = append(r.result.Violations, scenario.Violation{At: at.Seconds(), Invariant: lab.InvariantOnce, Detail: e.Detail})
	}
}

// finish adds the state at the end, and what the disks say.
func (r *run) finish(ctx context.Context) error {
	s, err := r.client.Status(ctx, true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.VirtualSeconds = r.now().Seconds()
	for _, h := range s.Hosts {
		out := scenario.HostResult{Name: model.HostID(h.Name), Power: h.Power, Role: h.Role, State: h.State}
		if h.Seen != "" {
			out.State = h.Seen
		}
		r.result.Hosts = append(r.result.Hosts, out)
	}
	for _, v := range s.VMs {
		out := scenario.VMResult{Name: v.Name, State: v.State, Host: model.HostID(v.Host), Protected: v.Protected, Reason: v.Reason}
		for _, on := range v.RunningOn {
			out.RunningOn = append(out.RunningOn, model.HostID(on))
		}
		r.result.VMs = append(r.result.VMs, out)
	}
	for _, v := range s.Violations {
		if v.Invariant != lab.InvariantOnce && !r.before[v.Detail] { // those were dated when they happened
			r.result.Violations = append(r.result.Violations, scenario.Violation{At: r.now().Seconds(), Invariant: v.Invariant, Detail: v.Detail})
		}
	}
	return nil
}
