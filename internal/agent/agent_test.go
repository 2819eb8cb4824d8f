package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func replaceDir(b []byte, dir string) []byte {
	return bytes.ReplaceAll(b, []byte("%DIR%"), []byte(dir))
}

// started waits until the loop runs.
func (r *rig) started() { await[fdm.ConfigLoaded](r.t, r.core, nil) }

func TestConfigReachesTheMachine(t *testing.T) {
	r := newRig(t, nil)
	e := await[fdm.ConfigLoaded](t, r.core, nil)
	if c := e.Config; c.Version != 3 || len(c.Hosts) != 2 || c.Hosts[0].Memory != 16<<10 || c.Datastores[1].Path != r.path("ds2") || len(c.File) == 0 {
		t.Errorf("configuration of the machine: %+v", c)
	}
}

func TestDatastoreAnswers(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.core.do(fdm.ReadSlots{Op: 1, Datastore: "ds1"}, fdm.ReadList{Op: 2, Datastore: "ds1"},
		fdm.ReadLock{Op: 3, Datastore: "ds2", VM: vmA}, fdm.WriteList{Op: 4, Datastore: "ds2", List: model.ProtectedList{Term: 7, Version: 2}},
		fdm.ReadSlots{Op: 5, Datastore: "ds9"})
	seen := map[fdm.OpID]string{}
	for len(seen) < 5 {
		switch e := (<-r.core.got).(type) {
		case fdm.SlotsRead:
			seen[e.Op] = fmt.Sprint(e.Datastore, e.Kind, len(e.Slots), e.Started > 0 && e.Completed >= e.Started)
		case fdm.ListRead:
			seen[e.Op] = fmt.Sprint(e.Datastore, e.Kind, e.List.Term, e.Lock.Lock, e.Lock.Epoch)
		case fdm.LockRead:
			seen[e.Op] = fmt.Sprint(e.Datastore, e.Kind, e.Record.Lock, e.Record.Epoch)
		case fdm.ListWritten:
			seen[e.Op] = fmt.Sprint(e.Datastore, e.Kind, e.Term, e.Version)
		}
	}
	want := map[fdm.OpID]string{1: "ds11true", 2: "ds14protected9", 3: "ds2" + string(vmA) + "9", 4: "ds272", 5: "ds9invalid0true"}
	for op, w := range want {
		if strings.ReplaceAll(seen[op], " ", "") != w {
			t.Errorf("operation %d answered %q, want %q", op, seen[op], w)
		}
	}
}

// A hung datastore is answered as hung, once, holds nobody else up, and works
// again when the storage does. Its late results are dropped.
func TestHungDatastoreStallsNobody(t *testing.T) {
	hang := make(chan struct{})
	r := newRig(t, func(r *rig) { r.stores["ds1"].hang = hang })
	r.started()
	ops := fdm.OpID(0)
	for range 40 { // more than workers and backlog
		ops++
		r.core.do(fdm.ReadSlots{Op: ops, Datastore: "ds1"})
	}
	r.core.do(fdm.ReadSlots{Op: 1000, Datastore: "ds2"}, &fdm.SendHeartbeat{To: "host2", Network: "mgmt"})
	begin := time.Now()
	<-r.net.beats
	answers := map[fdm.OpID]int{}
	kinds := map[string]int{}
	for len(answers) < 41 {
		e := await[fdm.SlotsRead](t, r.core, nil)
		answers[e.Op]++
		if e.Op == 1000 {
			if e.Kind != "" || time.Since(begin) > time.Second {
				t.Errorf("the healthy datastore answered %q after %v", e.Kind, time.Since(begin))
			}
			continue
		}
		kinds[e.Kind]++
	}
	if kinds[KindHung] != 20 || kinds[string(datastore.KindBusy)] != 20 {
		t.Errorf("kinds of answers: %v, want 20 hung (4 workers, 16 waiting) and 20 busy", kinds)
	}
	r.stores["ds1"].mu.Lock()
	r.stores["ds1"].hang = nil
	r.stores["ds1"].mu.Unlock()
	close(hang)
	r.core.do(fdm.ReadSlots{Op: 2000, Datastore: "ds1"})
	for {
		e := await[fdm.SlotsRead](t, r.core, nil)
		if answers[e.Op]++; answers[e.Op] > 1 {
			t.Fatalf("operation %d was answered twice", e.Op)
		}
		if e.Op == 2000 {
			if e.Kind != "" {
				t.Errorf("after the repair: %s %s", e.Kind, e.Err)
			}
			break
		}
	}
}

