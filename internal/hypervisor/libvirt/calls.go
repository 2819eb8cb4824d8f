package libvirt

import (
	"context"
	"strings"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

// List implements hypervisor.Driver. It asks only for what libvirt knows
// without asking QEMU, so that frozen VMs do not matter. The answers for
// different domains are not of one instant.
func (d *Driver) List(ctx context.Context) ([]hypervisor.Domain, error) {
	var list []hypervisor.Domain
	err := d.call(ctx, d.safe, "list", "", d.cfg.CallTimeout, func(l *lv.Libvirt) error {
		all, _, err := l.ConnectListAllDomains(1, 0)
		if err != nil {
			return err
		}
		transient, err := listed(l, lv.ConnectListDomainsTransient)
		if err != nil {
			return err
		}
		autostart, err := listed(l, lv.ConnectListDomainsAutostart)
		if err != nil {
			return err
		}
		for _, dom := range all {
			state, reason, err := l.DomainGetState(dom, 0)
			if lv.IsNotFound(err) {
				continue // it was transient and has gone
			}
			if err != nil {
				return err
			}
			out := hypervisor.Domain{VM: vmID(dom.UUID), Name: dom.Name, ID: dom.ID,
				Persistent: !transient[dom.UUID], Autostart: autostart[dom.UUID]}
			out.State, out.Reason, out.Cause = stateOf(state, reason)
			out.Active = out.State != hypervisor.StateShutOff
			if !out.Active {
				out.ID = -1 // it stopped since the list was made
			}
			list = append(list, out)
		}
		return nil
	})
	return list, err
}

// listed returns the domains that match flags.
func listed(l *lv.Libvirt, flags lv.ConnectListAllDomainsFlags) (map[lv.UUID]bool, error) {
	doms, _, err := l.ConnectListAllDomains(1, flags)
	set := make(map[lv.UUID]bool, len(doms))
	for _, dom := range doms {
		set[dom.UUID] = true
	}
	return set, err
}

// XML implements hypervisor.Driver. Secrets, such as VNC passwords, are part
// of it.
func (d *Driver) XML(ctx context.Context, vm model.VMID, inactive bool) (string, error) {
	flags := lv.DomainXMLSecure
	if inactive {
		flags |= lv.DomainXMLInactive
	}
	var text string
	err := d.callDomain(ctx, "read definition of", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) (err error) {
		text, err = l.DomainGetXMLDesc(dom, flags)
		return err
	})
	return text, err
}

// Define implements hypervisor.Driver.
func (d *Driver) Define(ctx context.Context, xml string) (model.VMID, error) {
	var vm model.VMID
	err := d.call(ctx, d.pool, "define", "", d.cfg.CallTimeout, func(l *lv.Libvirt) error {
		dom, err := l.DomainDefineXMLFlags(xml, 0)
		if err == nil {
			vm = vmID(dom.UUID)
		}
		return err
	})
	return vm, err
}

// undefineKeepTPM is VIR_DOMAIN_UNDEFINE_KEEP_TPM of libvirt 8.9 and newer;
// older ones refuse it, and keep TPM state anyway.
const undefineKeepTPM lv.DomainUndefineFlagsValues = 1 << 6

// Undefine implements hypervisor.Driver. A domain with a managed save image
// or with snapshots is refused by libvirt, as these would be lost.
func (d *Driver) Undefine(ctx context.Context, vm model.VMID) error {
	return d.callDomain(ctx, "undefine", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		err := l.DomainUndefineFlags(dom, lv.DomainUndefineKeepNvram|undefineKeepTPM)
		if err != nil && strings.Contains(err.Error(), "unsupported flags") {
			err = l.DomainUndefineFlags(dom, lv.DomainUndefineKeepNvram)
		}
		return err
	})
}

// SetAutostart implements hypervisor.Driver.
func (d *Driver) SetAutostart(ctx context.Context, vm model.VMID, on bool) error {
	var n int32
	if on {
		n = 1
	}
	return d.callDomain(ctx, "set autostart of", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainSetAutostart(dom, n)
	})
}

// StartPaused implements hypervisor.Driver. A managed save image is thrown
// away: libvirt would restore the memory of then over the disks of now, which
// the VM may have written on another host since.
func (d *Driver) StartPaused(ctx context.Context, vm model.VMID) error {
	return d.callDomain(ctx, "start", vm, d.cfg.StartTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		_, err := l.DomainCreateWithFlags(dom, uint32(lv.DomainStartPaused|lv.DomainStartForceBoot))
		return err
	})
}

// Resume implements hypervisor.Driver.
func (d *Driver) Resume(ctx context.Context, vm model.VMID) error {
	return d.callDomain(ctx, "resume", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainResume(dom)
	})
}

// Reset implements hypervisor.Driver.
func (d *Driver) Reset(ctx context.Context, vm model.VMID) error {
	return d.callDomain(ctx, "reset", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainReset(dom, 0)
	})
}

// agentPatience is how long Shutdown waits for the guest agent's answer
// before it presses the power button.
const agentPatience = 2 * time.Second

// Shutdown implements hypervisor.Driver. The agent is pinged first: libvirt
// would wait a minute for an agent that is connected but dead.
func (d *Driver) Shutdown(ctx context.Context, vm model.VMID) (hypervisor.ShutdownMethod, error) {
	how, flag := hypervisor.ShutdownByACPI, lv.DomainShutdownAcpiPowerBtn
	if err := d.AgentPing(ctx, vm, agentPatience); err == nil {
		how, flag = hypervisor.ShutdownByAgent, lv.DomainShutdownGuestAgent
	} else if hypervisor.KindOf(err) != hypervisor.KindNoAgent {
		return "", err
	}
	err := d.shutdown(ctx, vm, flag)
	if err != nil && how == hypervisor.ShutdownByAgent && hypervisor.KindOf(err) == hypervisor.KindNoAgent {
		how = hypervisor.ShutdownByACPI
		err = d.shutdown(ctx, vm, lv.DomainShutdownAcpiPowerBtn)
	}
	if err != nil {
		return "", err
	}
	return how, nil
}

func (d *Driver) shutdown(ctx context.Context, vm model.VMID, flag lv.DomainShutdownFlagValues) error {
	return d.callDomain(ctx, "shut down", vm, d.cfg.CallTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainShutdownFlags(dom, flag)
	})
}

// Kill implements hypervisor.Driver. A frozen VM must be thawed or its
// cgroup killed for this to succeed quickly.
func (d *Driver) Kill(ctx context.Context, vm model.VMID) error {
	err := d.callDomain(ctx, "kill", vm, d.cfg.KillTimeout, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainDestroyFlags(dom, 0)
	})
	if hypervisor.KindOf(err) == hypervisor.KindNotRunning {
		return nil
	}
	return err
}

// AgentPing implements hypervisor.Driver.
func (d *Driver) AgentPing(ctx context.Context, vm model.VMID, timeout time.Duration) error {
	seconds := max(1, (timeout+time.Second-1)/time.Second)
	limit := seconds*time.Second + d.cfg.ProbeTimeout // libvirt's own deadline first
	return d.callDomain(ctx, "ping guest agent of", vm, limit, func(l *lv.Libvirt, dom lv.Domain) error {
		_, err := l.QEMUDomainAgentCommand(dom, `{"execute":"guest-ping"}`, int32(seconds), 0)
		return err
	})
}
