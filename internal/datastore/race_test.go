package datastore_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// The race: processes, each through its own mount of one backing directory
// with random delays between its storage operations, claim and release one
// lock. Every process reports when each step began and ended on the machine's
// clock; the histories together must be those of one lock.

const (
	raceLock = model.LockID("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")
	racers   = 4
	// contendedClaims is how many epochs at least two processes must have
	// claimed before the race ends; quickClaims the same for -short.
	contendedClaims = 1000
	quickClaims     = 60
)

// Mutations of the claim, to see that the race finds a broken one.
const (
	mutateNone   = ""
	mutateRename = "rename" // publishes with rename instead of link
	mutateBlind  = "blind"  // does not list again after the link
)

// raceConfig travels to a racer in its environment.
type raceConfig struct {
	Client int
	Mount  string
	Mutate string
}

const racerEnv = "HANOK_TEST_RACER"

// raceOp is one line of a racer's report.
type raceOp struct {
	Client       int
	Kind         string // read, claim or release
	Epoch        model.Epoch
	Call, Return time.Duration
	Won          bool
	SawEpoch     model.Epoch
	SawOwner     int // 0 for nobody
	Error        string
}

func raceHost(client int) model.HostID { return model.HostID(fmt.Sprintf("racer%d", client)) }

func holderOf(r model.LockRecord) int {
	var n int
	if _, err := fmt.Sscanf(string(r.Holder()), "racer%d", &n); err != nil {
		return 0
	}
	return n
}

// raceMain is a racer: it runs until its standard input ends.
func raceMain() {
	var cfg raceConfig
	if err := json.Unmarshal([]byte(os.Getenv(racerEnv)), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	p, err := datastore.Open(cfg.Mount, cluster, datastore.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	out := json.NewEncoder(os.Stdout)
	r := racer{cfg: cfg, driver: p, report: func(op raceOp) {
		if out.Encode(op) != nil {
			os.Exit(0) // the test is over
		}
	}}
	for {
		select {
		case <-stop:
			return
		default:
			r.round()
		}
	}
}

type racer struct {
	cfg    raceConfig
	driver datastore.Driver
	report func(raceOp)
	tries  int
}

// round reads the lock and, when nobody holds it, claims and releases it.
func (r *racer) round() {
	op := raceOp{Client: r.cfg.Client, Kind: "read", Call: datastore.BootTime()}
	highest, err := r.driver.Highest(raceLock)
	op.Return = datastore.BootTime()
	r.finish(op, false, highest, err)
	if err != nil || highest.State != model.LockReleased {
		// Leave the processors to the holder, or the race takes minutes.
		time.Sleep(time.Duration(rand.Int64N(int64(8 * time.Millisecond))))
		return
	}
	if !r.claim("claim", highest.Epoch+1, model.LockHeld) {
		return
	}
	if !r.claim("release", highest.Epoch+2, model.LockReleased) {
		return
	}
	if highest.Epoch%8 < 2 {
		if err := r.driver.Prune(raceLock); err != nil {
			r.report(raceOp{Client: r.cfg.Client, Kind: "prune", Error: err.Error()})
		}
	}
}

func (r *racer) claim(kind string, epoch model.Epoch, state model.LockState) bool {
	r.tries++
	rec := model.LockRecord{Lock: raceLock, Epoch: epoch, Owner: raceHost(r.cfg.Client), Boot: "boot", Incarnation: 1,
		Nonce: fmt.Sprintf("%d-%d", r.cfg.Client, r.tries), State: state}
	if state == model.LockReleased {
		rec.Reason = model.ReasonUserOff
	}
	op := raceOp{Client: r.cfg.Client, Kind: kind, Epoch: epoch, Call: datastore.BootTime()}
	won, highest, err := r.claimAs(rec)
	op.Return = datastore.BootTime()
	r.finish(op, won, highest, err)
	return won
}

func (r *racer) finish(op raceOp, won bool, highest model.LockRecord, err error) {
	op.Won, op.SawEpoch, op.SawOwner = won, highest.Epoch, holderOf(highest)
	if err != nil {
		op.Error = err.Error()
	}
	r.report(op)
}

// claimAs is the real claim, or a broken one.
func (r *racer) claimAs(rec model.LockRecord) (bool, model.LockRecord, error) {
	switch r.cfg.Mutate {
	case mutateRename:
		return datastore.Claim(renamer{r.driver, r.cfg.Mount}, rec)
	case mutateBlind:
		before, err := r.driver.Highest(rec.Lock)
		if err != nil || before.Epoch+1 != rec.Epoch {
			return false, before, err
		}
		_ = r.driver.Link(rec)
		return true, rec, nil
	default:
		return datastore.Claim(r.driver, rec)
	}
}

// renamer publishes records with rename(2), which has no loser.
type renamer struct {
	datastore.Driver
	mount string
}

func (d renamer) Link(rec model.LockRecord) error {
	dir := filepath.Join(d.mount, datastore.DirName, cluster, "locks", string(rec.Lock))
	data, err := datastore.SealRecord(rec)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".tmp."+rec.Nonce)
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, fmt.Sprintf("%020d", rec.Epoch)))
}