func TestHypervisorCalls(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	cases := []struct {
		err  error
		call fdm.HypervisorCall
		want fdm.HypervisorFault
	}{
		{nil, fdm.CallStartPaused, ""},
		{&hypervisor.Error{Kind: hypervisor.KindHook, Text: "host2 owns it"}, fdm.CallStartPaused, fdm.FaultHook},
		{&hypervisor.Error{Kind: hypervisor.KindImageLocked}, fdm.CallStartPaused, fdm.FaultImageLocked},
		{&hypervisor.Error{Kind: hypervisor.KindNoDisk}, fdm.CallStartPaused, fdm.FaultMissingDisk},
		{&hypervisor.Error{Kind: hypervisor.KindNotRunning}, fdm.CallShutdown, ""},
		{&hypervisor.Error{Kind: hypervisor.KindNoDomain}, fdm.CallUndefine, ""},
		{&hypervisor.Error{Kind: hypervisor.KindUnavailable}, fdm.CallResume, fdm.FaultUnavailable},
		{errors.New("odd"), fdm.CallNoAutostart, fdm.FaultOther},
		{nil, "unheard-of", fdm.FaultOther},
	}
	for i, c := range cases {
		r.hv.mu.Lock()
		r.hv.err = c.err
		r.hv.mu.Unlock()
		op := fdm.OpID(i + 1)
		r.core.do(fdm.Hypervise{Op: op, Call: c.call, VM: vmA})
		e := await[fdm.HypervisorDone](t, r.core, nil)
		if e.Op != op || e.Fault != c.want {
			t.Errorf("%s failing with %v: %+v, want fault %q", c.call, c.err, e, c.want)
		}
	}
}

func TestDefineReadsTheDefinitionOnTheDatastore(t *testing.T) {
	r := newRig(t, func(r *rig) {
		if err := os.MkdirAll(r.path("ds1/web"), 0o700); err != nil {
			t.Fatal(err)
		}
		r.write("ds1/web/web.xml", "<domain type='kvm'><name>web</name><uuid>"+string(vmA)+"</uuid></domain>")
		r.write("ds1/web/bad.xml", "<domain")
	})
	r.started()
	for i, c := range []struct {
		file string
		vm   model.VMID
		want fdm.HypervisorFault
		text string
	}{
		{"ds1/web/web.xml", vmA, "", ""},
		{"ds1/web/web.xml", "00000000-0f0a-4c58-9a4e-2b9f0c7d1e55", fdm.FaultNoConfig, string(vmA)},
		{"ds1/web/bad.xml", vmA, fdm.FaultNoConfig, "bad.xml"},
		{"ds1/web/none.xml", vmA, fdm.FaultNoConfig, "no such file"},
		{"elsewhere/web.xml", vmA, fdm.FaultNoConfig, "no datastore"},
	} {
		r.core.do(fdm.Hypervise{Op: fdm.OpID(i + 1), Call: fdm.CallDefine, VM: c.vm, Config: r.path(c.file)})
		e := await[fdm.HypervisorDone](t, r.core, nil)
		if e.Fault != c.want || !strings.Contains(e.Text, c.text) {
			t.Errorf("define %s: %+v, want fault %q with %q", c.file, e, c.want, c.text)
		}
	}
}

// A libvirt that hangs in every call delays neither heartbeats nor storage.
func TestSlowLibvirtDelaysNobody(t *testing.T) {
	block := make(chan struct{})
	r := newRig(t, func(r *rig) { r.hv.block = block })
	r.started()
	for op := range 2 * maxOperations {
		r.core.do(fdm.Hypervise{Op: fdm.OpID(op + 1), Call: fdm.CallResume, VM: vmA})
	}
	r.core.do(&fdm.SendHeartbeat{To: "host2", Network: "mgmt"})
	if got := <-r.net.beats; got != "host2/mgmt" {
		t.Errorf("heartbeat to %s", got)
	}
	r.net.recv.Datagram("host2", "mgmt", []byte(`{"k":"P","d":2}`))
	refused, done := 0, 0
	count := func(e fdm.HypervisorDone) {
		done++
		if e.Fault == fdm.FaultUnavailable {
			refused++
		}
	}
	for beat := false; !beat; {
		switch e := (<-r.core.got).(type) {
		case fdm.HypervisorDone:
			count(e)
		case fdm.HeartbeatReceived:
			beat = true
			if e.From != "host2" || e.Beat.Kind != fdm.BeatPrimary {
				t.Errorf("heartbeat: %+v", e)
			}
		}
	}
	close(block)
	for done < 2*maxOperations {
		count(await[fdm.HypervisorDone](t, r.core, nil))
	}
	if refused < maxOperations {
		t.Errorf("%d of %d calls were refused as too many; the queue is not bounded", refused, done)
	}
}

