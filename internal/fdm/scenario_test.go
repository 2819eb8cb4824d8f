package fdm

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

var record = flag.Bool("record", false, "write the transcripts of testdata anew; review them as a diff")

// TestScenarios drives the virtual cluster by the scripts of testdata and
// compares what people would read with the transcript beside each script. The
// verbs are the cases of scenario.verb.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScenario(t, file) })
	}
}

func runScenario(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil || len(a.Files) == 0 {
		t.Fatalf("%s: %v", file, err)
	}
	s := &scenario{t: t}
	for i, line := range strings.Split(string(a.Files[0].Data), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 0 {
			s.line = fmt.Sprintf("%s:%d: %s", file, i+1, strings.TrimSpace(line))
			s.verb(f)
		}
	}
	for _, v := range s.w.broken {
		t.Errorf("%s: violated: %s", file, v)
	}
	got := strings.Join(s.w.log, "\n") + "\n"
	if *record {
		a.Files = []txtar.File{a.Files[0], {Name: "transcript", Data: []byte(got)}}
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := ""
	if len(a.Files) > 1 {
		want = string(a.Files[1].Data)
	}
	if got != want {
		t.Errorf("%s: the transcript differs (go test -run Scenarios -record writes it anew):\n%s", file, firstDifference(want, got))
	}
}

func firstDifference(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := 0; i < len(a) || i < len(b); i++ {
		x, y := "", ""
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("line %d\nwant: %s\ngot:  %s", i+1, x, y)
		}
	}
	return "none"
}

type scenario struct {
	t    *testing.T
	w    *world
	line string
}

func (s *scenario) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("%s: %s (now %v)", s.line, fmt.Sprintf(format, args...), s.w.now)
}

func (s *scenario) node(name string) *node {
	n := s.w.nodes[model.HostID(name)]
	if n == nil {
		s.t.Fatalf("%s: no host %q", s.line, name)
	}
	return n
}

func (s *scenario) verb(f []string) {
	if f[0] == "hosts" {
		n, _ := strconv.Atoi(f[1])
		var ds []model.DatastoreName
		for _, d := range f[2:] {
			ds = append(ds, model.DatastoreName(d))
		}
		s.w = newWorld(n, ds...)
		for _, k := range []event.Kind{event.Guard, event.Hypervisor, event.Config} {
			s.w.quiet[k] = true
		}
		return
	}
	w := s.w
	switch f[0] {
	case "on":
		for _, name := range w.names {
			w.nodes[name].powerOn()
		}
		return
	case "vm": // vm NAME DATASTORE HOST|- [MEMORY]
		host, mem := f[3], 512
		if host == "-" {
			host = ""
		}
		if len(f) > 4 {
			mem, _ = strconv.Atoi(f[4])
		}
		w.addVM(f[1], model.DatastoreName(f[2]), model.HostID(host), model.MiB(mem))
		return
	case "rule": // rule NAME apart|together VM,VM... | must|should|off VM,... HOST,...
		s.rule(f[1:])
		return
	case "set": // set VM FIELD=VALUE...: settings of the cluster file, before the hosts are on
		s.settings(f[1], f[2:])
		return
	case "run":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			s.t.Fatalf("%s: %v", s.line, err)
		}
		w.run(d)
		return
	case "expect":
		s.expect(f[1:])
		return
	case "gateway-there": // there is an isolation address
		w.gateway = true
		return
	case "isolation": // isolation RESPONSE [VM=RESPONSE...]: as the cluster file says
		w.conf.Isolation = Isolation{Response: IsolationResponse(f[1]), Delay: 5 * time.Second, ShutdownLimit: 20 * time.Second}
		for _, x := range f[2:] {
			vm, r, _ := strings.Cut(x, "=")
			if w.conf.VMs == nil {
				w.conf.VMs = map[string]VMSettings{}
			}
			w.conf.VMs[vm] = VMSettings{Isolation: IsolationResponse(r)}
		}
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
		return
	case "storage-policy": // storage-policy APD PDL [reset]: time-out 30 s, no delay
		w.conf.Storage = StoragePolicy{APD: StorageResponse(f[1]), PDL: StorageResponse(f[2]), APDTimeout: 30 * time.Second, APDReset: len(f) > 3}
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
		return
	case "probe": // probe D: what waits is looked at again after D, if nothing changes
		w.probe, _ = time.ParseDuration(f[1])
		return
	case "admission": // admission KIND [HOSTS [DEGRADATION]]
		w.conf.Admission = admission.Policy{Kind: admission.Kind(f[1]), HostFailures: 1, Degradation: 100, MinCPU: 32}
		if len(f) > 2 {
			w.conf.Admission.HostFailures, _ = strconv.Atoi(f[2])
		}
		if len(f) > 3 {
			w.conf.Admission.Degradation, _ = strconv.Atoi(f[3])
		}
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
		return
	case "mass": // mass PERCENT
		w.conf.MassFailure, _ = strconv.Atoi(f[1])
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
		return
	case "disk": // disk VM DATASTORE: it has one there too
		for _, d := range w.disks {
			for t, l := range d.lists {
				for i := range l.VMs {
					if l.VMs[i].Name == f[1] {
						l.VMs[i].Datastores = append(l.VMs[i].Datastores, model.DatastoreName(f[2]))
					}
				}
				d.lists[t] = l
			}
		}
		return
	case "quiet":
		w.quiet[event.Kind(f[1])] = true
		return
	}
	w.logf("> %s", strings.Join(f, " "))
	s.act(f)
}

