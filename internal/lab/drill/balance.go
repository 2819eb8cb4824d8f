package drill

import (
	"context"
	"fmt"
	"time"
)

// EnsureVMs makes a host run at least n VMs: it stops VMs on hosts that have
// more than n, or on any if none has, and starts them there. The cluster is
// settled afterwards.
func (d Drill) EnsureVMs(ctx context.Context, host string, n int) error {
	for range 64 {
		st, err := d.State(ctx)
		if err != nil {
			return err
		}
		if len(On(st, host)) >= n {
			return nil
		}
		donor := ""
		for _, h := range st.Hosts {
			if h.Name != host && (donor == "" || len(On(st, h.Name)) > len(On(st, donor))) {
				donor = h.Name
			}
		}
		if donor == "" || len(On(st, donor)) == 0 {
			return fmt.Errorf("no VM can be moved to %s", host)
		}
		if err := d.move(ctx, On(st, donor)[0], donor, host); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not come to run %d VMs", host, n)
}

// move stops a VM and starts it on another host.
func (d Drill) move(ctx context.Context, vm, from, to string) error {
	status, err := d.Status(ctx)
	if err != nil {
		return err
	}
	v := status.VMByName(vm)
	if v == nil {
		return fmt.Errorf("the cluster does not know %s", vm)
	}
	for _, argv := range [][]string{
		{from, "hanok", "vm", "kill", vm},
		{to, "virsh", "-q", "define", fmt.Sprintf("/srv/%s/%s/%s.xml", v.Datastore, vm, vm)},
		{to, "virsh", "-q", "start", vm},
	} {
		if _, err := d.Exec(ctx, argv[0], argv[1:]...); err != nil {
			return err
		}
	}
	return d.Settle(ctx, 90*time.Second)
}