func TestGuardComesAndGoes(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.core.do(fdm.AskGuard{Op: 1, Request: lease.Request{Beat: &lease.BeatRequest{}}})
	if e := await[fdm.GuardReplied](t, r.core, nil); e.Reply.Code != lease.CodeBusy || !strings.Contains(e.Reply.Text, "refused") {
		t.Errorf("without a guard: %+v", e.Reply)
	}
	g := &fakeGuard{notices: make(chan lease.Notice, 4)}
	g.answer = func(q lease.Request) (lease.Reply, error) {
		if q.Kill != nil {
			return lease.Reply{}, errors.New("connection reset")
		}
		return lease.Reply{Code: lease.CodeOK, Epoch: 12}, nil
	}
	g.notices <- lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{Host: "host1"}}
	r.guard <- g
	if e := await[fdm.GuardChanged](t, r.core, nil); !e.Up {
		t.Errorf("want the guard up: %+v", e)
	}
	if e := await[fdm.GuardNoticed](t, r.core, nil); e.Notice.Status == nil {
		t.Errorf("want the status first: %+v", e)
	}
	if name := <-r.hv.canary; !strings.HasPrefix(name, lease.CanaryPrefix) {
		t.Errorf("canary %q", name)
	}
	r.core.do(fdm.AskGuard{Op: 2, Request: lease.Request{Claim: &lease.ClaimRequest{}}})
	if e := await[fdm.GuardReplied](t, r.core, nil); e.Op != 2 || e.Reply.Epoch != 12 {
		t.Errorf("claim: %+v", e)
	}
	r.core.do(fdm.AskGuard{Op: 3, Request: lease.Request{Kill: &lease.KillRequest{}}})
	if e := await[fdm.GuardReplied](t, r.core, nil); e.Op != 3 || e.Reply.Code != lease.CodeTimeout {
		t.Errorf("a lost answer must read as unknown: %+v", e)
	}
	g.die()
	if e := await[fdm.GuardChanged](t, r.core, nil); e.Up || e.Reason == "" {
		t.Errorf("want the guard down with a reason: %+v", e)
	}
	r.guard <- &fakeGuard{notices: make(chan lease.Notice, 4)}
	if e := await[fdm.GuardChanged](t, r.core, nil); !e.Up {
		t.Errorf("want the guard up again: %+v", e)
	}
}

func TestDomains(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.hv.events <- hypervisor.Event{Kind: hypervisor.EventResync}
	if e := await[fdm.HypervisorChanged](t, r.core, nil); !e.Up {
		t.Error("want libvirt up")
	}
	list := await[fdm.DomainsListed](t, r.core, nil)
	if len(list.Domains) != 1 || list.Domains[0].Memory != 96 || list.Domains[0].CPUs != 2 || !list.Domains[0].Active {
		t.Errorf("domains (the canary is none): %+v", list.Domains)
	}
	r.hv.events <- hypervisor.Event{Kind: hypervisor.EventStopped, VM: vmA, Name: "web", Cause: hypervisor.StopDaemonLost}
	if d := await[fdm.DomainChanged](t, r.core, nil).Domain; d.Active || d.Cause != fdm.StopFailed || d.Memory != 96 {
		t.Errorf("stopped: %+v", d)
	}
	r.hv.events <- hypervisor.Event{Kind: hypervisor.EventStarted, VM: vmA, Name: "web"}
	r.hv.events <- hypervisor.Event{Kind: hypervisor.EventSuspended, VM: vmA, Name: "web"}
	await[fdm.DomainChanged](t, r.core, nil)
	if d := await[fdm.DomainChanged](t, r.core, nil).Domain; !d.Active || !d.Paused || d.Cause != "" {
		t.Errorf("started paused: %+v", d)
	}
	r.core.do(fdm.Hypervise{Op: 5, Call: fdm.CallList})
	await[fdm.DomainsListed](t, r.core, nil)
	await[fdm.HypervisorDone](t, r.core, nil) // after the list
	r.hv.events <- hypervisor.Event{Kind: hypervisor.EventDisconnected, Detail: "killed"}
	if e := await[fdm.HypervisorChanged](t, r.core, nil); e.Up || e.Reason != "killed" {
		t.Errorf("lost: %+v", e)
	}
}

