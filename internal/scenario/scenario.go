package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/tools/txtar"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
)

// Bounds of what is read.
const (
	// MaxSize is the largest scenario file: a cluster file and room for the rest.
	MaxSize = config.MaxSize + 4<<20
	// MaxSteps bounds the script.
	MaxSteps = 100_000
)

// The names of the files every scenario has.
const (
	clusterName = "cluster.yaml"
	scriptName  = "script"
)

// LabFile is the file of an archive that says why the lab cannot run it.
const LabFile = "lab"

// Scenario is a cluster and what happens to it.
type Scenario struct {
	// Comment is the text before the first file.
	Comment string
	Cluster *config.Cluster
	// Steps in the order of time; steps of one time in the order of the script.
	Steps []Step
	// Files are the archive's other files.
	Files map[string][]byte
}

// End is the time of the last step, its waiting included.
func (s *Scenario) End() time.Duration {
	var end time.Duration
	for _, st := range s.Steps {
		at := st.At
		switch a := st.Action.(type) {
		case Expect:
			at += a.Within
		case Power:
			at += a.For
		case Stall:
			at += a.For
		}
		end = max(end, at)
	}
	return end
}

// Step is one line of the script.
type Step struct {
	// Line is the number of the line in the scenario file, from 1.
	Line int
	// At is the time since the start.
	At time.Duration
	// Text is the line without its time and comment.
	Text string
	// Action is what to do: one of the types of this package.
	Action Action
}

// Action is one of Power, Cut, Heal, StorageFault, Partition, Process, VM,
// Configure, Maintenance, Leave, Datastore, Stall, Slow, Clock, Network and Expect.
type Action interface{ action() }

// PowerOp is a change of a host's power or running.
type PowerOp string

// The operations of Power.
const (
	PowerOff PowerOp = "power-off" // power is lost at once
	PowerOn  PowerOp = "power-on"
	Reboot   PowerOp = "reboot"   // power is lost and comes back
	Shutdown PowerOp = "shutdown" // in good order
	Freeze   PowerOp = "freeze"   // the host stands still; its network answers
	Thaw     PowerOp = "thaw"
	Suspend  PowerOp = "suspend" // the machine sleeps; its clock goes on
)

// Power changes a host's power or running.
type Power struct {
	Op   PowerOp
	Host model.HostID
	// For, of Freeze and Suspend: it ends after this long; 0 is never.
	For time.Duration
}

// Direction of a cut, seen from the host.
type Direction string

// The directions.
const (
	In   Direction = "in"  // the host hears nothing
	Out  Direction = "out" // nobody hears the host
	Both Direction = "both"
)

// Cut severs a host from a network.
type Cut struct {
	Host model.HostID
	// Network is its name; empty means all networks.
	Network   string
	Direction Direction
}

// Heal undoes all cuts of a host, and a partition that it is in.
type Heal struct{ Host model.HostID }

// Fault is a fault of a storage path.
type Fault string

// The faults of StorageFault.
const (
	FaultNone     Fault = "none" // healed
	FaultHang     Fault = "hang"
	FaultLost     Fault = "lost"
	FaultSlow     Fault = "slow"
	FaultFull     Fault = "full"
	FaultReadonly Fault = "readonly"
	// FaultHangHard: what was asked for takes effect after healing, even if
	// who asked is dead.
	FaultHangHard Fault = "hang-hard"
	// FaultFlaky: errors at random, with and without effect, some of them late.
	FaultFlaky Fault = "flaky"
	// FaultCached: listings are some seconds old, as on NFS that caches.
	FaultCached Fault = "cached"
	// FaultUnanswered: calls take effect at once, and are answered only when the
	// path answers again, with what was true then.
	FaultUnanswered Fault = "unanswered"
	// FaultStale: the agent reads heartbeats as they were when it began, as from a
	// cache that nobody empties; all else goes to the device.
	FaultStale Fault = "stale"
)

// StorageFault sets the state of one host's path to one datastore.
type StorageFault struct {
	Host      model.HostID
	Datastore model.DatastoreName
	Fault     Fault
}

// Partition cuts the networks so that only hosts of one group hear each other.
// Hosts in no group are not touched.
type Partition struct{ Groups [][]model.HostID }

// ProcessOp is what is done to a daemon.
type ProcessOp string

