package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Times of looking at a lock.
const (
	// slotLook is the pause between reads of the slots.
	slotLook = 250 * time.Millisecond
	// storeLimit bounds one step on a datastore, which may hang.
	storeLimit = 5 * time.Second
	// forceLimit bounds a forced release: the guard waits for a lease to end.
	forceLimit = 2 * time.Minute
)

func newLock(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "lock", Short: "Look at a VM's lock, and break it in an emergency"}
	cmd.AddCommand(newLockShow(a), newLockRelease(a))
	return cmd
}

// evidence is all that is known of a lock.
type evidence struct {
	VM        string              `json:"vm"`
	ID        model.VMID          `json:"id"`
	Datastore model.DatastoreName `json:"datastore"`
	// Records are those kept, oldest first; Holder may run the VM by the last.
	Records []model.LockRecord `json:"records"`
	Damage  string             `json:"damage,omitempty"`
	Holder  model.HostID       `json:"holder,omitempty"`
	// Slots are the heartbeat slots, watched for WatchedSeconds.
	Slots          []slotEvidence `json:"slots"`
	WatchedSeconds float64        `json:"watchedSeconds"`
	// HolderState is what the cluster thinks of the holder.
	HolderState  model.HostState `json:"holderState,omitempty"`
	HolderReason string          `json:"holderReason,omitempty"`
}

type slotEvidence struct {
	Host        model.HostID `json:"host"`
	Valid       bool         `json:"valid"`
	Boot        model.BootID `json:"boot,omitempty"`
	Incarnation uint64       `json:"incarnation,omitempty"`
	Sequence    uint64       `json:"sequence,omitempty"`
	Flags       []string     `json:"flags,omitempty"`
	// Changed: it was written while it was watched. Otherwise it is at least
	// UnchangedSeconds old.
	Changed          bool    `json:"changed"`
	UnchangedSeconds float64 `json:"unchangedSeconds"`

	digest string
	first  time.Duration
}

func (e *evidence) highest() model.LockRecord {
	if len(e.Records) == 0 {
		return model.LockRecord{}
	}
	return e.Records[len(e.Records)-1]
}

func (e *evidence) slot(h model.HostID) *slotEvidence {
	for i := range e.Slots {
		if e.Slots[i].Host == h {
			return &e.Slots[i]
		}
	}
	return nil
}

func newLockShow(a *app) *cobra.Command {
	var watch time.Duration
	var home string
	cmd := &cobra.Command{Use: "show VM", Short: "Show a VM's lock: records, holder, and the hosts' heartbeat slots", Args: cobra.ExactArgs(1),
		Long:              "Show a VM's lock as it is on the datastore: its records, who holds it, and\nwhether the hosts' heartbeat slots move. Works without an agent, too.",
		ValidArgsFunction: a.completeFrom(vmNames)}
	out := outputFlag(cmd)
	cmd.Flags().DurationVar(&watch, "watch", 2*time.Second, "how long to watch the slots")
	cmd.Flags().StringVar(&home, "datastore", "", "the VM's home datastore, if it is in no list")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		e, _, err := a.look(c, args[0], home, watch)
		if err != nil {
			return err
		}
		if js {
			return writeJSON(c.OutOrStdout(), e)
		}
		printEvidence(c.OutOrStdout(), e)
		return nil
	}
	return cmd
}

func newLockRelease(a *app) *cobra.Command {
	var force bool
	var typed, why, home string
	cmd := &cobra.Command{Use: "release --force VM", Short: "Break a VM's lock in an emergency", Args: cobra.ExactArgs(1),
		Long: `Break a VM's lock. This is for one case: its holder is gone for good and its
death cannot be proven (no watchdog, power off without a trace), so that
nothing else frees the lock. If the VM still runs there, two copies of it
will write to its disks.

The evidence is shown first, and the VM's name must be typed.`,
		ValidArgsFunction: a.completeFrom(vmNames)}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "required: there is no other way to release a lock")
	f.StringVar(&typed, "confirm", "", "the VM's name, where there is no terminal to type it on")
	f.StringVar(&why, "why", "", "why, for the log")
	f.StringVar(&home, "datastore", "", "the VM's home datastore, if it is in no list")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if !force {
			return usage("hanok lock show "+args[0]+" shows what is known; hanok vm stop "+args[0]+" stops a VM", "a lock is released by its holder; breaking it needs --force")
		}
		if typed == "" && !screen.IsTerminal(a.in) {
			return usage("give --confirm "+args[0], "there is no terminal to type the VM's name on")
		}
		return a.breakGlass(c, args[0], home, typed, why)
	}
	return cmd
}

