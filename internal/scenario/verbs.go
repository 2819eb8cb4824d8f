package scenario

import (
	"strconv"
	"strings"

	"hanok.dev/hanok/internal/model"
)

func power(op PowerOp) verb {
	return verb{string(op) + " HOST", func(a *args) Action { return Power{Op: op, Host: a.host()} }}
}

func parseFreeze(a *args) Action {
	p := Power{Op: Freeze, Host: a.host()}
	if a.peek() == "for" {
		a.next("for")
		if p.For = a.duration("the duration"); p.For == 0 {
			a.fail("the duration must be more than 0")
		}
	}
	return p
}

func process(op ProcessOp) verb {
	return verb{string(op) + " agent|guard|libvirtd HOST", func(a *args) Action {
		name := a.oneOf("the daemon", "agent", "guard", "libvirtd")
		return Process{Op: op, Name: name, Host: a.host()}
	}}
}

func parseCut(a *args) Action {
	c := Cut{Host: a.host(), Direction: Both}
	isDirection := func(w string) bool {
		return w == string(In) || w == string(Out) || w == string(Both)
	}
	var networks []string
	for _, n := range a.cluster.Networks {
		networks = append(networks, n.Name)
	}
	if len(a.words) > 0 && !isDirection(a.peek()) {
		c.Network = a.next("the network")
		a.known("network", c.Network, networks)
	}
	if len(a.words) > 0 {
		c.Direction = Direction(a.oneOf("the direction", string(In), string(Out), string(Both)))
	}
	return c
}

func parseStorage(a *args) Action {
	s := StorageFault{Host: a.host()}
	s.Datastore = model.DatastoreName(a.next("the datastore"))
	var names []string
	for _, d := range a.cluster.DatastoresOf(s.Host) {
		names = append(names, string(d.Name))
	}
	a.known("datastore of "+string(s.Host), string(s.Datastore), names)
	s.Fault = Fault(a.oneOf("the fault", string(FaultNone), string(FaultHang), string(FaultLost), string(FaultSlow), string(FaultFull), string(FaultReadonly),
		string(FaultHangHard), string(FaultFlaky), string(FaultCached), string(FaultUnanswered), string(FaultStale)))
	return s
}

func parsePartition(a *args) Action {
	var all []string
	for len(a.words) > 0 {
		all = append(all, a.next("the hosts"))
	}
	p := Partition{}
	seen := map[model.HostID]bool{}
	for group := range strings.SplitSeq(strings.Join(all, " "), "|") {
		var hosts []model.HostID
		for name := range strings.FieldsFuncSeq(group, func(r rune) bool { return r == ',' || r == ' ' }) {
			h := a.hostNamed(name)
			if seen[h] {
				a.fail("%s is named twice", h)
			}
			seen[h] = true
			hosts = append(hosts, h)
		}
		if len(hosts) == 0 {
			a.fail("a group has no host")
		}
		p.Groups = append(p.Groups, hosts)
	}
	if len(p.Groups) < 2 {
		a.fail("a partition needs two groups")
	}
	return p
}

func parseVM(a *args) Action {
	ops := []string{string(VMStop), string(VMStart), string(VMKill), string(VMShutdown), string(VMRestore), string(VMCrash), string(VMHang), string(VMMigrate), string(VMFailStart), string(VMDelete), string(VMSet), string(VMByHand)}
	v := VM{Op: VMOp(a.oneOf("the operation", ops...))}
	v.VM = a.vm()
	switch v.Op {
	case VMMigrate, VMByHand:
		v.Host = a.host()
	case VMFailStart:
		n, err := strconv.Atoi(a.next("the number of starts"))
		if err != nil || n < 1 {
			a.fail("the number of starts must be 1 or more")
		}
		v.Count = n
	case VMStart:
		v.Force = a.forced()
	case VMSet:
		v.Field, v.Value = a.next("the field"), a.next("the value")
		v.Force = a.forced()
	}
	return v
}

func parseConfig(a *args) Action {
	field, value, ok := strings.Cut(a.next("FIELD=VALUE"), "=")
	if ok && value == "" && len(a.words) > 0 && a.words[0].quoted { // FIELD="a value"
		value = a.next("the value")
	}
	if a.err == nil && (!ok || field == "") {
		a.fail("write the field, = and the value without spaces")
	}
	return Configure{Field: field, Value: value, Force: a.forced()}
}

