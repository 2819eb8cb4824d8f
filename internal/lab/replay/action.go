package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// ErrLacks is returned for scenarios with something that only the simulator has.
var ErrLacks = errors.New("the lab cannot run this scenario; `hanok sim run` can")

// Check refuses steps that only the simulator can do, before anything starts,
// and files that say so themselves: their file "lab" gives the reason.
func Check(s *scenario.Scenario) error {
	var errs []error
	for _, step := range s.Steps {
		if why := lacks(step.Action); why != "" {
			errs = append(errs, fmt.Errorf("line %d: %s: the lab has no %s", step.Line, step.Text, why))
		}
	}
	if why, marked := s.Files[scenario.LabFile]; marked {
		errs = append(errs, fmt.Errorf("the file says: %s", strings.TrimSpace(string(why))))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrLacks, errors.Join(errs...))
}

// lacks says what the lab has not that a step needs, or "".
func lacks(a scenario.Action) string {
	switch a := a.(type) {
	case scenario.VM:
		switch a.Op {
		case scenario.VMHang, scenario.VMMigrate, scenario.VMFailStart, scenario.VMByHand:
			return fmt.Sprintf("`vm %s`", a.Op)
		}
	case scenario.StorageFault:
		if a.Fault == scenario.FaultFlaky || a.Fault == scenario.FaultCached || a.Fault == scenario.FaultUnanswered || a.Fault == scenario.FaultStale {
			return fmt.Sprintf("storage path that is %s", a.Fault)
		}
	case scenario.Power:
		if a.Op == scenario.Suspend {
			return "host that sleeps by itself: one machine, one clock"
		}
	case scenario.Stall, scenario.Slow:
		return "way to stop a daemon between two steps"
	case scenario.Clock:
		return "clock for each host: one machine, one clock"
	case scenario.Network:
		return "network that loses, doubles or delays packets"
	}
	return ""
}

// do carries out one step.
func (r *run) do(ctx context.Context, a scenario.Action) error {
	switch a := a.(type) {
	case scenario.Power:
		return r.power(ctx, a)
	case scenario.Cut:
		return r.client.Cut(ctx, string(a.Host), a.Network, string(a.Direction))
	case scenario.Heal:
		return r.client.Heal(ctx, string(a.Host))
	case scenario.StorageFault:
		return r.client.Storage(ctx, string(a.Host), string(a.Datastore), string(a.Fault))
	case scenario.Partition:
		return r.client.Partition(ctx, groupNames(a.Groups))
	case scenario.Process:
		return r.signal(ctx, a)
	case scenario.VM:
		return r.vm(ctx, a)
	case scenario.Configure:
		return r.configure(ctx, a.Field, a.Value, a.Force)
	case scenario.Datastore:
		return r.datastore(ctx, a)
	case scenario.Leave:
		return r.leave(ctx, a)
	case scenario.Maintenance:
		return r.configure(ctx, fmt.Sprintf("hosts[%s].maintenance", a.Host), strconv.FormatBool(a.On), a.Force)
	}
	return fmt.Errorf("the lab does not know how to do %T", a)
}

func groupNames(groups [][]model.HostID) [][]string {
	var out [][]string
	for _, g := range groups {
		var names []string
		for _, h := range g {
			names = append(names, string(h))
		}
		out = append(out, names)
	}
	return out
}

func (r *run) power(ctx context.Context, p scenario.Power) error {
	if err := r.client.Power(ctx, string(p.Host), string(p.Op)); err != nil {
		return err
	}
	if p.For == 0 {
		return nil
	}
	r.later.Go(func() {
		select {
		case <-time.After(p.For):
			r.say("thaw %s", p.Host)
			// A watchdog may have reset it meanwhile: then there is nothing to thaw.
			_ = r.client.Thaw(ctx, string(p.Host))
		case <-ctx.Done():
		}
	})
	return nil
}