// act carries out what changes the world.
func (s *scenario) act(f []string) {
	w := s.w
	switch f[0] {
	case "power-off":
		for _, h := range f[1:] {
			s.node(h).powerOff()
		}
	case "power-on":
		for _, h := range f[1:] {
			s.node(h).powerOn()
		}
	case "agent":
		s.agent(f[1], s.node(f[2]))
	case "guard":
		n := s.node(f[2])
		if f[1] == "kill" {
			n.guardOn = false
			n.step(GuardChanged{Reason: "connection closed"})
		} else {
			n.startGuard()
			n.step(GuardChanged{Up: true})
			n.notice(lease.Notice{What: lease.NoticeStatus})
		}
	case "libvirt":
		n := s.node(f[2])
		n.libvirt = f[1] == "start"
		n.step(HypervisorChanged{Up: n.libvirt})
		if n.libvirt {
			n.listDomains()
		}
	case "cut", "heal": // cut HOST...
		for _, h := range f[1:] {
			n := s.node(h)
			n.cut, n.deaf, n.mute, n.noPing, n.netOff = f[0] == "cut", false, false, false, map[string]bool{}
		}
	case "deaf":
		s.node(f[1]).deaf = true
	case "old": // old HOST DATASTORE|off: it reads heartbeats as they are now
		n := s.node(f[1])
		if n.old = nil; f[2] == "off" {
			break
		}
		d := w.disks[model.DatastoreName(f[2])]
		for _, h := range sortedKeys(d.slots) {
			n.old = append(n.old, d.slots[h])
		}
	case "mute":
		s.node(f[1]).mute = true
	case "no-ping":
		s.node(f[1]).noPing = true
	case "network": // network HOST NAME off|on
		s.node(f[1]).netOff[f[2]] = f[3] == "off"
	case "gateway": // gateway off|on HOST
		s.node(f[2]).noGate = f[1] == "off"
	case "split", "join": // split HOST...: they hear only each other
		for _, h := range f[1:] {
			s.node(h).side = map[string]int{"split": 1}[f[0]]
		}
	case "contact": // what the guards know
		for _, name := range w.names {
			n := s.node(string(name))
			yes := n.on && w.now < n.heardAt+w.conf.Timing.Lease-w.conf.Timing.WatchdogMax
			w.logf("  %s contact %v", name, yes)
		}
	case "storage": // storage HOST DATASTORE hang|stall|none; a lease runs on when it stalls
		n, ds := s.node(f[1]), model.DatastoreName(f[2])
		n.hung[ds] = f[3] != "none"
		n.leased[ds] = f[3] == "stall"
		lost := func() {
			n.leased[ds] = false
			n.notice(lease.Notice{What: lease.NoticeDatastore, Datastore: ds, Text: "datastore " + f[2] + ": " + f[3]})
		}
		if n.leased[ds] {
			w.at(w.conf.Timing.Lease-w.conf.Timing.Interval, lost)
		} else {
			lost()
		}
	case "lose": // lose HOST DATASTORE hung|lost: as a guard sees it, with freezes
		s.node(f[1]).loseStorage(model.DatastoreName(f[2]), f[3])
	case "regain":
		s.node(f[1]).regainStorage(model.DatastoreName(f[2]))
	case "swap": // swap HOST A B: A is back in the report that has B lost
		n := s.node(f[1])
		n.hung[model.DatastoreName(f[2])], n.hung[model.DatastoreName(f[3])] = false, true
		n.notice(lease.Notice{What: lease.NoticeDatastore, Datastore: model.DatastoreName(f[3]), Text: f[3] + " is lost, " + f[2] + " is back"})
	case "unarmed":
		s.node(f[1]).armed = false
	case "fence":
		for i := range w.conf.Datastores {
			if string(w.conf.Datastores[i].Name) == f[1] {
				w.conf.Datastores[i].Fence = model.FenceClass(f[2])
			}
		}
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
	case "die": // die VM CAUSE
		id := model.VMID("vm-" + f[1])
		for _, n := range w.nodes {
			if d := n.doms[id]; d != nil && d.Active {
				n.endDomain(id, StopCause(f[2]))
			}
		}
	case "user-start": // user-start VM HOST: virsh start; the hook lets the guard claim
		s.userStart(f[1], s.node(f[2]))
	case "fail-start": // fail-start VM FAULT TIMES [HOST]; TIMES -1 is for ever, 0 clears
		n, _ := strconv.Atoi(f[3])
		x := &startFault{fault: HypervisorFault(f[2]), left: n}
		if len(f) > 4 {
			x.host = model.HostID(f[4])
		}
		w.faults[model.VMID("vm-"+f[1])] = x
	case "guest": // guest VM silent|answers|ignores-shutdown
		w.mute[model.VMID("vm-"+f[1])] = f[2] == "silent"
		w.stubborn[model.VMID("vm-"+f[1])] = f[2] == "ignores-shutdown"
	case "admin":
		s.admin(f[1:])
	case "config":
		s.config(f[1], f[2:])
	case "loss":
		w.loss, _ = strconv.Atoi(f[1])
	case "replay": // every command once more, on the host it went to
		s.replay()
	case "view":
		s.view(s.node(f[1]))
	default:
		s.t.Fatalf("%s: unknown verb", s.line)
	}
}

