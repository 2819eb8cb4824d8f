package lease

import (
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// CanaryPrefix begins the names of domains that the hook always refuses, to
// prove that libvirt asks it.
const CanaryPrefix = "hanok-canary-"

// hookWait is a hook's question that waits until another operation on the lock
// has ended.
type hookWait struct {
	conn, id uint64
	vm       model.VMID
	deadline time.Duration
}

// FailsClosed reports whether libvirt's operation may bring a managed disk to
// life, so that no answer means no. All others, reconnect before all, must
// never be refused: a failing reconnect kills the running QEMU.
func FailsClosed(operation string) bool {
	switch operation {
	case "prepare", "start", "restore", "migrate", "attach":
		return true
	}
	return false
}

func (m *Machine) hook(conn, id uint64, r *HookRequest) {
	if strings.HasPrefix(r.Name, CanaryPrefix) {
		if !m.hookSeen {
			m.hookSeen, m.statusDirty = true, true
		}
		m.notify(Notice{What: NoticeCanary, Text: r.Name})
		m.refuse(conn, id, CodeRefused, "hanok: "+r.Name+" is refused, as it must be: libvirt asks the hook")
		return
	}
	if !FailsClosed(r.Operation) {
		m.hookTold(r)
		m.reply(conn, Reply{ID: id, Code: CodeOK})
		return
	}
	spec, managed := m.managed.find(r.VM)
	if v := m.vms[r.VM]; v != nil && v.lock != lockNone {
		spec, managed = v.spec, true
	}
	if !managed && m.cfg.ManagedUnknown {
		m.refuse(conn, id, CodeUnknownVM, "the guard could not read its list of protected VMs and waits for the agent to send it")
		return
	}
	if !managed {
		for _, d := range r.Disks {
			if owner, ok := m.managed.owner(d); ok && owner != r.VM {
				m.refuse(conn, id, CodeRefused, fmt.Sprintf("hanok: disk %s belongs to the protected VM %s, not to %s", d, m.nameOf(owner), r.Name))
				return
			}
		}
		m.reply(conn, Reply{ID: id, Code: CodeOK})
		return
	}
	switch {
	case r.Operation == "migrate" || r.Migration:
		m.refuse(conn, id, CodeRefused, fmt.Sprintf("hanok: %s is protected; a migration that Hanok does not know is refused. Use: hanok vm migrate %s HOST", r.Name, r.Name))
	case r.Operation == "attach":
		// libvirt attaches to a process that somebody started by hand.
		m.refuse(conn, id, CodeRefused, fmt.Sprintf("hanok: %s is protected; attaching to a foreign process is refused. Use: hanok vm start %s", r.Name, r.Name))
	default:
		m.hookStart(hookWait{conn: conn, id: id, vm: r.VM, deadline: m.now + HookLimit}, spec)
	}
}

// hookTold uses what libvirt tells without asking.
func (m *Machine) hookTold(r *HookRequest) {
	v := m.vms[r.VM]
	if v == nil {
		return
	}
	switch r.Operation {
	case "stopped", "release":
		// The start that was permitted has failed or ended; a list of
		// processes shows whether one is left.
		if v.grant == grantHook {
			v.grant = grantNone
			m.statusDirty = true
		}
		m.scan.again = true
	}
}

// hookStart permits a start under a lock of this host, claims a free one, and
// refuses otherwise.
func (m *Machine) hookStart(h hookWait, spec ManagedVM) {
	v := m.vms[h.vm]
	key := lockKey{spec.Home, model.VMLock(h.vm)}
	switch {
	case m.now >= h.deadline:
		m.refuse(h.conn, h.id, CodeRefused, "hanok: datastore "+string(spec.Home)+" did not answer in time; it is not known who owns "+spec.Name)
	case !m.leaseOK(spec.Home):
		m.refuse(h.conn, h.id, CodeRefused, "hanok: "+spec.Name+" cannot start here: "+m.leaseText(spec.Home))
	case m.chains[key] != nil || v != nil && (v.killing || v.lock == lockSuspect || v.lock == lockLost):
		if len(m.hookWaits) >= maxWaiters {
			m.refuse(h.conn, h.id, CodeRefused, "hanok: too many starts wait; try again")
			return
		}
		m.hookWaits = append(m.hookWaits, h)
	case v != nil && v.lock == lockHeld && v.grant != grantNone:
		// Whether this is the agent's paused start or a person's is not to be
		// seen from here: it may run at once.
		v.grant, v.grantAt = grantHook, m.now
		m.saveDirty = true
		m.reply(h.conn, Reply{ID: h.id, Code: CodeOK, Epoch: v.epoch})
	default:
		m.addVM(spec)
		m.startChain(&chain{kind: chainClaim, vm: h.vm, key: key, spec: spec, anyEpoch: true,
			hook: true, live: true, conn: h.conn, id: h.id, deadline: h.deadline})
	}
}

// hookDuties asks again for the hooks that wait.
func (m *Machine) hookDuties() {
	if len(m.hookWaits) == 0 {
		return
	}
	waits := m.hookWaits
	m.hookWaits = nil
	for _, h := range waits {
		spec, ok := m.managed.find(h.vm)
		if v := m.vms[h.vm]; v != nil && v.lock != lockNone {
			spec, ok = v.spec, true
		}
		if !ok {
			m.reply(h.conn, Reply{ID: h.id, Code: CodeOK})
			continue
		}
		m.hookStart(h, spec)
	}
}

// hookReply words the end of a claim for libvirt's user.
func (m *Machine) hookReply(c *chain, r Reply) Reply {
	if r.Code == CodeOK {
		return r
	}
	name := c.spec.Name
	if r.Record != nil {
		if h := r.Record.Holder(); h != "" && h != m.cfg.Host {
			r.Text = fmt.Sprintf("%s is owned by host %s (lock epoch %d); stop or move it there, or use: hanok vm start %s", name, h, r.Record.Epoch, name)
		}
	}
	r.Code = CodeRefused
	r.Text = "hanok: " + r.Text
	return r
}
