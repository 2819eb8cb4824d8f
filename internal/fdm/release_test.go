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