// signal uses the process number that the host's init wrote down.
func (r *run) signal(ctx context.Context, p scenario.Process) error {
	name := map[scenario.ProcessOp]string{scenario.Kill: "KILL", scenario.Stop: "STOP", scenario.Cont: "CONT"}[p.Op]
	_, err := r.client.Exec(ctx, string(p.Host), "sh", "-c", fmt.Sprintf("kill -%s $(cat %s/%s.pid)", name, layout.HostRun, p.Name))
	return err
}

func (r *run) vm(ctx context.Context, v scenario.VM) error {
	switch v.Op {
	case scenario.VMCrash:
		s, err := r.client.State(ctx)
		if err != nil {
			return err
		}
		for _, i := range s.Instances {
			if i.Name == v.VM {
				if err := unix.Kill(i.Pid, unix.SIGKILL); err != nil {
					return err
				}
			}
		}
		return nil
	case scenario.VMShutdown:
		s, err := r.client.State(ctx)
		if err != nil {
			return err
		}
		for _, i := range s.Instances {
			if i.Name == v.VM {
				if _, err := r.client.Exec(ctx, i.Host, "virsh", "-q", "shutdown", v.VM); err != nil {
					return err
				}
			}
		}
		return nil
	case scenario.VMDelete, scenario.VMRestore:
		return r.disk(v.VM, v.Op == scenario.VMDelete)
	case scenario.VMSet:
		return r.configure(ctx, fmt.Sprintf("vms[%s].%s", v.VM, v.Field), v.Value, v.Force)
	}
	argv := []string{"hanok", "vm", string(v.Op), "--wait", "0s", v.VM}
	if v.Force {
		argv = append(argv, "--force")
	}
	return r.unlessRefused(r.anywhere(ctx, nil, argv...))
}

// refused is hanok's exit status for a request that the cluster refuses.
const refused = 4

// unlessRefused drops a refusal, which the script may be about, as in the
// simulator.
func (r *run) unlessRefused(err error) error {
	if wasRefused(err) {
		r.say("refused: %v", err)
		return nil
	}
	return err
}

func wasRefused(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == refused
}

// configure changes the cluster file through the cluster itself.
func (r *run) configure(ctx context.Context, field, value string, force bool) error {
	next, err := r.cluster.With(field, value)
	if err != nil {
		return err
	}
	err = r.apply(ctx, next, force)
	if err == nil {
		r.cluster = next
	}
	return r.unlessRefused(err)
}

// leave has a host stop its VMs as before its shutdown, or calls that off. The
// script goes on meanwhile.
func (r *run) leave(ctx context.Context, l scenario.Leave) error {
	if l.Cancel {
		_, err := r.client.Exec(ctx, string(l.Host), "hanok", "host", "resume")
		return err
	}
	argv := []string{"hanok", "host", "stop-vms"}
	if l.Force {
		argv = append(argv, "--force")
	}
	cmd, release, err := r.client.Command(ctx, string(l.Host), argv...)
	if err != nil {
		return err
	}
	err = cmd.Start()
	release()
	if err != nil {
		return err
	}
	r.later.Go(func() {
		if err := cmd.Wait(); err != nil && ctx.Err() == nil {
			r.say("host stop-vms on %s: %v", l.Host, err)
		}
	})
	return nil
}

// anywhere runs a command on the first host that carries it out.
func (r *run) anywhere(ctx context.Context, stdin []byte, argv ...string) error {
	s, err := r.client.State(ctx)
	if err != nil {
		return err
	}
	errs := []error{errors.New("no host is on")}
	for _, h := range s.Hosts {
		if h.Power != "on" || h.Frozen {
			continue
		}
		cmd, release, err := r.client.Command(ctx, h.Name, argv...)
		if err != nil {
			return err
		}
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		release()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w: %s", h.Name, err, strings.TrimSpace(string(out))))
	}
	return errors.Join(errs...)
}