func (s *scenario) rule(f []string) {
	w := s.w
	r := rules.Rule{Name: f[0], Kind: rules.OnHosts, VMs: strings.Split(f[2], ","), Hard: true}
	switch f[1] {
	case "apart":
		r.Kind = rules.Apart
	case "together":
		r.Kind = rules.Together
	case "should":
		r.Hard = false
	}
	if len(f) > 3 {
		for _, h := range strings.Split(f[3], ",") {
			r.Hosts = append(r.Hosts, rules.HostWeight{Host: model.HostID(h)})
		}
	}
	w.conf.Rules = append(w.conf.Rules, r)
	w.files[1] = w.conf
	for _, n := range w.nodes {
		n.conf = w.conf
	}
}

func (s *scenario) settings(name string, sets []string) {
	w := s.w
	if w.conf.VMs == nil {
		w.conf.VMs = map[string]VMSettings{}
	}
	x := w.conf.VMs[name]
	for _, set := range sets {
		k, v, _ := strings.Cut(set, "=")
		d, _ := time.ParseDuration(v)
		switch k {
		case "priority":
			x.Priority = model.Priority(v)
		case "infrastructure":
			x.Infrastructure = v == "true"
		case "after":
			x.DependsOn = strings.Split(v, ",")
		case "ready":
			x.Ready = model.ReadyWhen(v)
		case "delay":
			x.Delay = d
		case "timeout":
			x.Timeout = d
		case "requested":
			x.Requested = model.Requested(v)
		case "limits": // limits=RESTARTS/RELOCATIONS
			a, b, _ := strings.Cut(v, "/")
			x.Limits = &AttemptLimits{}
			x.Limits.Restarts, _ = strconv.Atoi(a)
			x.Limits.Relocations, _ = strconv.Atoi(b)
		default:
			s.t.Fatalf("%s: unknown setting", s.line)
		}
	}
	w.conf.VMs[name] = x
	w.files[1] = w.conf
	for _, n := range w.nodes {
		n.conf = w.conf
	}
}

func (s *scenario) agent(what string, n *node) {
	switch what {
	case "kill":
		n.killAgent()
	case "start":
		n.startAgent()
	case "stop":
		n.frozen = true
	case "cont":
		n.thawAgent()
	}
}

func (s *scenario) userStart(name string, n *node) {
	id := model.VMID("vm-" + name)
	for ds, d := range s.w.disks {
		rec, ok := d.locks[model.VMLock(id)]
		if !ok {
			continue
		}
		r := n.claimLock(ds, model.VMLock(id), rec.Epoch, nil)
		if r.Code != lease.CodeOK {
			s.w.logf("%s hook: refused: %s", n.name, r.Text)
			return
		}
		n.guardVMs[id] = &lease.VMStatus{VM: id, Name: name, Home: ds, Epoch: r.Epoch, Phase: lease.PhaseRunning}
		n.doms[id] = &Domain{VM: id, Name: name, Active: true, Memory: 512, CPUs: 1}
		n.notice(lease.Notice{What: lease.NoticeStatus})
		n.step(DomainChanged{*n.doms[id]})
	}
}

