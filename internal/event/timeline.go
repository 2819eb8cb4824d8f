package event

import (
	"sort"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Timeline is the story of one failover, made from its events. All seconds are
// counted from the last heartbeat, or from the first event of a failover that
// began without one (a VM that crashed on a healthy host, or a start of the
// whole cluster, which counts from the election of its primary).
type Timeline struct {
	Failover string `json:"failover"`
	// Cause tells what the failover is about.
	Cause Cause `json:"kind"`
	// Host is the host that failed; empty when only a VM did.
	Host model.HostID `json:"host,omitempty"`
	// By is the host whose clock counts: the primary that gave the verdict.
	By model.HostID `json:"by"`
	// Began is the origin by By's wall clock, for people.
	Began time.Time `json:"began"`
	// Steps are what all VMs of the failover share: last heartbeat, silence,
	// verdict.
	Steps []Step       `json:"steps"`
	VMs   []VMTimeline `json:"vms"`
	// Done: the failover is over. LastRunning is when the last VM ran again,
	// LastAlive when the last guest answered; nil until all did.
	Done        bool     `json:"done"`
	LastRunning *float64 `json:"lastRunning,omitempty"`
	LastAlive   *float64 `json:"lastAlive,omitempty"`
}

// Cause is what VMs had to be restarted for.
type Cause string

// The causes of a failover.
const (
	CauseHost  Cause = "host failure"
	CauseVM    Cause = "VM failure"
	CauseStart Cause = "cluster start" // all hosts had been down
)

// VMTimeline is one VM's part of a failover.
type VMTimeline struct {
	VM   string       `json:"vm"`
	From model.HostID `json:"from,omitempty"`
	To   model.HostID `json:"to,omitempty"`
	// Attempts counts the starts that were issued.
	Attempts int `json:"attempts"`
	// Steps are the steps of the last attempt, in order, after Timeline.Steps.
	Steps []Step `json:"steps"`
	// Outcome is running, alive, starting, waiting or failed.
	Outcome string `json:"outcome"`
	// Reason is why it does not run.
	Reason string `json:"reason,omitempty"`
}

// The outcomes of a VM in a failover.
const (
	OutcomeWaiting  = "waiting"
	OutcomeStarting = "starting"
	OutcomeFailed   = "failed"
	OutcomeRunning  = "running"
	OutcomeAlive    = "alive"
)

// Step is one phase of a failover.
type Step struct {
	Kind Kind `json:"kind"`
	// Since counts seconds from the origin, Delta from the previous step.
	Since float64 `json:"since"`
	Delta float64 `json:"delta"`
	// Approximate: reported by another host than Timeline.By, so placed by the
	// two hosts' wall clocks, which need not agree.
	Approximate bool              `json:"approximate,omitempty"`
	By          model.HostID      `json:"by"`
	Text        string            `json:"text"`
	Cause       string            `json:"cause,omitempty"`
	Evidence    map[string]string `json:"evidence,omitempty"`
}

// Summary is one line of a list of failovers.
type Summary struct {
	Failover string       `json:"failover"`
	Cause    Cause        `json:"kind"`
	Host     model.HostID `json:"host,omitempty"`
	Began    time.Time    `json:"began"`
	VMs      int          `json:"vms"`
	Running  int          `json:"running"`
	Done     bool         `json:"done"`
	// LastRunning as in Timeline.
	LastRunning *float64 `json:"lastRunning,omitempty"`
}

// Failovers lists the failovers that events speak of, oldest first.
func Failovers(events []Event) []Summary {
	var order []string
	groups := map[string][]Event{}
	for _, e := range events {
		if e.Failover == "" {
			continue
		}
		if groups[e.Failover] == nil {
			order = append(order, e.Failover)
		}
		groups[e.Failover] = append(groups[e.Failover], e)
	}
	out := make([]Summary, 0, len(order))
	for _, id := range order {
		t, _ := Build(groups[id], id)
		s := Summary{Failover: id, Cause: t.Cause, Host: t.Host, Began: t.Began, VMs: len(t.VMs), Done: t.Done, LastRunning: t.LastRunning}
		for _, v := range t.VMs {
			if v.Outcome == OutcomeRunning || v.Outcome == OutcomeAlive {
				s.Running++
			}
		}
		out = append(out, s)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Began.Before(out[j].Began) })
	return out
}

// Build makes the timeline of one failover from events in any order; false
// when none of them belongs to it.
func Build(events []Event, failover string) (Timeline, bool) {
	b := builder{t: Timeline{Failover: failover, Cause: CauseVM, Steps: []Step{}, VMs: []VMTimeline{}}}
	for _, e := range events {
		if e.Failover == failover && failover != "" {
			b.events = append(b.events, e)
		}
	}
	if len(b.events) == 0 {
		return b.t, false
	}
	b.reference()
	sort.SliceStable(b.events, func(i, j int) bool {
		si, sj := b.since(b.events[i]), b.since(b.events[j])
		if si != sj {
			return si < sj
		}
		return phaseOrder[b.events[i].Kind] < phaseOrder[b.events[j].Kind]
	})
	for _, e := range b.events {
		b.add(e)
	}
	b.finish()
	return b.t, true
}

var phaseOrder = map[Kind]int{
	ClusterStart: 1, LastHeartbeat: 1, Silence: 2, Verdict: 3, VMDown: 4, StartIssued: 5,
	LockTaken: 6, DomainRunning: 7, VMUp: 8, GuestAlive: 9, FailoverDone: 10,
}

