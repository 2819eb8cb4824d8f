package libvirt

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	lv "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/hypervisor"
)

// Messages that the tests with libvirtd do not provoke, as libvirt 9.0 and
// 11.3 with QEMU 7.2 and 10.0 write them.
func TestClassify(t *testing.T) {
	for _, test := range []struct {
		code lv.ErrorNumber
		text string
		kind hypervisor.Kind
		said string
	}{
		{lv.ErrHookScriptFailed, "Hook script execution failed: internal error: Child process (LC_ALL=C PATH=/bin /etc/libvirt/hooks/qemu.d/50-hanok web prepare begin -) unexpected exit status 1: hanok: web runs on host2\n",
			hypervisor.KindHook, "hanok: web runs on host2"},
		{lv.ErrHookScriptFailed, "Hook script execution failed: internal error: Child process (x) unexpected fatal signal 9",
			hypervisor.KindHook, ""},
		{lv.ErrInternalError, "internal error: process exited while connecting to monitor: qemu: Failed to get \"write\" lock\nIs another process using the image [/ds/x]?",
			hypervisor.KindImageLocked, ""},
		{lv.ErrInternalError, "internal error: qemu unexpectedly closed the monitor: Failed to get shared \"write\" lock",
			hypervisor.KindImageLocked, ""},
		{lv.ErrSystemError, "Cannot access storage file '/ds/x': No such file or directory", hypervisor.KindNoDisk, ""},
		{lv.ErrInternalError, "qemu: -blockdev {}: Could not open '/ds/x': No such file or directory", hypervisor.KindNoDisk, ""},
		{lv.ErrSystemError, "Unable to write to '/sys/fs/cgroup/x': No such file or directory", hypervisor.KindOther, ""},
		{lv.ErrInternalError, "process exited: cannot set up guest memory 'pc.ram': Cannot allocate memory", hypervisor.KindNoMemory, ""},
		{lv.ErrOperationInvalid, "Requested operation is not valid: domain is already running", hypervisor.KindRunning, ""},
		{lv.ErrOperationInvalid, "Requested operation is not valid: domain is not running", hypervisor.KindNotRunning, ""},
		{lv.ErrOperationTimeout, "Timed out during operation: cannot acquire state change lock", hypervisor.KindBusy, ""},
		{lv.ErrAgentUnresponsive, "Guest agent is not responding: QEMU guest agent is not connected", hypervisor.KindNoAgent, ""},
		{lv.ErrArgumentUnsupported, "argument unsupported: QEMU guest agent is not configured", hypervisor.KindNoAgent, ""},
		{lv.ErrInternalError, "something new", hypervisor.KindOther, ""},
	} {
		kind, said := classify(lv.Error{Code: uint32(test.code), Message: test.text})
		if kind != test.kind || test.said != "" && said != test.said {
			t.Errorf("%s\n is %s with %q", test.text, kind, said)
		}
	}
	for err, want := range map[error]hypervisor.Kind{
		context.DeadlineExceeded: hypervisor.KindTimeout, lv.ErrInterrupted: hypervisor.KindUnavailable,
		lv.ErrUnsupported: hypervisor.KindOther,
	} {
		got := failure("start", "", err)
		if hypervisor.KindOf(got) != want || !errors.Is(got, err) {
			t.Errorf("%v is %s", err, hypervisor.KindOf(got))
		}
	}
}