func parseHost(a *args) Action {
	op := a.oneOf("the operation", "maintenance", "stop-vms", "resume")
	h := a.host()
	if op != "maintenance" {
		l := Leave{Host: h, Cancel: op == "resume"}
		if !l.Cancel {
			l.Force = a.forced()
		}
		return l
	}
	return Maintenance{Host: h, On: a.oneOf("the state", "on", "off") == "on", Force: a.forced()}
}

// forced takes the word "force", if it is there.
func (a *args) forced() bool {
	if a.peek() != "force" {
		return false
	}
	a.next("force")
	return true
}

func parseExpect(a *args) Action {
	var e Expect
	switch a.peek() {
	case "primary":
		a.next("primary")
		e.Condition, e.Host = Primary, a.host()
	case "event":
		a.next("event")
		e.Condition, e.Because = Told, a.next("the text")
	case "power":
		a.next("power")
		e.Condition, e.Host = PowerIs, a.host()
		e.State = model.HostState(a.oneOf("the state", "on", "off"))
	case "host":
		a.next("host")
		e.Condition, e.Host = HostState, a.host()
		e.State = model.HostState(a.oneOf("the state", hostStates...))
	default:
		e = expectVM(a)
	}
	for len(a.words) > 0 && a.err == nil {
		switch a.oneOf("the condition", "within", "because") {
		case "within":
			e.Within = a.duration("the time")
		case "because":
			if e.Because = a.next("the reason"); e.Because == "" {
				a.fail("the reason is empty")
			}
		}
	}
	return e
}

func expectVM(a *args) Expect {
	var e Expect
	if a.peek() == "all" {
		a.next("all")
		e.All = true
	} else {
		e.VM = a.vm()
	}
	e.Condition = Condition(a.oneOf("the state", string(OnHost), string(NotOn), string(Running), string(Down), string(Protected), string(Unprotected), string(Frozen)))
	if e.Condition == OnHost || e.Condition == NotOn {
		e.Host = a.host()
	}
	return e
}

func parseSuspend(a *args) Action {
	p := Power{Op: Suspend, Host: a.host()}
	a.oneOf("the word", "for")
	if p.For = a.duration("the duration"); p.For == 0 {
		a.fail("the duration must be more than 0")
	}
	return p
}

func parseDatastore(a *args) Action {
	var d Datastore
	d.Datastore = model.DatastoreName(a.next("the datastore"))
	var names []string
	for _, x := range a.cluster.Datastores {
		names = append(names, string(x.Name))
	}
	a.known("datastore", string(d.Datastore), names)
	d.Op = DatastoreOp(a.oneOf("the operation", string(DatastoreSnapshot), string(DatastoreRollback), string(DatastoreDelete), string(DatastoreRepair)))
	return d
}

func parseStall(a *args) Action {
	s := Stall{Name: a.oneOf("the daemon", "agent", "guard"), Host: a.host()}
	a.oneOf("the word", "after")
	s.After = a.number("the number of things done", 1, 1_000_000)
	a.oneOf("the word", "for")
	s.For = a.duration("the duration")
	return s
}

func parseSlow(a *args) Action {
	s := Slow{Host: a.host()}
	if a.peek() == "off" {
		a.next("off")
		return s
	}
	s.By = a.duration("the duration")
	return s
}

func parseClock(a *args) Action {
	return Clock{Host: a.host(), PPM: int64(a.number("the rate", -100_000, 100_000))}
}

func parseNetwork(a *args) Action {
	n := Network{What: a.oneOf("the quality", "loss", "duplicate", "latency")}
	if n.What == "latency" {
		n.Latency = a.duration("the latency")
		return n
	}
	n.Permille = a.number("the number of datagrams in a thousand", 0, 1000)
	return n
}

func (a *args) number(what string, least, most int) int {
	w := a.next(what)
	n, err := strconv.Atoi(w)
	if a.err == nil && (err != nil || n < least || n > most) {
		a.fail("%s must be from %d to %d", what, least, most)
	}
	return n
}

var hostStates = []string{
	string(model.HostUninitialized), string(model.HostElection), string(model.HostPrimary), string(model.HostConnected),
	string(model.HostPartitioned), string(model.HostIsolated), string(model.HostAgentUnreachable), string(model.HostFailed),
	string(model.HostMaintenance), string(model.HostQuarantine), string(model.HostStandby), string(model.HostDisconnected),
	string(model.HostInitError),
}