func (a *app) breakGlass(c *cobra.Command, name, home, typed, why string) error {
	e, cluster, err := a.look(c, name, home, max(3*time.Second, 3*staleLook))
	if err != nil {
		return err
	}
	w := c.ErrOrStderr()
	printEvidence(w, e)
	top := e.highest()
	if top.Holder() == "" {
		return Fail(ExitRefused, "nothing is to be done: whoever starts the VM takes the lock", "nobody holds the lock of %s: %s", e.VM, top)
	}
	if s := e.slot(e.Holder); s != nil && s.Changed {
		return Fail(ExitRefused, "stop the VM there: hanok vm kill "+e.VM+"; or switch that host off and come back",
			"%s is alive: its heartbeat slot on %s is being written. Breaking its lock would let %s run twice", e.Holder, e.Datastore, e.VM)
	}
	i18n.Fprintf(w, "\nBreaking the lock lets %s start elsewhere. If it still runs on %s, its disks will be corrupted.\n", e.VM, e.Holder)
	if typed == "" {
		i18n.Fprintf(w, "Make sure that %s is switched off, then type the VM's name: ", e.Holder)
		line, _ := bufio.NewReader(io.LimitReader(a.in, 4096)).ReadString('\n')
		typed = strings.TrimSpace(line)
	}
	if typed != e.VM {
		return Fail(ExitRefused, "", "nothing was changed: %q is not %q", typed, e.VM)
	}
	i18n.Fprintf(w, "asking the guard; it watches the slot once more for %.1f s\n", cluster.Timing().StaleAfter().Seconds())
	ctx, cancel := context.WithTimeout(c.Context(), forceLimit)
	defer cancel()
	g, err := ipc.Dial(ctx, a.guardSocket)
	if err != nil {
		return Fail(ExitUnreachable, "start hanok-guard: only it may write locks", "%w", err)
	}
	defer g.Close()
	r, err := g.Call(ctx, lease.Request{Force: &lease.ForceRequest{Datastore: e.Datastore, Lock: model.VMLock(e.ID), Epoch: top.Epoch, Operator: operator(), Why: why}})
	if err != nil {
		return Fail(ExitTimeout, "hanok lock show "+e.VM, "the guard: %w", err)
	}
	if r.Code != lease.CodeOK {
		return Fail(ExitRefused, "hanok lock show "+e.VM, "the guard refused (%s): %s", r.Code, r.Text)
	}
	i18n.Fprintf(c.OutOrStdout(), "the lock of %s is released; the primary restarts it if it is protected and wanted\n", e.VM)
	return nil
}

// staleLook is what a living host needs at most to write its slot: the longest
// interval that a profile has.
const staleLook = time.Second