func TestTranslate(t *testing.T) {
	dom := lv.Domain{Name: "web", UUID: lv.UUID{0x6b, 15: 1}}
	const vm = "6b000000-0000-0000-0000-000000000001"
	lifecycle := func(event lv.DomainEventType, detail int32) any {
		return &lv.DomainEventCallbackLifecycleMsg{Msg: lv.DomainEventLifecycleMsg{Dom: dom, Event: int32(event), Detail: detail}}
	}
	agent := func(state lv.ConnectDomainEventAgentLifecycleState) any {
		return &lv.DomainEventCallbackAgentLifecycleMsg{Dom: dom, State: int32(state)}
	}
	s := newSubscriptions(nil, nil)
	for _, test := range []struct {
		raw  any
		want hypervisor.Event
	}{
		{agent(lv.ConnectDomainEventAgentLifecycleStateConnected), hypervisor.Event{Kind: hypervisor.EventAgentConnected}},
		{agent(lv.ConnectDomainEventAgentLifecycleStateDisconnected), hypervisor.Event{Kind: hypervisor.EventAgentDisconnected}},
		{&lv.DomainEventCallbackIOErrorReasonMsg{Msg: lv.DomainEventIOErrorReasonMsg{Dom: dom, SrcPath: "/ds/x", Action: int32(lv.DomainEventIoErrorPause), Reason: "enospc"}},
			hypervisor.Event{Kind: hypervisor.EventIOError, Disk: "/ds/x", Detail: "enospc, paused"}},
		{&lv.DomainEventCallbackWatchdogMsg{Msg: lv.DomainEventWatchdogMsg{Dom: dom, Action: int32(lv.DomainEventWatchdogReset)}},
			hypervisor.Event{Kind: hypervisor.EventWatchdog, Detail: "reset"}},
		{lifecycle(lv.DomainEventSuspended, int32(lv.DomainEventSuspendedIoerror)), hypervisor.Event{Kind: hypervisor.EventSuspended, Detail: "ioError"}},
		{lifecycle(lv.DomainEventStarted, 99), hypervisor.Event{Kind: hypervisor.EventStarted, Detail: "code 99"}},
		{lifecycle(lv.DomainEventStopped, int32(lv.DomainEventStoppedMigrated)), hypervisor.Event{Kind: hypervisor.EventStopped, Detail: "migrated", Cause: hypervisor.StopMigrated}},
		{lifecycle(lv.DomainEventStopped, -1), hypervisor.Event{Kind: hypervisor.EventStopped, Detail: "code -1", Cause: hypervisor.StopUnknown}},
		// A signal is remembered until the stop that it causes, and no longer.
		{lifecycle(lv.DomainEventShutdown, int32(lv.DomainEventShutdownHost)), hypervisor.Event{Kind: hypervisor.EventShuttingDown, Detail: "signal"}},
		{lifecycle(lv.DomainEventStopped, int32(lv.DomainEventStoppedShutdown)), hypervisor.Event{Kind: hypervisor.EventStopped, Detail: "shutdown", Cause: hypervisor.StopHostSignal}},
		{lifecycle(lv.DomainEventStopped, int32(lv.DomainEventStoppedShutdown)), hypervisor.Event{Kind: hypervisor.EventStopped, Detail: "shutdown", Cause: hypervisor.StopGuestShutdown}},
	} {
		test.want.VM, test.want.Name = vm, "web"
		if got, ok := s.translate(test.raw); !ok || got != test.want {
			t.Errorf("%+v, %v; want %+v", got, ok, test.want)
		}
	}
	if e, ok := s.translate(lifecycle(77, 0)); ok {
		t.Errorf("unknown event passed: %+v", e)
	}
}

func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(3)
		ctx, cancel := context.WithCancel(t.Context())
		go q.pump(ctx)
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			q.push(hypervisor.Event{Kind: hypervisor.EventStarted, Name: name})
			synctest.Wait() // the pump holds "a" already
		}
		var got []string
		for range 4 {
			e := <-q.out
			got = append(got, string(e.Kind)+" "+e.Name)
		}
		if diff := cmp.Diff([]string{"started a", "resync ", "started e", "started f"}, got); diff != "" {
			t.Error(diff)
		}
		cancel()
		if _, open := <-q.out; open {
			t.Error("still open")
		}
	})
}

func TestFrames(t *testing.T) {
	good := append([]byte{0, 0, 0, 30}, make([]byte, 26)...)
	stream := append(append(append([]byte{}, good...), good...), 0, 0, 0, 27)
	for step := 1; step <= len(stream); step++ {
		w, failed := &watchedConn{}, -1
		for at := 0; at < len(stream); at += step {
			if err := w.frames(stream[at:min(at+step, len(stream))]); err != nil {
				failed = at
				break
			}
		}
		if failed < 0 || failed+step < len(stream) {
			t.Errorf("in steps of %d: failed at %d", step, failed)
		}
	}
	for _, length := range [][]byte{{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {2, 0, 0, 1}} {
		if err := new(watchedConn).frames(length); !errors.Is(err, errFrame) {
			t.Errorf("%v: %v", length, err)
		}
	}
}

func TestDiskStatsAbsurd(t *testing.T) {
	param := func(name string, v any) lv.TypedParam {
		return lv.TypedParam{Field: name, Value: lv.TypedParamValue{I: v}}
	}
	disks, err := diskStats([]lv.TypedParam{param("block.count", uint32(1<<31)), param("block.0.name", "vda"), param("block.0.wr.reqs", uint64(7))})
	if err != nil || len(disks) != maxDisks || disks[0].Target != "vda" || disks[0].Writes != 7 {
		t.Errorf("%d disks, %v", len(disks), err)
	}
	if _, err := diskStats(nil); err == nil {
		t.Error("a skipped domain has counters")
	}
}

func TestCensus(t *testing.T) {
	a, b := lv.Domain{Name: "a", ID: 1}, lv.Domain{Name: "b", ID: 2}
	again := lv.Domain{Name: "a", ID: 3}
	var c census
	for i, step := range []struct {
		list    []lv.Domain
		changes uint64
		want    bool
	}{
		{[]lv.Domain{a, b}, 0, false}, // the first
		{[]lv.Domain{b, a}, 0, false},
		{[]lv.Domain{a}, 1, false}, // an event told
		{[]lv.Domain{a}, 1, false},
		{[]lv.Domain{}, 1, true}, // no event told
		{[]lv.Domain{a}, 2, false},
		{[]lv.Domain{again}, 2, true}, // another run of it
	} {
		if got := c.silent(step.list, step.changes); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