type builder struct {
	t      Timeline
	events []Event
	origin Event
	index  map[string]int
}

// reference chooses the clock that counts and the origin on it.
func (b *builder) reference() {
	ref := b.events[0]
	rank := func(e Event) int {
		switch e.Kind {
		case Verdict, ClusterStart:
			return 3
		case StartIssued:
			return 2
		case LastHeartbeat, Silence:
			return 1
		}
		return 0
	}
	for _, e := range b.events {
		if rank(e) > rank(ref) {
			ref = e
		}
	}
	b.t.By = ref.By
	found := false
	for _, e := range b.events {
		if e.By != ref.By {
			continue
		}
		last, had := begins(e.Kind), found && begins(b.origin.Kind)
		switch {
		case !found, last && !had, last == had && e.At < b.origin.At:
			b.origin, found = e, true
		}
	}
	b.t.Began = b.origin.Wall
}

// begins tells whether a kind of event is the origin of a failover.
func begins(k Kind) bool { return k == LastHeartbeat || k == ClusterStart }

// since is the time from the origin to e: by the clock that counts, or by wall
// clocks when another host reported e.
func (b *builder) since(e Event) time.Duration {
	if e.By == b.t.By {
		return e.At - b.origin.At
	}
	return e.Wall.Sub(b.origin.Wall)
}

func (b *builder) step(e Event, before []Step) Step {
	s := Step{Kind: e.Kind, Since: seconds(b.since(e)), Approximate: e.By != b.t.By,
		By: e.By, Text: e.Text, Cause: e.Cause, Evidence: e.Evidence}
	if n := len(before); n > 0 {
		s.Delta = round(s.Since - before[n-1].Since)
	}
	return s
}

// seconds rounds to milliseconds: finer figures would only pretend.
func seconds(d time.Duration) float64 {
	return float64(d.Round(time.Millisecond)/time.Millisecond) / 1000
}

func round(f float64) float64 { return seconds(time.Duration(f * float64(time.Second))) }

func (b *builder) vm(name string) *VMTimeline {
	if b.index == nil {
		b.index = map[string]int{}
	}
	i, ok := b.index[name]
	if !ok {
		i = len(b.t.VMs)
		b.index[name] = i
		b.t.VMs = append(b.t.VMs, VMTimeline{VM: name, Steps: []Step{}, Outcome: OutcomeWaiting})
	}
	return &b.t.VMs[i]
}

func (b *builder) add(e Event) {
	switch e.Kind {
	case ClusterStart:
		b.t.Cause = CauseStart
		b.t.Steps = append(b.t.Steps, b.step(e, b.t.Steps))
		return
	case LastHeartbeat, Silence, Verdict:
		if e.VM == "" {
			b.t.Cause = CauseHost
			if b.t.Host == "" {
				b.t.Host = e.Host
			}
			b.t.Steps = append(b.t.Steps, b.step(e, b.t.Steps))
			return
		}
	case FailoverDone:
		b.t.Done = true
		return
	}
	if e.VM == "" {
		return
	}
	v := b.vm(e.VM)
	last := v.Steps
	if len(last) == 0 {
		last = b.t.Steps
	}
	step := b.step(e, last)
	switch e.Kind {
	case VMDown:
		v.From = e.Host
		if len(b.t.Steps) > 0 {
			return // it follows from the verdict
		}
	case StartIssued:
		v.Attempts++
		v.To, v.Outcome, v.Reason = e.Host, OutcomeStarting, ""
		v.Steps = nil // only the last attempt is told step by step
	case DomainRunning:
		v.Outcome = OutcomeRunning
		if e.Host != "" {
			v.To = e.Host
		}
	case GuestAlive:
		v.Outcome = OutcomeAlive
	case RestartFailed:
		v.Outcome, v.Reason = OutcomeFailed, reason(e)
	case RestartPending, RestartOrder:
		if v.Outcome == OutcomeRunning {
			return // it runs, and others waited for it
		}
		v.Outcome, v.Reason = OutcomeWaiting, reason(e)
		return
	case LockTaken:
	default:
		return
	}
	v.Steps = append(v.Steps, step)
}

func reason(e Event) string {
	if e.Cause != "" {
		return e.Cause
	}
	return e.Text
}

func (b *builder) finish() {
	sort.SliceStable(b.t.VMs, func(i, j int) bool { return b.t.VMs[i].VM < b.t.VMs[j].VM })
	var running, alive *float64
	for i := range b.t.VMs {
		v := &b.t.VMs[i]
		if v.From == "" {
			v.From = b.t.Host
		}
		running = later(running, v.find(DomainRunning), i == 0)
		alive = later(alive, v.find(GuestAlive), i == 0)
	}
	b.t.LastRunning, b.t.LastAlive = running, alive
}

// later is the later of two, nil as soon as one is missing.
func later(a, b *float64, first bool) *float64 {
	switch {
	case first:
		return b
	case a == nil || b == nil:
		return nil
	case *b > *a:
		return b
	}
	return a
}

func (v *VMTimeline) find(k Kind) *float64 {
	for i := range v.Steps {
		if v.Steps[i].Kind == k {
			return &v.Steps[i].Since
		}
	}
	return nil
}

// BeginsFailover reports whether events of this kind are among the first of a
// failover, so that the newest of them names the newest failover.
func BeginsFailover(k Kind) bool {
	switch k {
	case ClusterStart, LastHeartbeat, Silence, Verdict, VMDown:
		return true
	}
	return false
}
