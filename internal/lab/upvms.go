package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"hanok.dev/hanok/internal/config"
)

// vmTimeout is how long one VM may take from its start to the first answer of
// its guest agent; emulation shares the machine's processors.
const vmTimeout = 180 * time.Second

// startVMs defines, protects and starts all VMs, a few at a time.
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
	if u.Bare {
		steps = append(steps, []string{"virsh", "-q", "start", v.Name})
	} else {
		steps = append(steps, []string{"hanok", "vm", "protect", v.Name}, []string{"hanok", "vm", "start", v.Name})
	}
	for _, argv := range steps {
		if _, err := u.client.Exec(ctx, string(v.Host), argv...); err != nil {
			return fmt.Errorf("VM %s: %w", v.Name, err)
		}
	}
	if err := u.client.WaitGuest(ctx, string(v.Host), v.Name); err != nil {
		return fmt.Errorf("VM %s: its guest agent does not answer: %w", v.Name, err)
	}
	if !u.Bare {
		if err := u.client.waitProtected(ctx, string(v.Host), v.Name); err != nil {
			return fmt.Errorf("VM %s: %w", v.Name, err)
		}
	}
	u.say("VM %s runs on %s", v.Name, v.Host)
	return nil
}

// WaitGuest returns when the agent of a VM's guest answers on the host.
func (c *Client) WaitGuest(ctx context.Context, host, vm string) error {
	return c.retry(ctx, host, "virsh", "-q", "qemu-agent-command", "--timeout", "5", vm, `{"execute":"guest-ping"}`)
}

// agentStatus is the part of `hanok status -o json` that the lab reads.
type agentStatus struct {
	Hosts []struct {
		Name  string `json:"name"`
		Role  string `json:"role"`
		State string `json:"state"`
	} `json:"hosts"`
	VMs []struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		Host      string `json:"host"`
		Protected bool   `json:"protected"`
		Reason    string `json:"reason"`
	} `json:"vms"`
}

// agent asks a host's agent for its view of the cluster.
func (c *Client) agent(ctx context.Context, host string) (agentStatus, error) {
	var s agentStatus
	out, err := c.Exec(ctx, host, "hanok", "status", "-o", "json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("%s: hanok status -o json: %w", host, err)
	}
	return s, nil
}

// waitProtected waits until the VM's host says that it is protected.
func (c *Client) waitProtected(ctx context.Context, host, vm string) error {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	why := "the agent does not list it"
	for {
		s, err := c.agent(ctx, host)
		if err != nil {
			why = err.Error()
		}
		for _, v := range s.VMs {
			if v.Name == vm {
				if v.Protected {
					return nil
				}
				why = v.Reason
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not protected: %s: %w", why, ctx.Err())
		}
	}
}