// The operations of Process.
const (
	Kill ProcessOp = "kill" // SIGKILL; whatever supervises it may start it again
	Stop ProcessOp = "stop" // SIGSTOP
	Cont ProcessOp = "cont" // SIGCONT
)

// Process signals a daemon of a host: agent, guard or libvirtd.
type Process struct {
	Op   ProcessOp
	Name string
	Host model.HostID
}

// VMOp is something done to or happening in a VM.
type VMOp string

// The operations of VM.
const (
	VMStop      VMOp = "stop"     // its user powers it off
	VMKill      VMOp = "kill"     // its user ends it at once
	VMShutdown  VMOp = "shutdown" // the guest shuts itself down
	VMRestore   VMOp = "restore"  // what delete took is there again
	VMStart     VMOp = "start"    // its user starts it
	VMCrash     VMOp = "crash"    // its process dies
	VMHang      VMOp = "hang"     // the guest stops answering
	VMMigrate   VMOp = "migrate"
	VMFailStart VMOp = "fail-start" // the next N starts fail
	VMDelete    VMOp = "delete"
	VMSet       VMOp = "set"     // change a field of the cluster file
	VMByHand    VMOp = "by-hand" // somebody starts it with virsh on Host
)

// VM acts on one VM.
type VM struct {
	Op VMOp
	VM string
	// Host, of VMMigrate: where to; of VMByHand: where.
	Host model.HostID
	// Count, of VMFailStart: how many starts fail.
	Count int
	// Field and Value, of VMSet; use them with [config.Cluster.With] as
	// vms[VM].Field.
	Field, Value string
	// Force, of VMStart and VMSet: though admission control refuses it.
	Force bool
}

// Configure changes a field of the cluster file by [config.Cluster.With].
type Configure struct {
	Field, Value string
	// Force: though admission control refuses it.
	Force bool
}

// DatastoreOp is something done to a datastore itself.
type DatastoreOp string

// The operations of Datastore.
const (
	DatastoreSnapshot DatastoreOp = "snapshot" // keep a copy
	DatastoreRollback DatastoreOp = "rollback" // go back to the copy
	DatastoreDelete   DatastoreOp = "delete"   // remove the cluster's directory
	DatastoreRepair   DatastoreOp = "repair"   // hanok datastore repair
)

// Datastore acts on a datastore, for all hosts.
type Datastore struct {
	Op        DatastoreOp
	Datastore model.DatastoreName
}

// Stall stops a daemon in the middle of its work: after so many more things
// that it does, for a while.
type Stall struct {
	Name  string // agent or guard
	Host  model.HostID
	After int
	For   time.Duration
}

// Slow makes a host's daemons take up to By for each thing; 0 ends it.
type Slow struct {
	Host model.HostID
	By   time.Duration
}

// Clock makes a host's clock run fast or slow by so many parts in a million.
type Clock struct {
	Host model.HostID
	PPM  int64
}

// Network changes how all datagrams travel.
type Network struct {
	// What is loss, duplicate or latency.
	What string
	// Permille of datagrams, of loss and duplicate.
	Permille int
	// Latency is added to every packet.
	Latency time.Duration
}

// Maintenance puts a host into maintenance mode or takes it out.
type Maintenance struct {
	Host model.HostID
	On   bool
	// Force: though admission control refuses it.
	Force bool
}

// Leave has a host stop its VMs before it shuts down, or calls that off.
type Leave struct {
	Host   model.HostID
	Cancel bool
	// Force: though admission control refuses it.
	Force bool
}

// Condition is what is expected of VMs or hosts.
type Condition string

// The conditions of Expect.
const (
	OnHost    Condition = "on"     // runs there, and only there
	NotOn     Condition = "not-on" // runs once, elsewhere
	Running   Condition = "running"
	Down      Condition = "down"
	Protected Condition = "protected"
	// Unprotected: shown as not protected.
	Unprotected Condition = "unprotected"
	Frozen      Condition = "frozen"
	Primary     Condition = "primary" // the host is the only primary
	HostState   Condition = "host"    // the host is shown in State
	PowerIs     Condition = "power"   // the host is on or off, State says which
	Told        Condition = "event"   // an event whose text holds Because was told
)