func TestPingHost(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.core.do(fdm.PingHost{Op: 1, Host: "host2"}, fdm.PingHost{Op: 2, Host: "nobody"})
	for range 2 {
		if e := await[fdm.HostPinged](t, r.core, nil); e.Answered != (e.Op == 1) {
			t.Errorf("%+v", e)
		}
	}
}

func TestFloodOfHeartbeatsIsBounded(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for range 50000 {
			r.net.recv.Datagram("host2", "mgmt", []byte(`{"k":"S"}`))
		}
		for range 100 {
			r.net.recv.Datagram("host2", "mgmt", []byte(`no json`))
		}
	}()
	r.core.do(fdm.PingHost{Op: 1, Host: "host2"})
	await[fdm.HostPinged](t, r.core, nil) // the loop goes on
	<-stop
	if n := r.agent.count.all()["heartbeats-unreadable"]; n != 100 {
		t.Errorf("%d unreadable heartbeats counted, want 100", n)
	}
}

func TestSaveConfig(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	file := func(version int) []byte {
		return replaceDir([]byte(strings.Replace(clusterYAML, "version: 3", fmt.Sprintf("version: %d", version), 1)), r.dir)
	}
	r.core.do(fdm.SaveConfig{Version: 4, File: []byte("version: 4\nname: x\nnonsense: 1\n")})
	if e := r.nextEvent(); e.Kind != event.Config || !strings.Contains(e.Cause, "nonsense") {
		t.Errorf("a bad file: %+v", e)
	}
	r.core.do(fdm.SaveConfig{Version: 2, File: file(2)})
	if e := r.nextEvent(); !strings.Contains(e.Cause, "older") {
		t.Errorf("an old file: %+v", e)
	}
	r.core.do(fdm.SaveConfig{Version: 5, File: file(5)})
	if e := await[fdm.ConfigLoaded](t, r.core, nil); e.Config.Version != 5 {
		t.Errorf("loaded version %d", e.Config.Version)
	}
	b, err := os.ReadFile(r.path("cluster.yaml"))
	if err != nil || !bytes.Contains(b, []byte("version: 5")) {
		t.Errorf("kept: %s, %v", b, err)
	}
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	if len(r.net.configured) != 1 || r.net.configured[0] != 5 {
		t.Errorf("transport configured with %v", r.net.configured)
	}
}

// nextEvent waits for the next event in the log.
func (r *rig) nextEvent() event.Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, _, _, err := r.agent.events.Wait(ctx, r.seen)
	if err != nil {
		r.t.Fatal(err)
	}
	r.seen++
	return list[0]
}

func TestInitError(t *testing.T) {
	r := newRig(t, func(r *rig) { r.write("cluster.yaml", "version: 3\nname: test\nhosst: []\n") })
	deadline := time.Now().Add(10 * time.Second)
	for {
		s, err := r.client.Status(context.Background())
		if err != nil && time.Now().Before(deadline) {
			continue // the socket is not there yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.Local.Error, "starting") {
			continue
		}
		if s.State != model.HostInitError || !strings.Contains(s.Local.Error, "hosst") || s.Local.Remedy == "" || len(s.Problems) != 1 {
			t.Fatalf("status: %+v", s)
		}
		break
	}
	var refused *local.RequestError
	_, err := r.client.Admin(context.Background(), fdm.AdminRequest{Start: &fdm.VMRef{Name: "web"}})
	if !errors.As(err, &refused) || refused.Remedy == "" {
		t.Errorf("an order to an agent that cannot work: %v", err)
	}
	r.write("cluster.yaml", clusterYAML)
	r.started() // it recovers by itself
}

