package sim

import (
	"slices"
	"testing"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

const clean = `-- cluster.yaml --
version: 1
name: clean
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1, backing: a}]
hosts:
- {name: host1, datastores: [ds1], memory: 8GiB}
- {name: host2, datastores: [ds1], memory: 8GiB}
- {name: host3, datastores: [ds1], memory: 8GiB}
vms:
- {name: a, host: host1, datastore: ds1}
- {name: b, host: host2, datastore: ds1}
-- script --
`

// TestInvariantsGoRed breaks each invariant on purpose: the checker says so, of
// the right subject, and says nothing of the same steps unbroken.
func TestInvariantsGoRed(t *testing.T) {
	gone := "at 5s storage host1 ds1 hang\nat 5s cut host1\n"
	rows := []struct {
		name, invariant, subject string
		script                   string
		off                      Tamper
		// poke changes the simulated world, or asks the checker, at 30 s.
		poke func(s *Sim)
	}{
		{"freezes that do nothing, and a watchdog that does not bite", InvariantOnce, "a", gone, Tamper{NoFreeze: true, NoReset: true}, nil},
		{"a lock is taken from a VM that runs", InvariantLock, "a", gone, Tamper{NoFreeze: true, NoReset: true}, nil},
		{"a write that hung lands after the next owner's first", InvariantWrite, "a", "at 5s storage host1 ds1 hang-hard\nat 5s cut host1\nat 25s storage host1 ds1 none\n", Tamper{NoReset: true}, nil},
		{"a thaw without the lock", InvariantLock, "a", "", Tamper{}, func(s *Sim) {
			g := s.vmNamed["a"]
			p := g.procs[0]
			p.frozen = true
			p.h.virt.stopped = true
			g.home.locks[model.VMLock(g.id)] = append(g.home.locks[model.VMLock(g.id)], model.LockRecord{Lock: model.VMLock(g.id), Epoch: 9, State: model.LockHeld, Owner: "host2", Boot: s.byName["host2"].boot})
			p.h.guard.thaw(g.id)
		}},
		{"an epoch that is granted to two", InvariantLock, "", "", Tamper{}, func(s *Sim) {
			for _, name := range []model.HostID{"host1", "host2"} {
				h := s.byName[name]
				s.check.requested(h, &lease.Request{ID: 1 << 40, Claim: &lease.ClaimRequest{VM: managedOf(s.vmNamed["a"])}})
				s.check.replied(&h.guard, &lease.Reply{ID: 1 << 40, Code: lease.CodeOK, Epoch: 77})
			}
		}},
		{"commands that fall back to an old term", InvariantTerm, "", "at 5s vm crash a\nat 20s vm crash a\n", Tamper{Agent: oldTerms()}, nil},
		{"a list that is written under an old term", InvariantTerm, "host3", "", Tamper{}, func(s *Sim) {
			h := s.byName["host3"]
			for _, term := range []model.Term{9, 8} {
				s.check.listWritten(h, fdm.WriteList{Datastore: "ds1", List: model.ProtectedList{Term: term}})
			}
		}},
		{"two write under one term", InvariantPrimary, "ds1", "", Tamper{}, func(s *Sim) {
			for _, name := range []model.HostID{"host1", "host2"} {
				s.check.listWritten(s.byName[name], fdm.WriteList{Datastore: "ds1", List: model.ProtectedList{Term: 99}})
			}
		}},
		{"a list is taken that another holds by a valid lease", InvariantPrimary, "ds1", "", Tamper{}, func(s *Sim) {
			s.check.oneOwner(s.byName["host1"], "ds1")
		}},
		{"nobody leads", InvariantPrimary, "", "at 5s power-off host3\n", Tamper{AgentEvent: func(h model.HostID, ev fdm.Event) fdm.Event {
			if _, tick := ev.(fdm.Tick); tick && h != "host3" {
				return nil // elections never end
			}
			return ev
		}}, nil},
		{"starts that are not ordered", InvariantRestart, "a", "at 5s power-off host1\n", Tamper{Agent: dropAsk(func(r *lease.Request) bool { return r.Claim != nil })}, nil},
		{"a VM that is killed for nothing", InvariantPolicy, "a", "", Tamper{}, func(s *Sim) {
			p := s.vmNamed["a"].procs[0]
			s.byName["host1"].guard.carryOut(&lease.Effect{Kind: lease.EffKill, VM: p.vm.id})
		}},
		{"the agent has libvirt end a VM for nothing", InvariantPolicy, "b", "", Tamper{}, func(s *Sim) {
			s.byName["host2"].virt.do(fdm.Hypervise{Call: fdm.CallShutdown, VM: s.vmNamed["b"].id}, s.vmNamed["b"], func(fdm.HypervisorFault, string) {})
		}},
		{"a VM that waits and nobody says why", InvariantReason, "a", "", Tamper{}, func(s *Sim) {
			g := s.vmNamed["a"]
			end := s.now + 2*s.opts.RestartBound
			for ; s.now < end && !s.stopped; s.now += time.Second {
				s.check.watchVM(g, &fdm.VMView{State: model.VMRecovery})
			}
		}},
	}
	broken := map[string]bool{}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			for _, on := range []bool{true, false} {
				o := Options{Seed: 1, GoOn: true}
				if !on {
					o.Off = r.off
				}
				found := play(t, clean+r.script, o, func(s *Sim) {
					if !on && r.poke != nil {
						r.poke(s)
					}
				})
				is := func(v scenario.Violation) bool {
					return v.Invariant == r.invariant && (r.subject == "" || v.Subject == r.subject)
				}
				switch {
				case on && len(found) > 0:
					t.Errorf("unbroken it is violated: %+v", found[0])
				case !on && !slices.ContainsFunc(found, is):
					t.Errorf("no violation of %s by %q: %+v", r.invariant, r.subject, found)
				}
			}
		})
		broken[r.invariant] = true
	}
	for _, i := range []string{InvariantOnce, InvariantWrite, InvariantLock, InvariantTerm, InvariantPrimary, InvariantRestart, InvariantPolicy, InvariantReason} {
		if !broken[i] {
			t.Errorf("nothing breaks %s", i)
		}
	}
}

// oldTerms gives every second claim of a VM an old term.
func oldTerms() func(model.HostID, fdm.Effect) fdm.Effect {
	n := 0
	return func(_ model.HostID, e fdm.Effect) fdm.Effect {
		if a, ok := e.(fdm.AskGuard); ok && a.Request.Claim != nil {
			if n++; n%2 == 0 {
				r := *a.Request.Claim
				r.Term = 1
				a.Request.Claim = &r
				return a
			}
		}
		return e
	}
}

// play runs a script for 150 s, with poke at 30 s, and returns what was violated.
func play(t *testing.T, text string, o Options, poke func(*Sim)) []scenario.Violation {
	t.Helper()
	sc := parse(t, text)
	s, err := New(sc.Cluster, o)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Settle(time.Minute) {
		t.Fatal("it does not settle: " + s.unsettled())
	}
	for _, st := range sc.Steps {
		s.At(st.At, func() {
			if err := s.Do(st.Action, st.Text); err != nil {
				t.Error(err)
			}
		})
	}
	s.At(30*time.Second, func() { poke(s) })
	s.Run(150 * time.Second)
	return s.Violations()
}
