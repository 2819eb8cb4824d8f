package fdm

import (
	"testing"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// A lock that cannot be released is tried again after a pause: not with every
// status of the guard, of which each refusal brings one.
func TestReleaseIsNotRepeatedAtOnce(t *testing.T) {
	const vm = model.VMID("vm-web")
	for _, tt := range []struct {
		code  lease.Code
		pause time.Duration
	}{{lease.CodeStorage, releasePause}, {lease.CodeBusy, releasePause}, {lease.CodeNotGone, notGonePause}} {
		b := newBench(t, chaosConfig(1))
		b.step(DomainsListed{Domains: []Domain{{VM: vm, Name: "web", Cause: StopDestroyed}}})
		status := GuardNoticed{Notice: lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{
			VMs: []lease.VMStatus{{VM: vm, Name: "web", Home: "ds1", Epoch: 3, Phase: lease.PhaseGone}}}}}
		releases := func() (ops []OpID) {
			for _, e := range take[AskGuard](b) {
				if e.Request.Release != nil {
					ops = append(ops, e.Op)
				}
			}
			return ops
		}
		b.step(status)
		first := releases()
		if len(first) != 1 {
			t.Fatalf("%s: %d releases of a VM that its user ended, want 1", tt.code, len(first))
		}
		b.step(GuardReplied{Op: first[0], Reply: lease.Reply{Code: tt.code}})
		for range 10 {
			b.step(status)
		}
		b.pass(tt.pause - 10*time.Millisecond)
		if n := len(releases()); n != 0 {
			t.Errorf("%s: released again %d times before %v had passed", tt.code, n, tt.pause)
		}
		b.pass(20 * time.Millisecond)
		if n := len(releases()); n != 1 {
			t.Errorf("%s: released %d times after the pause, want 1", tt.code, n)
		}
	}
}

// A start that failed half-way was ended by HA, although libvirt calls it
// destroyed: its lock, released late, must not read as its user's wish.
func TestUndoneStartIsNoWishOfItsUser(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	cmd := startCommand("c1", 1)
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd}})
	asked := func() lease.Request {
		t.Helper()
		for range 200 {
			for _, e := range take[Hypervise](b) {
				if e.Call == CallKill {
					b.step(DomainChanged{Domain{VM: e.VM, Name: "web", Cause: StopDestroyed}})
				}
				b.step(HypervisorDone{Op: e.Op})
			}
			for _, e := range take[AskGuard](b) {
				switch r := e.Request; {
				case r.Claim != nil:
					b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeOK, Epoch: 3}})
				case r.Release != nil:
					b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeNotGone}})
					return r
				default: // Confirm and Kill: its guard is being restarted
					b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeTimeout}})
				}
			}
			b.pass(100 * time.Millisecond)
		}
		t.Fatal("no release within 20 s")
		return lease.Request{}
	}
	for i := range 6 {
		if r := asked().Release; r.Reason != model.ReasonStartFail {
			t.Fatalf("release %d by the command says %q, want %q", i+1, r.Reason, model.ReasonStartFail)
		}
	}
	b.step(GuardNoticed{Notice: lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{
		VMs: []lease.VMStatus{{VM: "v1", Name: "web", Home: "ds1", Epoch: 3, Phase: lease.PhaseGone}}}}})
	b.step(DomainsListed{Domains: []Domain{{VM: "v1", Name: "web", Cause: StopDestroyed}}})
	if r := asked().Release; r.Reason != model.ReasonStartFail {
		t.Errorf("the release after the command says %q, want %q", r.Reason, model.ReasonStartFail)
	}
	for _, lv := range b.m.account().VMs {
		if r := releaseReason(lv.Cause); lv.ID == "v1" && r != model.ReasonStartFail {
			t.Errorf("the report says that it ended by %q, want %q", r, model.ReasonStartFail)
		}
	}
}