func TestStatusAndAdmin(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	ctx := context.Background()
	s, err := r.client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Host != "host1" || s.Role != model.RoleSecondary || s.State != model.HostConnected || s.Primary != "host2" ||
		len(s.VMs) != 1 || !s.VMs[0].Protected || s.Local.Counters["wire.forged"] != 7 {
		b, _ := json.MarshalIndent(s, "", " ")
		t.Errorf("status: %s", b)
	}
	type result struct {
		rep fdm.AdminReply
		err error
	}
	got := make(chan result, 1)
	go func() {
		rep, err := r.client.Admin(ctx, fdm.AdminRequest{Kill: &fdm.VMRef{Name: "web"}})
		got <- result{rep, err}
	}()
	asked := await[fdm.AdminAsked](t, r.core, nil)
	if asked.Request.Kill == nil || asked.Request.Kill.Name != "web" {
		t.Errorf("asked: %+v", asked)
	}
	r.core.do(fdm.Answer{ID: asked.ID, Reply: fdm.AdminReply{OK: true, Text: "done"}})
	if g := <-got; g.err != nil || g.rep.Text != "done" {
		t.Errorf("answered: %+v", g)
	}
	var refused *local.RequestError
	_, err = r.client.Admin(ctx, fdm.AdminRequest{Apply: &fdm.ConfigOffer{Version: 3, File: replaceDir([]byte(clusterYAML), r.dir)}})
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "not above 3") {
		t.Errorf("the version in force again: %v", err)
	}
	b, err := r.client.Config(ctx)
	if err != nil || !bytes.Contains(b, []byte("host2")) {
		t.Errorf("config: %s, %v", b, err)
	}
}

func TestEventsAreKeptSharedAndServed(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.net.recv.Link("host2", true, "")
	await[fdm.LinkChanged](t, r.core, nil)
	r.core.do(&fdm.SendHeartbeat{To: "host2", Network: "mgmt", Beat: fdm.Heartbeat{Kind: fdm.BeatSecondary, Primary: "host2"}},
		fdm.Emit{Event: event.Event{Kind: event.Verdict, Failover: "f1", Text: "mine"}})
	m := <-r.net.messages
	var msg fdm.Message
	if err := json.Unmarshal(m.payload, &msg); err != nil || m.to != "host2" || msg.Events == nil || len(msg.Events.Events) != 1 {
		t.Fatalf("shared with %s: %s, %v", m.to, m.payload, err)
	}
	mine := msg.Events.Events[0]
	if mine.By != "host1" || mine.ID == "" || mine.Wall.IsZero() || mine.At == 0 {
		t.Errorf("not completed: %+v", mine)
	}
	other, _ := json.Marshal(fdm.Message{Events: &fdm.EventShare{Events: []event.Event{mine,
		{ID: "host2-1-1", By: "host2", Kind: event.Silence, Failover: "f1", Text: "theirs", Wall: time.Now().Add(2 * time.Millisecond)},
		{ID: "host2-1-1", By: "host2", Kind: event.Silence, Failover: "f1", Text: "again"}}}})
	r.net.recv.Message("host2", other)
	r.nextEvent()
	r.nextEvent()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var texts []string
	err := r.client.Events(ctx, local.EventQuery{Failover: "last", Follow: true}, func(e event.Event) error {
		texts = append(texts, e.Text)
		switch len(texts) {
		case 2:
			r.core.do(fdm.Emit{Event: event.Event{Kind: event.Admin, Text: "no failover"}},
				fdm.Emit{Event: event.Event{Kind: event.FailoverDone, Failover: "f1", Text: "followed"}})
		case 3:
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || strings.Join(texts, " ") != "mine theirs followed" {
		t.Errorf("followed %q, %v", texts, err)
	}
}

func TestOneAgentPerHost(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	second, err := New(Config{Socket: r.path("run/agent.sock"), StateDir: r.path("state"), Hypervisor: newFakeHypervisor(), Ports: r.agent.cfg.Ports})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent: %v", err)
	}
	if _, err := r.client.Status(context.Background()); err != nil {
		t.Errorf("the first one is gone: %v", err)
	}
}

func TestLivesGrow(t *testing.T) {
	dir := t.TempDir()
	a, err := nextLife(dir, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	b, err := nextLife(dir, time.Unix(500, 0)) // the wall clock went back
	if err != nil || b <= a {
		t.Errorf("life %d after %d, %v", b, a, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "agent-life"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := nextLife(dir, time.Unix(2000, 0)); err != nil || c <= b {
		t.Errorf("life %d after junk, %v", c, err)
	}
}