// Expect states what must hold at the time of the step, or become true within
// some time after it.
type Expect struct {
	// VM is the VM's name; empty with All, and for conditions on hosts.
	VM string
	// All means every VM of the cluster that is to run.
	All       bool
	Condition Condition
	// Host of OnHost, NotOn, Primary and HostState.
	Host model.HostID
	// State of HostState.
	State model.HostState
	// Within is how long it may take; 0 is now.
	Within time.Duration
	// Because must be part of the reason that is shown; empty is any.
	Because string
}

func (Power) action()        {}
func (Cut) action()          {}
func (Heal) action()         {}
func (StorageFault) action() {}
func (Partition) action()    {}
func (Process) action()      {}
func (VM) action()           {}
func (Configure) action()    {}
func (Maintenance) action()  {}
func (Leave) action()        {}
func (Datastore) action()    {}
func (Stall) action()        {}
func (Slow) action()         {}
func (Clock) action()        {}
func (Network) action()      {}
func (Expect) action()       {}

// Load reads a scenario file.
func Load(path string) (*Scenario, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	if st.Size() > MaxSize {
		return nil, fmt.Errorf("scenario %s has %d bytes; at most %d are read", path, st.Size(), MaxSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	s, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", path, err)
	}
	return s, nil
}

// Parse reads a scenario. All that is wrong is reported together, joined, each
// with its line number in the archive.
func Parse(data []byte) (*Scenario, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%d bytes; at most %d are read", len(data), MaxSize)
	}
	ar := txtar.Parse(data)
	s := &Scenario{Comment: string(ar.Comment), Files: map[string][]byte{}}
	var script []byte
	seen := map[string]bool{}
	for _, f := range ar.Files {
		if seen[f.Name] {
			return nil, fmt.Errorf("file %q is there twice; remove one", f.Name)
		}
		seen[f.Name] = true
		switch f.Name {
		case clusterName:
			c, err := config.Parse(f.Data)
			if err != nil {
				return nil, fmt.Errorf("%s (begins after line %d): %w", clusterName, lineOf(data, f.Name), err)
			}
			s.Cluster = c
		case scriptName:
			script = f.Data
		default:
			s.Files[f.Name] = f.Data
		}
	}
	for _, name := range []string{clusterName, scriptName} {
		if !seen[name] {
			return nil, fmt.Errorf("no file %q; begin it with a line '-- %s --'", name, name)
		}
	}
	var problems []error
	s.Steps, problems = parseScript(s.Cluster, script, lineOf(data, scriptName))
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return int(min(max(a.At-b.At, -1), 1)) })
	if err := s.checkChanges(); err != nil {
		return nil, err
	}
	return s, nil
}

// Change is the field of the cluster file that the action sets, for
// [config.Cluster.With]; false when it sets none.
func Change(a Action) (field, value string, ok bool) {
	switch x := a.(type) {
	case Configure:
		return x.Field, x.Value, true
	case VM:
		if x.Op == VMSet {
			return "vms[" + x.VM + "]." + x.Field, x.Value, true
		}
	}
	return "", "", false
}

// checkChanges makes the changes of the cluster file one after the other, as
// the run will, so that a wrong one shows before an hour has passed.
func (s *Scenario) checkChanges() error {
	var problems []error
	c := s.Cluster
	for _, st := range s.Steps {
		field, value, ok := Change(st.Action)
		if !ok {
			continue
		}
		next, err := c.With(field, value)
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", st.Line, err))
			continue
		}
		c = next
	}
	return errors.Join(problems...)
}

// lineOf is the number of the line that begins a file of the archive.
func lineOf(data []byte, name string) int {
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "-- "); ok {
			if file, ok := strings.CutSuffix(rest, " --"); ok && strings.TrimSpace(file) == name {
				return n
			}
		}
	}
	return 0
}

// Victims names the host or the VM whose instances an action may cost; both
// empty when it costs none.
func Victims(a Action) (model.HostID, string) {
	switch a := a.(type) {
	case Power:
		if a.Op != PowerOn && a.Op != Thaw {
			return a.Host, ""
		}
	case StorageFault:
		return a.Host, ""
	case Cut:
		return a.Host, ""
	case VM:
		if a.Op == VMCrash {
			return "", a.VM
		}
	}
	return "", ""
}
