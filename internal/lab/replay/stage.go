package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// Limits of what precedes a scenario.
const (
	healLimit   = time.Minute     // until an agent answers everywhere
	settleLimit = 3 * time.Minute // until every VM is protected and its guest answers
	askAgain    = 10 * time.Second
	leadTries   = 3 // elections until the host of the highest rank leads
)

// Stage is a lab on which scenarios are played one after another.
type Stage struct {
	client *lab.Client
	name   string
	shape  []byte // the cluster that it was brought up for
	tell   func(string)
	// undo ends what a scenario left on datastores; last first.
	undo []func() error
}

// Open brings a lab up for scenarios with the hosts, networks, datastores and
// VMs of s. The lab is left for inspection when that fails half-way.
func Open(ctx context.Context, s *scenario.Scenario, o lab.Options) (*Stage, error) {
	if err := Check(s); err != nil {
		return nil, err
	}
	var err error
	if o.Cluster, err = s.Cluster.Marshal(); err != nil {
		return nil, err
	}
	st := &Stage{name: o.Name, tell: o.Progress}
	if st.tell == nil {
		st.tell = func(string) {}
	}
	if st.shape, err = shape(s.Cluster); err != nil {
		return nil, err
	}
	st.client, err = lab.Up(ctx, o)
	return st, err
}

// Close removes the lab.
func (st *Stage) Close(ctx context.Context) error {
	if st.client == nil { // there is nothing, or somebody else's lab
		return nil
	}
	return lab.Down(ctx, st.client.Layout().Name(), st.tell)
}

// shape is what `hanok cluster apply` cannot change on a lab: all of the file
// but policies, rules and names.
func shape(c *config.Cluster) ([]byte, error) {
	data, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	plain, err := config.Parse(data)
	if err != nil {
		return nil, err
	}
	plain.Version, plain.ID, plain.Name = 1, "00000000-0000-0000-0000-000000000001", "shape"
	plain.HA, plain.Rules = config.HA{}, nil
	return plain.Marshal()
}

// Fits tells whether a scenario can be played on this stage.
func (st *Stage) Fits(s *scenario.Scenario) bool {
	other, err := shape(s.Cluster)
	return err == nil && bytes.Equal(st.shape, other)
}

// Play brings the lab to where the scenario begins - no faults, its cluster file
// in force, every VM protected on the host that the file names, the host of the
// highest rank primary - and runs it. The error says why there is no result; a
// failed expectation is a result.
func (st *Stage) Play(ctx context.Context, s *scenario.Scenario) (scenario.Result, error) {
	if err := Check(s); err != nil {
		return scenario.Result{}, err
	}
	if !st.Fits(s) {
		return scenario.Result{}, errors.New("the lab was brought up for other hosts, networks, datastores or VMs")
	}
	r := &run{Stage: st, scenario: s, begin: time.Now(), lost: map[string]loss{}, before: map[string]bool{}}
	if err := r.prepare(ctx); err != nil {
		return scenario.Result{}, fmt.Errorf("before the scenario began: %w", err)
	}
	status, err := st.client.Status(ctx, true)
	if err != nil {
		return scenario.Result{}, err
	}
	for _, v := range status.Violations {
		r.before[v.Detail] = true
	}
	return r.play(ctx)
}

// prepare brings the lab to where the scenario begins.
func (r *run) prepare(ctx context.Context) error {
	if err := r.healAll(ctx); err != nil {
		return err
	}
	if err := r.adopt(ctx); err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	if err := r.placeAll(ctx); err != nil {
		return err
	}
	return r.lead(ctx)
}

func (r *run) drill() drill.Drill { return drill.Drill{Client: r.client} }

