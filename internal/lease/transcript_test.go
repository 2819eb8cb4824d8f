package lease

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

var update = flag.Bool("update", false, "record the transcripts in testdata again")

// TestTranscripts replays testdata/*.txt: a line that begins with "> " is
// something that happens, the lines below it are what the machine does about
// it. See the commands in (*replay).do.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := record(t, string(want))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(want) {
				t.Errorf("%s differs (record with -update, and read the difference):\n%s", f, got)
			}
		})
	}
}

func record(t *testing.T, text string) string {
	r := &replay{t: t}
	r.start(nil)
	var out bytes.Buffer
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			f := strings.Fields(line[2:])
			at, err := time.ParseDuration(f[0])
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			for _, e := range r.do(at, f[1], f[2:]) {
				if s := r.describe(e); s != "" {
					fmt.Fprintln(&out, s)
				}
			}
		case strings.HasPrefix(line, "#") || line == "":
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

// replay is one machine on host1 with VM "a", and what it waits for.
type replay struct {
	t      *testing.T
	m      *Machine
	nonces int
	boot   model.BootID
	open   []Effect // orders without an answer, oldest first
	froze  uint64
}

var vmA = ManagedVM{ID: "aaaaaaaa-0000-0000-0000-000000000000", Name: "a", Home: "ds1"}

func (r *replay) start(saved *Saved) {
	if r.boot == "" {
		r.boot = "b1"
	}
	r.open = nil
	r.m = New(Config{Host: "host1", Boot: r.boot, Incarnation: 1, Predecessor: r.m != nil, Timing: model.TimingFast, Managed: []ManagedVM{vmA},
		Datastores: []DatastoreConfig{{Name: "ds1", Fence: model.FenceReset}},
		Nonce:      func() string { r.nonces++; return fmt.Sprintf("n%d", r.nonces) },
		Identify:   func(_ model.DatastoreName, s model.Slot) string { return fmt.Sprintf("d%d", s.Sequence) }}, saved)
	r.m.subscribers[1] = true
}

// do carries out one command.
func (r *replay) do(at time.Duration, verb string, args []string) []Effect {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	num := func(i int) uint64 {
		n, err := strconv.ParseUint(arg(i), 10, 64)
		if err != nil {
			r.t.Fatalf("%s %v: %v", verb, args, err)
		}
		return n
	}
	ask := func(q Request) []Effect {
		q.ID = 1
		return r.step(at, Event{Kind: EvRequest, Conn: 1, Request: &q})
	}
	switch verb {
	case "tick":
		return r.step(at, Event{Kind: EvTick})
	case "written": // [FAULT]: the heartbeat in flight returns
		return r.step(at, r.answer(EffWriteSlot, Event{Kind: EvSlotWritten, Fault: fault(arg(0))}))
	case "listed": // EPOCH STATE OWNER BOOT NONCE [REASON], or a fault
		ev := Event{Kind: EvLockListed}
		if len(args) < 5 {
			ev.Fault = fault(arg(0))
		} else {
			ev.Record = model.LockRecord{Epoch: model.Epoch(num(0)), State: model.LockState(arg(1)), Owner: model.HostID(arg(2)),
				Boot: model.BootID(arg(3)), Nonce: arg(4), Reason: arg(5)}
		}
		return r.step(at, r.answer(EffListLock, ev))
	case "linked": // [FAULT]
		return r.step(at, r.answer(EffLinkLock, Event{Kind: EvLockLinked, Fault: fault(arg(0))}))
	case "slot": // HOST BOOT SEQUENCE [armed]
		s := model.Slot{Host: model.HostID(arg(0)), Boot: model.BootID(arg(1)), Sequence: num(2)}
		if arg(3) == "armed" {
			s.Flags = model.SlotArmed
		}
		return r.step(at, r.answer(EffReadSlot, Event{Kind: EvSlotRead, Reading: model.SlotReading{Host: s.Host, Valid: true, Slot: s,
			Identity: model.SlotIdentity{Digest: "d" + arg(2)}}}))
	case "scanned": // [a] [a:frozen]
		ev := Event{Kind: EvScanned}
		for _, a := range args {
			ev.Procs = append(ev.Procs, Proc{VM: vmA.ID, Frozen: strings.HasSuffix(a, ":frozen")})
		}
		return r.step(at, r.answer(EffScan, ev))
	case "froze": // yes|outstanding|none|failed
		kinds := map[string]Frozen{"yes": FrozenYes, "outstanding": FrozenOutstanding, "none": FrozenNone, "failed": FrozenFailed}
		return r.step(at, Event{Kind: EvFroze, Op: r.froze, VM: vmA.ID, Frozen: kinds[arg(0)], Took: 5 * time.Millisecond})
	case "gone":
		return r.step(at, Event{Kind: EvGone, VM: vmA.ID})
	case "watchdog": // on|off [SECONDS]
		return r.step(at, Event{Kind: EvWatchdog, On: arg(0) == "on", Open: arg(0) == "on", Timeout: seconds(arg(1)), Text: map[bool]string{false: "none"}[arg(0) == "on"]})
	case "timing": // fast|steady
		cfg := r.m.cfg
		cfg.Timing = map[string]model.Timing{"fast": model.TimingFast, "steady": model.TimingSteady}[arg(0)]
		return r.step(at, Event{Kind: EvConfig, Config: &cfg})
	case "restart": // [forget]: a new guard in the same boot
		saved := r.m.Saved()
		if arg(0) == "forget" {
			r.start(nil)
		} else {
			r.start(&saved)
		}
		return r.step(at, Event{Kind: EvTick})
	case "managed": // [a]: the agent says which VMs are on the protected lists
		q := &ManagedRequest{}
		if arg(0) == "a" {
			q.VMs = []ManagedVM{vmA}
		}
		return ask(Request{Managed: q})
	case "may-stop?":
		why := r.m.StopProblem()
		if why == "" {
			why = "yes"
		}
		return []Effect{{Kind: EffReply, Reply: &Reply{Code: CodeOK, Text: why}}}
	case "hang-up":
		return r.step(at, Event{Kind: EvConnLost, Conn: 1})
	case "beat": // [contact]
		return ask(Request{Beat: &BeatRequest{Contact: arg(0) == "contact"}})
	case "claim": // EPOCH [OWNER DIGEST [gone]]
		q := &ClaimRequest{VM: vmA, Epoch: model.Epoch(num(0))}
		if len(args) >= 3 {
			q.Takeover = &Takeover{Owner: model.HostID(arg(1)), Slot: model.SlotIdentity{Digest: arg(2)}, Gone: arg(3) == "gone"}
		}
		return ask(Request{Claim: q})
	case "create":
		return ask(Request{Create: &CreateRequest{VM: vmA}})
	case "adopt": // EPOCH: the lock for the VM that runs here
		return ask(Request{Claim: &ClaimRequest{VM: vmA, Epoch: model.Epoch(num(0)), Running: true}})
	case "confirm": // EPOCH
		return ask(Request{Confirm: &ConfirmRequest{VM: vmA.ID, Epoch: model.Epoch(num(0))}})
	case "kill": // EPOCH [BEFORE]
		before, err := time.ParseDuration(arg(1))
		if arg(1) != "" && err != nil {
			r.t.Fatal(err)
		}
		return ask(Request{Kill: &KillRequest{VM: vmA.ID, Epoch: model.Epoch(num(0)), Before: before}})
	case "release": // EPOCH
		return ask(Request{Release: &ReleaseRequest{VM: vmA.ID, Epoch: model.Epoch(num(0)), Reason: model.ReasonGuestOff}})
	case "claim-list": // EPOCH
		return ask(Request{ClaimList: &ClaimListReq{Datastore: "ds1", Epoch: model.Epoch(num(0))}})
	case "force": // EPOCH: break-glass
		return ask(Request{Force: &ForceRequest{Datastore: "ds1", Lock: model.VMLock("a"), Epoch: model.Epoch(num(0)), Operator: "root", Why: "its plug is pulled"}})
	case "hook": // OPERATION
		return ask(Request{Hook: &HookRequest{VM: vmA.ID, Name: "a", Operation: arg(0)}})
	}
	r.t.Fatalf("no command %q", verb)
	return nil
}

// seconds is a time-out of the watchdog; by default the profile's.
func seconds(text string) time.Duration {
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(n) * time.Second
	}
	return model.TimingFast.Watchdog
}