// race runs the processes until enough epochs were contended, a racer reports
// an error, or ctx ends. It returns all reports.
func race(ctx context.Context, t *testing.T, mutate string, contended int) []raceOp {
	backing := t.TempDir()
	initialise(t, backing)
	creator := open(t, backing, datastore.Options{})
	if err := creator.CreateLock(raceLock, model.LockRecord{Owner: "creator", Boot: "b", Nonce: "first"}); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reports := make(chan raceOp, 1024)
	var running sync.WaitGroup
	var inputs []io.Closer
	for client := 1; client <= racers; client++ {
		dir, m := mount(t, backing)
		m.SetDelay(randomDelays(uint64(client)))
		cfg, err := json.Marshal(raceConfig{Client: client, Mount: dir, Mutate: mutate})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), racerEnv+"="+string(cfg))
		cmd.Stderr = os.Stderr
		in, err1 := cmd.StdinPipe()
		out, err2 := cmd.StdoutPipe()
		if err := errors.Join(err1, err2, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, in)
		running.Go(func() {
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				var op raceOp
				if err := json.Unmarshal(lines.Bytes(), &op); err != nil {
					op = raceOp{Client: client, Error: fmt.Sprintf("report %q: %v", lines.Text(), err)}
				}
				reports <- op
			}
			if err := cmd.Wait(); err != nil && ctx.Err() == nil {
				reports <- raceOp{Client: client, Error: err.Error()}
			}
		})
	}
	go func() { running.Wait(); close(reports) }()

	claimers := make(map[model.Epoch]int)
	var history []raceOp
	count, stopped := 0, false
	for op := range reports {
		history = append(history, op)
		if op.Kind == "claim" {
			if claimers[op.Epoch]++; claimers[op.Epoch] == 2 {
				count++
			}
		}
		if !stopped && (count >= contended || op.Error != "") {
			stopped = true
			for _, in := range inputs {
				_ = in.Close()
			}
		}
	}
	t.Logf("%d operations of %d processes, %d epochs contended", len(history), racers, count)
	if count < contended && mutate == mutateNone {
		t.Errorf("only %d of %d epochs were contended in time", count, contended)
	}
	return history
}

// randomDelays holds up a third of the operations between which a claim can
// be interleaved.
func randomDelays(seed uint64) func(op string) time.Duration {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 2))
	return func(op string) time.Duration {
		switch op {
		case "opendir", "readdir", "link", "open", "create":
			mu.Lock()
			defer mu.Unlock()
			if rng.IntN(3) == 0 {
				return time.Duration(rng.Int64N(int64(3 * time.Millisecond)))
			}
		}
		return 0
	}
}

// lockState is the state of the model: the highest epoch, and who holds it.
type lockState struct {
	epoch  model.Epoch
	holder int
}

// lockModel accepts the histories of one lock whose reads, and the reads at
// the end of lost claims, return its state.
var lockModel = porcupine.Model{
	Init: func() any { return lockState{epoch: 1} },
	Step: func(state, input, output any) (bool, any) {
		s, op := state.(lockState), input.(raceOp)
		if !op.Won {
			return op.SawEpoch == s.epoch && op.SawOwner == s.holder, s
		}
		switch op.Kind {
		case "claim":
			return s.epoch+1 == op.Epoch && s.holder == 0, lockState{op.Epoch, op.Client}
		default: // release
			return s.epoch+1 == op.Epoch && s.holder == op.Client, lockState{op.Epoch, 0}
		}
	},
}

