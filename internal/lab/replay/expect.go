package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// lookPeriod is the pause between two looks at what the agents say; what runs
// where is the observer's, who misses nothing.
const lookPeriod = 250 * time.Millisecond

// expect judges one expectation until it holds or its time is over.
func (r *run) expect(ctx context.Context, step scenario.Step, e scenario.Expect) {
	deadline := r.begin.Add(step.At + e.Within)
	var why error
	for {
		var s lab.Status
		s, why = r.client.Status(ctx, false)
		if why == nil {
			why = judge(s, e, r.scenario)
		}
		if why == nil && e.Condition == scenario.Told {
			why = r.told(ctx, e.Because)
		}
		if why == nil || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(min(lookPeriod, max(time.Until(deadline), time.Millisecond))):
		case <-ctx.Done():
		}
	}
	out := scenario.ExpectationResult{Line: step.Line, OK: why == nil, Detail: step.Text}
	if why != nil {
		out.Detail += ": " + why.Error()
	}
	r.say("%s: %s", map[bool]string{true: "ok", false: "FAILED"}[out.OK], out.Detail)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Expectations = append(r.result.Expectations, out)
}

// judge returns nil if the expectation holds now, else what is different.
func judge(s lab.Status, e scenario.Expect, sc *scenario.Scenario) error {
	switch e.Condition {
	case scenario.Told:
		return nil
	case scenario.Primary:
		for _, h := range s.Hosts {
			if is := h.Role == model.RolePrimary; is != (h.Name == string(e.Host)) {
				return fmt.Errorf("%s is %s", h.Name, h.Role)
			}
		}
		return nil
	case scenario.PowerIs:
		for _, h := range s.Hosts {
			if h.Name == string(e.Host) && h.Power != string(e.State) {
				return fmt.Errorf("%s is %s", h.Name, h.Power)
			}
		}
		return nil
	case scenario.HostState:
		for _, h := range s.Hosts {
			if h.Name != string(e.Host) {
				continue
			}
			if h.Seen != e.State {
				return fmt.Errorf("%s is %q for the primary: %s", h.Name, h.Seen, h.SeenReason)
			}
			if !strings.Contains(h.SeenReason, e.Because) {
				return fmt.Errorf("%s: the reason is %q", h.Name, h.SeenReason)
			}
		}
		return nil
	}
	for i := range s.VMs {
		v := &s.VMs[i]
		if e.All && !toRun(sc, v.Name) || !e.All && v.Name != e.VM {
			continue
		}
		if err := judgeVM(v, e); err != nil {
			return err
		}
	}
	return nil
}

func toRun(sc *scenario.Scenario, vm string) bool {
	v := sc.Cluster.VMByName(vm)
	return v != nil && v.Requested == model.RequestedStarted
}

func judgeVM(v *lab.VMStatus, e scenario.Expect) error {
	runs := func(want string) error {
		if len(v.Instances) != 1 || v.Instances[0].Frozen || v.Instances[0].Paused || want != "" && v.Instances[0].Host != want {
			return fmt.Errorf("%s has instances %s", v.Name, describe(v.Instances))
		}
		return nil
	}
	var err error
	switch e.Condition {
	case scenario.OnHost:
		err = runs(string(e.Host))
	case scenario.NotOn:
		if err = runs(""); err == nil && v.Instances[0].Host == string(e.Host) {
			err = fmt.Errorf("%s is still on %s", v.Name, e.Host)
		}
	case scenario.Running:
		err = runs("")
	case scenario.Down:
		if len(v.Instances) > 0 {
			err = fmt.Errorf("%s has instances %s", v.Name, describe(v.Instances))
		}
	case scenario.Frozen:
		if len(v.Instances) != 1 || !v.Instances[0].Frozen && !outstanding(v) {
			err = fmt.Errorf("%s has instances %s", v.Name, describe(v.Instances))
		}
	case scenario.Unprotected:
		if v.Protected {
			err = fmt.Errorf("%s is protected", v.Name)
		}
	case scenario.Protected:
		if !v.Protected {
			err = fmt.Errorf("%s is not protected: %s", v.Name, v.Reason)
		}
	}
	if err == nil && e.Because != "" && !strings.Contains(v.Reason, e.Because) {
		err = fmt.Errorf("%s: the reason is %q", v.Name, v.Reason)
	}
	return err
}

// outstanding: the cluster calls the VM frozen and it uses no processor; I/O
// that hangs keeps the kernel from confirming the freeze.
func outstanding(v *lab.VMStatus) bool {
	return v.State == model.VMFrozen && drill.Stands(v.Instances[0].Pid) == nil
}

// told looks for an event since the scenario began in what all agents keep.
func (r *run) told(ctx context.Context, text string) error {
	s, err := r.client.State(ctx)
	if err != nil {
		return err
	}
	for _, h := range s.Hosts {
		if h.Power != "on" || h.Frozen {
			continue
		}
		out, err := r.client.Exec(ctx, h.Name, "hanok", "events", "-o", "json", "-n", "300")
		if err != nil {
			continue // an agent that does not answer has told others
		}
		for lines := json.NewDecoder(bytes.NewReader(out)); ; {
			var e event.Event
			if lines.Decode(&e) != nil {
				break
			}
			if !e.Wall.Before(r.begin) && strings.Contains(e.Text, text) {
				return nil
			}
		}
	}
	return errors.New("no such event was told")
}

func describe(list []observer.Instance) string {
	if len(list) == 0 {
		return "nowhere"
	}
	var out []string
	for _, i := range list {
		text := i.Host
		if i.Frozen {
			text += " frozen"
		}
		if i.Paused {
			text += " paused"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