func (s *scenario) admin(f []string) { // admin HOST VERB VM [DATASTORE]
	n, ref := s.node(f[0]), &VMRef{Name: f[2]}
	r := AdminRequest{By: "ann", Force: f[len(f)-1] == "force"}
	switch f[1] {
	case "may-start", "may-leave", "may-protect": // what admission control would say
		c := &Consideration{Dry: true}
		switch f[1] {
		case "may-start":
			c.Start = ref
		case "may-leave":
			c.Leave = model.HostID(f[2])
		default:
			c.Protect = &model.ProtectedVM{ID: model.VMID("vm-" + f[2]), Name: f[2], Home: model.DatastoreName(f[3]), Host: n.name, Memory: 512, CPUs: 1}
		}
		r.Consider = c
	case "start":
		r.Start = ref
	case "shutdown":
		r.Shutdown = ref
	case "kill":
		r.Kill = ref
	case "unprotect":
		r.Unprotect = ref
	case "leave": // leave LIMIT|cancel
		limit, err := time.ParseDuration(f[2])
		r.Leave = &LeaveRequest{GuestLimit: limit, Cancel: err != nil}
	case "protect":
		id := model.VMID("vm-" + f[2])
		r.Protect = &model.ProtectedVM{ID: id, Name: f[2], Home: model.DatastoreName(f[3]), Memory: 512, CPUs: 1}
		if n.doms[id] == nil {
			n.doms[id] = &Domain{VM: id, Name: f[2], Active: true, Memory: 512, CPUs: 1}
			n.step(DomainChanged{*n.doms[id]})
		}
	}
	s.w.admin++
	n.step(AdminAsked{ID: s.w.admin, Request: r})
}

// config applies a new cluster file on a host.
func (s *scenario) config(host string, sets []string) {
	w := s.w
	c := w.conf
	c.Version++
	force, may := false, false
	for _, set := range sets {
		k, v, _ := strings.Cut(set, "=")
		switch k {
		case "force":
			force = true
		case "may": // only what admission control would say
			may = true
		case "reserve": // reserve=VM:MiB
			vm, n, _ := strings.Cut(v, ":")
			k, _ := strconv.Atoi(n)
			c.Specs = maps.Clone(c.Specs)
			if c.Specs == nil {
				c.Specs = map[string]placement.VM{}
			}
			c.Specs[vm] = placement.VM{Name: vm, Reservation: placement.Resources{Memory: model.MiB(k)}}
		case "remove": // remove=HOST
			c.Hosts = slices.DeleteFunc(slices.Clone(c.Hosts), func(h ClusterHost) bool { return string(h.Name) == v })
		case "ha":
			c.Enabled = v == "on"
		case "monitoring":
			c.HostMonitoring = v == "on"
		case "unfenced":
			c.Datastores = append([]ClusterDatastore(nil), c.Datastores...)
			for i := range c.Datastores {
				c.Datastores[i].Unfenced = true
			}
		case "memory":
			n, _ := strconv.Atoi(v)
			c.Hosts = append([]ClusterHost(nil), c.Hosts...)
			for i := range c.Hosts {
				c.Hosts[i].Memory = model.MiB(n)
			}
		case "priority":
			vm, p, _ := strings.Cut(v, ":")
			next := map[string]VMSettings{vm: {Priority: model.Priority(p)}}
			for k, x := range c.VMs {
				if k != vm {
					next[k] = x
				}
			}
			c.VMs = next
		case "requested": // requested=VM:STATE
			vm, r, _ := strings.Cut(v, ":")
			c.VMs = maps.Clone(c.VMs)
			x := c.VMs[vm]
			x.Requested = model.Requested(r)
			c.VMs[vm] = x
		case "hostShutdown":
			c.HostShutdown = HostShutdown(v)
		case "dependsOn":
			vm, on, _ := strings.Cut(v, ":")
			next := map[string]VMSettings{vm: {DependsOn: []string{on}}}
			for k, x := range c.VMs {
				if k != vm {
					next[k] = x
				}
			}
			c.VMs = next
		case "maintenance": // maintenance=HOST, of no other; maintenance= of none
			c.Hosts = append([]ClusterHost(nil), c.Hosts...)
			for i := range c.Hosts {
				c.Hosts[i].Maintenance = string(c.Hosts[i].Name) == v
			}
		case "rules": // rules=none
			c.Rules = nil
		default:
			s.t.Fatalf("%s: unknown setting", s.line)
		}
	}
	c.File = []byte(fmt.Sprint(c.Version))
	w.files[c.Version] = c
	offer := &ConfigOffer{Version: c.Version, File: c.File}
	r := AdminRequest{Apply: offer, Force: force, By: "ann"}
	if may {
		r = AdminRequest{Consider: &Consideration{Dry: true, Apply: offer}}
	}
	w.admin++
	s.node(host).step(AdminAsked{ID: w.admin, Request: r})
	if w.conf.Admission.Kind == "" {
		w.conf = c
		return
	}
	w.run(100 * time.Millisecond)
	if may || strings.HasPrefix(w.answer[w.admin], "ok=false") { // nobody has it
		w.conf.Version = c.Version
		return
	}
	w.conf = c
}

