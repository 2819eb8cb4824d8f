package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
)

// vmTimeout is how long one VM may take from its start to the first answer of
// its guest agent; emulation shares the machine's processors.
const vmTimeout = 180 * time.Second

// startVMs defines all VMs, starts each on its host, if it is to run, and
// protects them, a few at a time.
func (u *up) startVMs(ctx context.Context) error {
	slots := make(chan struct{}, startAtOnce)
	errs := make([]error, len(u.cluster.VMs))
	var wg sync.WaitGroup
	for i := range u.cluster.VMs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = u.startVM(ctx, &u.cluster.VMs[i])
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (u *up) startVM(ctx context.Context, v *config.VM) error {
	ctx, cancel := context.WithTimeout(ctx, vmTimeout)
	defer cancel()
	home := u.cluster.DatastoreByName(v.Datastore).Path
	steps := [][]string{{"virsh", "-q", "define", filepath.Join(home, v.Name, v.Name+".xml")}}
	// Started before it is protected: afterwards the cluster chooses the host.
	runs := v.Requested != model.RequestedStopped && v.Requested != model.RequestedDisabled
	if runs || u.Bare {
		steps = append(steps, []string{"virsh", "-q", "start", v.Name})
	}
	if !u.Bare {
		steps = append(steps, []string{"hanok", "vm", "protect", v.Name})
	}
	for _, argv := range steps {
		if _, err := u.client.Exec(ctx, string(v.Host), argv...); err != nil {
			return fmt.Errorf("VM %s: %w", v.Name, err)
		}
	}
	if u.Bare {
		if err := u.client.WaitGuest(ctx, string(v.Host), v.Name); err != nil {
			return fmt.Errorf("VM %s: its guest agent does not answer: %w", v.Name, err)
		}
		u.say("VM %s runs on %s", v.Name, v.Host)
		return nil
	}
	if !runs {
		u.say("VM %s is registered; it is not to run", v.Name)
		return nil
	}
	on, err := u.client.waitProtected(ctx, string(v.Host), v.Name)
	if err != nil {
		return fmt.Errorf("VM %s: %w", v.Name, err)
	}
	u.say("VM %s runs on %s, protected", v.Name, on)
	return nil
}

// WaitGuest returns when the agent of a VM's guest answers on the host.
func (c *Client) WaitGuest(ctx context.Context, host, vm string) error {
	return c.retry(ctx, host, "virsh", "-q", "qemu-agent-command", "--timeout", "5", vm, `{"execute":"guest-ping"}`)
}

// agent asks a host's agent for its view of the cluster. A status that shows
// problems comes with an exit status, and is a status all the same.
func (c *Client) agent(ctx context.Context, host string) (local.Status, error) {
	var s local.Status
	out, err := c.Exec(ctx, host, "hanok", "status", "-o", "json")
	if jsonErr := json.Unmarshal(out, &s); jsonErr != nil {
		return s, errors.Join(err, fmt.Errorf("%s: hanok status -o json: %w", host, jsonErr))
	}
	return s, nil
}

// waitProtected waits until the host's agent says that the VM is protected and
// its guest alive, and returns where it runs: the cluster may have placed it
// elsewhere.
func (c *Client) waitProtected(ctx context.Context, host, vm string) (string, error) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	why := "no agent has answered"
	for {
		s, err := c.agent(ctx, host)
		switch v := s.VMByName(vm); {
		case ctx.Err() != nil: // keep the last reason
		case err != nil:
			why = err.Error()
		case v == nil:
			why = "the cluster does not know it"
		case v.Protected && v.Alive:
			return string(v.Host), nil
		default:
			why = fmt.Sprintf("state %s on %q, protected %v, guest alive %v, reason %q", v.State, v.Host, v.Protected, v.Alive, v.Reason)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("not protected and alive in time: %s", why)
		}
	}
}