// healAll ends every fault.
func (r *run) healAll(ctx context.Context) error {
	for _, undo := range slices.Backward(r.undo) {
		if err := undo(); err != nil {
			return err
		}
	}
	r.undo = nil
	s, err := r.client.State(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range s.Hosts {
		errs = append(errs, r.client.Heal(ctx, h.Name))
		if h.Power != "on" {
			errs = append(errs, r.client.PowerOn(ctx, h.Name, false))
			continue
		}
		if h.Frozen {
			errs = append(errs, r.client.Thaw(ctx, h.Name))
		}
		for _, daemon := range []string{"guard", "agent", "libvirtd"} {
			// One that does not run needs nothing.
			_ = r.signal(ctx, scenario.Process{Op: scenario.Cont, Name: daemon, Host: model.HostID(h.Name)})
		}
	}
	return errors.Join(errs...)
}

// adopt brings the scenario's cluster file into force, with the identity of the
// cluster that is there.
func (r *run) adopt(ctx context.Context) error {
	data, err := r.scenario.Cluster.Marshal()
	if err != nil {
		return err
	}
	next, err := config.Parse(data)
	if err != nil {
		return err
	}
	return drill.Until(ctx, healLimit, "the scenario's cluster file is in force", func() error {
		now, err := r.inForce(ctx)
		if err != nil {
			return err
		}
		next.Version, next.ID, next.Name = now.Version+1, now.ID, now.Name
		if err := lab.Complete(next); err != nil {
			return err
		}
		r.cluster = next
		return r.apply(ctx, next, true)
	})
}

// inForce is the newest cluster file that an agent has.
func (r *run) inForce(ctx context.Context) (*config.Cluster, error) {
	s, err := r.client.State(ctx)
	if err != nil {
		return nil, err
	}
	var newest *config.Cluster
	for _, h := range s.Hosts {
		data, err := r.client.Exec(ctx, h.Name, "hanok", "cluster", "show")
		if err != nil {
			return nil, err
		}
		c, err := config.Parse(data)
		if err != nil {
			return nil, err
		}
		if newest == nil || c.Version > newest.Version {
			newest = c
		}
	}
	return newest, nil
}

// settle starts what is to run and does not, and waits until all is protected.
func (r *run) settle(ctx context.Context) error {
	asked := map[string]time.Time{}
	return drill.Until(ctx, settleLimit, "the cluster settles", func() error {
		s, err := r.client.State(ctx)
		if err != nil {
			return err
		}
		for _, v := range r.cluster.VMs {
			if v.Requested != model.RequestedStarted || len(drill.Instances(s, v.Name)) > 0 || time.Since(asked[v.Name]) < askAgain {
				continue
			}
			asked[v.Name] = time.Now()
			// It may be starting already; what counts is that it runs.
			_ = r.anywhere(ctx, nil, "hanok", "vm", "start", "--wait", "0s", v.Name)
		}
		return r.drill().Settled(ctx)
	})
}

// placeAll moves every VM to the host on which it begins.
func (r *run) placeAll(ctx context.Context) error {
	s, err := r.client.State(ctx)
	if err != nil {
		return err
	}
	moved := false
	for _, v := range r.cluster.VMs {
		on := drill.Instances(s, v.Name)
		if v.Requested != model.RequestedStarted || len(on) == 1 && on[0].Host == string(v.Host) {
			continue
		}
		r.tell(fmt.Sprintf("%s moves to %s, where the scenario begins", v.Name, v.Host))
		moved = true
		file := fmt.Sprintf("%s/%s/%s.xml", r.cluster.DatastoreByName(v.Datastore).Path, v.Name, v.Name)
		if err := r.anywhere(ctx, nil, "hanok", "vm", "kill", v.Name); err != nil {
			return err
		}
		for _, argv := range [][]string{{"define", file}, {"start", v.Name}} {
			if _, err := r.client.Exec(ctx, string(v.Host), append([]string{"virsh", "-q"}, argv...)...); err != nil {
				return err
			}
		}
	}
	if !moved {
		return nil
	}
	return r.settle(ctx)
}

// lead has the hosts elect anew until the one of the highest rank leads, as
// after a start of the whole cluster.
func (r *run) lead(ctx context.Context) error {
	first := slices.MaxFunc(r.cluster.Hosts, func(a, b config.Host) int {
		if d := len(a.Datastores) - len(b.Datastores); d != 0 {
			return d
		}
		return strings.Compare(string(a.Name), string(b.Name))
	})
	var leads string
	for range leadTries {
		var err error
		if leads, err = r.drill().Primary(ctx); err != nil {
			return err
		}
		if leads == string(first.Name) {
			return nil
		}
		for _, h := range r.cluster.Hosts {
			if err := r.signal(ctx, scenario.Process{Op: scenario.Kill, Name: "agent", Host: h.Name}); err != nil {
				return err
			}
		}
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s leads and not %s, which has the highest rank", leads, first.Name)
}

// apply brings a cluster file into force.
func (r *run) apply(ctx context.Context, c *config.Cluster, force bool) error {
	data, err := c.Marshal()
	if err != nil {
		return err
	}
	const file = layout.HostRun + "/next.yaml"
	flag := ""
	if force {
		flag = "--force "
	}
	return r.anywhere(ctx, data, "sh", "-c", "cat >"+file+" && hanok cluster apply --yes "+flag+"-f "+file)
}