// violations finds what is wrong with a history.
func violations(history []raceOp, timeout time.Duration) []string {
	var out []string
	var ops []porcupine.Operation
	winners := make(map[model.Epoch]int)
	for _, op := range history {
		if op.Error != "" {
			out = append(out, fmt.Sprintf("racer %d, %s of epoch %d: %s", op.Client, op.Kind, op.Epoch, op.Error))
			continue
		}
		if op.Won {
			if other, there := winners[op.Epoch]; there {
				out = append(out, fmt.Sprintf("epoch %d was won by racer %d and racer %d", op.Epoch, other, op.Client))
			}
			winners[op.Epoch] = op.Client
		}
		if op.Kind == "release" && !op.Won {
			out = append(out, fmt.Sprintf("racer %d could not release with epoch %d: it saw epoch %d of racer %d", op.Client, op.Epoch, op.SawEpoch, op.SawOwner))
		}
		ops = append(ops, porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Call), Return: int64(op.Return)})
	}
	if result := porcupine.CheckOperationsTimeout(lockModel, ops, timeout); result != porcupine.Ok {
		out = append(out, fmt.Sprintf("the history is not that of one lock (%s)", result))
	}
	return out
}

func TestRaceHasOneWinnerEach(t *testing.T) {
	contended := contendedClaims
	if testing.Short() {
		contended = quickClaims
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	history := race(ctx, t, mutateNone, contended)
	for _, v := range violations(history, 2*time.Minute) {
		t.Error(v)
	}
	winners := make(map[model.Epoch]bool)
	var last model.Epoch
	for _, op := range history {
		if op.Won {
			winners[op.Epoch] = true
			last = max(last, op.Epoch)
		}
	}
	for epoch := model.Epoch(2); epoch <= last; epoch++ {
		if !winners[epoch] {
			t.Errorf("epoch %d has no winner", epoch)
		}
	}
}

// TestRaceFindsBrokenClaims keeps the race honest.
func TestRaceFindsBrokenClaims(t *testing.T) {
	for _, mutate := range []string{mutateRename, mutateBlind} {
		t.Run(mutate, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			found := violations(race(ctx, t, mutate, 40), 10*time.Second)
			if len(found) == 0 {
				t.Fatal("the race accepts it")
			}
			t.Log(found[0])
		})
	}
}

func TestLockModelRefusesWhatNoLockDoes(t *testing.T) {
	claim := raceOp{Client: 1, Kind: "claim", Epoch: 2, Call: 10, Return: 20, Won: true}
	read := func(call time.Duration, epoch model.Epoch, owner int) raceOp {
		return raceOp{Client: 2, Kind: "read", Call: call, Return: call + 5, SawEpoch: epoch, SawOwner: owner}
	}
	for name, test := range map[string]struct {
		history []raceOp
		good    bool
	}{
		"read before the claim":       {[]raceOp{read(1, 1, 0), claim}, true},
		"read during the claim, old":  {[]raceOp{claim, read(12, 1, 0)}, true},
		"read during the claim, new":  {[]raceOp{claim, read(12, 2, 1)}, true},
		"stale read after the claim":  {[]raceOp{claim, read(21, 1, 0)}, false},
		"new read before the claim":   {[]raceOp{read(1, 2, 1), claim}, false},
		"claim of a held lock":        {[]raceOp{claim, {Client: 2, Kind: "claim", Epoch: 3, Call: 21, Return: 22, Won: true}}, false},
		"release by somebody else":    {[]raceOp{claim, {Client: 2, Kind: "release", Epoch: 3, Call: 21, Return: 22, Won: true}}, false},
		"release that was not heeded": {[]raceOp{claim, {Client: 1, Kind: "release", Epoch: 3, Call: 21, Return: 22}}, false},
	} {
		if found := violations(test.history, time.Second); (len(found) == 0) != test.good {
			t.Errorf("%s: violations %q", name, found)
		}
	}
}