func fault(kind string) *Fault {
	if kind == "" {
		return nil
	}
	return &Fault{Kind: kind, Text: kind}
}

func (r *replay) step(at time.Duration, ev Event) []Effect {
	out := r.m.Step(at, ev)
	for _, e := range out {
		switch e.Kind {
		case EffWriteSlot, EffReadSlot, EffListLock, EffLinkLock, EffCreateLock, EffScan:
			r.open = append(r.open, e)
		case EffFreeze:
			r.froze = e.Op
		}
	}
	return out
}

// answer gives ev the op of the oldest order of that kind.
func (r *replay) answer(kind EffectKind, ev Event) Event {
	for i, e := range r.open {
		if e.Kind == kind {
			r.open = append(r.open[:i], r.open[i+1:]...)
			ev.Op = e.Op
			return ev
		}
	}
	r.t.Fatalf("nothing waits for event %d", ev.Kind)
	return ev
}

// describe words an effect; pets and saves only when they matter.
func (r *replay) describe(e Effect) string {
	switch e.Kind {
	case EffWriteSlot:
		lease := ""
		if e.Slot.Lease != model.TimingFast.Lease {
			lease = fmt.Sprintf(" lease=%v", e.Slot.Lease)
		}
		return fmt.Sprintf("  write slot %d armed=%v%s known=%v", e.Slot.Sequence, e.Slot.Flags.Has(model.SlotArmed), lease, e.Known)
	case EffReadSlot:
		return "  read slot of " + string(e.Host)
	case EffListLock:
		return "  list " + lockName(e.Lock)
	case EffLinkLock:
		return fmt.Sprintf("  link %s %s %s", lockName(e.Lock), e.Record, e.Record.Nonce)
	case EffCreateLock:
		return "  create lock " + lockName(e.Lock)
	case EffScan:
		return "  scan"
	case EffFreeze:
		return "  freeze a"
	case EffThaw:
		return fmt.Sprintf("  thaw a before %v", e.Before)
	case EffKill:
		if e.Before != 0 {
			return fmt.Sprintf("  kill a before %v", e.Before)
		}
		return "  kill a"
	case EffPet:
		set := ""
		if e.Timeout != model.TimingFast.Watchdog {
			set = fmt.Sprintf(" time-out %v", e.Timeout)
		}
		if e.Before > 24*time.Hour || e.Before > r.m.now+time.Minute {
			return "  pet" + set
		}
		return fmt.Sprintf("  pet before %v%s", e.Before, set)
	case EffReply:
		return strings.TrimRight(fmt.Sprintf("  reply %s epoch %d: %s", e.Reply.Code, e.Reply.Epoch, e.Reply.Text), ": ")
	case EffNotify:
		if e.Notice.What != NoticeStatus {
			return "  notice " + string(e.Notice.What) + ": " + e.Notice.Text
		}
	}
	return ""
}

func lockName(l model.LockID) string {
	if l == model.VMLock(vmA.ID) {
		return "a"
	}
	return string(l)
}