func (s *scenario) replay() {
	for _, c := range s.w.sent {
		s.w.nodes[c.to].step(MessageReceived{From: c.from, Message: Message{Command: &c.cmd}})
	}
}

func (s *scenario) view(n *node) {
	v := n.m.View(s.w.now)
	if v.Admission != nil {
		s.w.logf("  room %s %s %s", v.Admission.Policy, v.Admission.Answer, strings.Join(v.Admission.Warnings, "; "))
	}
	s.w.logf("  primary %q age %.1fs ha %v monitoring %v version %d", v.Primary, v.Age.Seconds(), v.HA, v.Monitoring, v.Version)
	for _, h := range v.Hosts {
		s.w.logf("  host %s %s %s %s", h.Name, h.Role, h.State, h.Reason)
	}
	for _, x := range v.VMs {
		s.w.logf("  vm %s %s on %q protected %v attempts %d %s", x.Name, x.State, x.Host, x.Protected, x.Attempts, x.Reason)
		if x.Order > 0 || x.Ready != "" || x.Origin != "" {
			s.w.logf("    turn %d, %s, was on %q", x.Order, x.Ready, x.Origin)
		}
	}
	for _, d := range v.Datastores {
		s.w.logf("  datastore %s owner %q term %d %s", d.Name, d.Owner, d.Term, d.Problem)
	}
}

// expect VM on HOST | VM down | VM STATE [REASON…] | primary HOST | version N
func (s *scenario) expect(f []string) {
	w := s.w
	switch f[0] {
	case "primary":
		if p := w.primaries(); strings.Join(p, ",") != f[1] && f[1] != "none" || f[1] == "none" && len(p) > 0 {
			s.fail("primaries: %v", p)
		}
		return
	case "version":
		for _, name := range w.names {
			if n := w.nodes[name]; n.m != nil && fmt.Sprint(n.m.conf.Version) != f[1] {
				s.fail("%s has version %d", name, n.m.conf.Version)
			}
		}
		return
	case "host": // expect host HOST STATE
		for _, h := range s.primaryView().Hosts {
			if string(h.Name) == f[1] && string(h.State) != f[2] {
				s.fail("%s is %s (%s)", f[1], h.State, h.Reason)
			}
		}
		return
	}
	on := w.runningOn(model.VMID("vm-" + f[0]))
	switch f[1] {
	case "on":
		if strings.Join(on, ",") != f[2] {
			s.fail("runs on %v", on)
		}
	case "down":
		if len(on) > 0 {
			s.fail("runs on %v", on)
		}
	default:
		for _, v := range s.primaryView().VMs {
			if v.Name != f[0] {
				continue
			}
			want := f[1]
			if want == "protected" && v.Protected || want == "unprotected" && !v.Protected {
				return
			}
			if string(v.State) != want || !strings.Contains(v.Reason, strings.Join(f[2:], " ")) {
				s.fail("is %s, protected %v, because %q", v.State, v.Protected, v.Reason)
			}
			return
		}
		s.fail("is not in the view")
	}
}

func (s *scenario) primaryView() ClusterView {
	p := s.w.primaries()
	if len(p) == 0 {
		s.t.Fatalf("%s: no primary", s.line)
	}
	for _, name := range p {
		if n := s.w.nodes[model.HostID(name)]; !n.cut {
			return n.m.View(s.w.now)
		}
	}
	return s.w.nodes[model.HostID(p[0])].m.View(s.w.now)
}