func operator() string {
	for _, v := range []string{"SUDO_USER", "LOGNAME", "USER"} {
		if s := os.Getenv(v); s != "" {
			return s
		}
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// look gathers the evidence, from the datastores themselves.
func (a *app) look(c *cobra.Command, name, home string, watch time.Duration) (*evidence, *config.Cluster, error) {
	loaded, err := config.Store{Path: a.clusterFile}.Load()
	if err != nil {
		return nil, nil, err
	}
	cluster := loaded.Cluster
	e := &evidence{VM: name, Records: []model.LockRecord{}, Slots: []slotEvidence{}}
	say := progress{w: c.ErrOrStderr()}
	driver, err := findVM(cluster, e, home, &say)
	if err != nil {
		return nil, nil, err
	}
	_, err = bounded("read the lock", func() (struct{}, error) {
		list, err := driver.History(model.VMLock(e.ID))
		if datastore.KindOf(err) == datastore.KindMissing && len(list) == 0 {
			return struct{}{}, Fail(ExitNotFound, "hanok vm protect makes one", "%s has no lock on %s", e.VM, e.Datastore)
		}
		if err != nil && len(list) == 0 {
			return struct{}{}, err
		}
		if err != nil {
			e.Damage = err.Error()
		}
		e.Records = list
		return struct{}{}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	e.Holder = e.highest().Holder()
	say.say("watching the heartbeat slots on %s for %v", e.Datastore, watch)
	if err := watchSlots(c.Context(), driver, e, watch); err != nil {
		return nil, nil, err
	}
	if s, err := a.status(c.Context()); err == nil && e.Holder != "" {
		if h := s.HostByName(e.Holder); h != nil {
			e.HolderState, e.HolderReason = h.State, h.Reason
		}
	}
	return e, cluster, nil
}

// findVM finds the VM in the protected lists, or takes its id as given.
func findVM(cluster *config.Cluster, e *evidence, home string, say *progress) (*datastore.Posix, error) {
	var troubles []error
	for _, d := range cluster.Datastores {
		if home != "" && string(d.Name) != home {
			continue
		}
		driver, err := datastore.Open(d.Path, cluster.ID, datastore.Options{Expect: d.UUID})
		if err != nil {
			return nil, err
		}
		if home != "" && model.VMID(e.VM).Validate() == nil {
			e.ID, e.Datastore = model.VMID(e.VM), d.Name
			return driver, nil
		}
		list, err := bounded("read the list of "+string(d.Name), driver.ReadList)
		if err != nil {
			troubles = append(troubles, fmt.Errorf("%s: %w", d.Name, err))
			say.say("note: %v", troubles[len(troubles)-1])
			continue
		}
		for _, v := range list.VMs {
			if v.Name == e.VM || string(v.ID) == e.VM {
				e.VM, e.ID, e.Datastore = v.Name, v.ID, d.Name
				return driver, nil
			}
		}
	}
	if len(troubles) > 0 {
		return nil, fmt.Errorf("%s is in no list that can be read: %w", e.VM, errors.Join(troubles...))
	}
	return nil, Fail(ExitNotFound, "`hanok vm list` shows the protected VMs; for another one give its UUID and --datastore", "%s is in no protected list", e.VM)
}

// bounded gives up on f after storeLimit; storage cannot be interrupted.
func bounded[T any](what string, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	ch := make(chan result, 1)
	go func() {
		v, err := f()
		ch <- result{v, err}
	}()
	select {
	case r := <-ch:
		return r.v, r.err
	case <-time.After(storeLimit):
		var zero T
		return zero, Fail(ExitTimeout, "check the storage path", "%s: the datastore did not answer within %v", what, storeLimit)
	}
}

// watchSlots reads the slots again and again and notes which change.
func watchSlots(ctx context.Context, d *datastore.Posix, e *evidence, watch time.Duration) error {
	begin := datastore.BootTime()
	for {
		started := datastore.BootTime()
		slots, err := bounded("read the slots", d.ReadSlots)
		if err != nil {
			return err
		}
		for _, r := range slots {
			s := e.slot(r.Host)
			if s == nil {
				e.Slots = append(e.Slots, slotEvidence{Host: r.Host, digest: r.Identity.Digest, first: datastore.BootTime()})
				s = &e.Slots[len(e.Slots)-1]
			}
			if s.digest != r.Identity.Digest {
				s.Changed, s.digest, s.first = true, r.Identity.Digest, datastore.BootTime()
			}
			s.Valid, s.Boot, s.Incarnation, s.Sequence = r.Valid, r.Identity.Boot, r.Identity.Incarnation, r.Identity.Sequence
			s.UnchangedSeconds = max(0, started-s.first).Seconds()
			s.Flags = nil
			for _, f := range []struct {
				flag model.SlotFlags
				name string
			}{{model.SlotArmed, "armed"}, {model.SlotIsolated, "isolated"}, {model.SlotShuttingDown, "shuttingDown"}} {
				if r.Valid && r.Slot.Flags.Has(f.flag) {
					s.Flags = append(s.Flags, f.name)
				}
			}
		}
		e.WatchedSeconds = (datastore.BootTime() - begin).Seconds()
		if datastore.BootTime()-begin >= watch {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(slotLook):
		}
	}
}

func printEvidence(w io.Writer, e *evidence) {
	p := painterFor(w)
	i18n.Fprintf(w, "VM %s (%s), lock on datastore %s\n\n", p.paint(bold, e.VM), e.ID, e.Datastore)
	t := &table{header: []string{"EPOCH", "STATE", "OWNER", "REASON", "BOOT", "INCARNATION"}}
	for _, r := range e.Records {
		t.add(fmt.Sprint(r.Epoch), string(r.State), string(r.Owner), dash(r.Reason), string(r.Boot), fmt.Sprintf("%x", r.Incarnation))
	}
	t.write(w, p)
	if e.Damage != "" {
		i18n.Fprintln(w, p.paint(red, "damaged: "+e.Damage))
	}
	if e.Holder == "" {
		i18n.Fprintln(w, "\nNobody holds it.")
	} else {
		i18n.Fprintf(w, "\nHeld by %s", p.paint(bold, string(e.Holder)))
		if e.HolderState != "" {
			i18n.Fprintf(w, ", which is %s", e.HolderState)
		}
		if e.HolderReason != "" {
			i18n.Fprintf(w, " (%s)", e.HolderReason)
		}
		i18n.Fprintln(w, ".")
	}
	i18n.Fprintf(w, "\nHeartbeat slots, watched for %.1f s:\n", e.WatchedSeconds)
	s := &table{header: []string{"HOST", "SLOT", "FLAGS", "SEQUENCE", "BOOT"}}
	for _, x := range e.Slots {
		word := "written meanwhile"
		if !x.Changed {
			word = fmt.Sprintf("unchanged for at least %.1f s", x.UnchangedSeconds)
		}
		if !x.Valid {
			word += ", not readable"
		}
		s.add(string(x.Host), word, dash(strings.Join(x.Flags, ",")), fmt.Sprint(x.Sequence), dash(string(x.Boot)))
	}
	s.write(w, p)
}
