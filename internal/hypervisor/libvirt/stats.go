package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

const (
	// maxLanes is how many VMs may hang in a request for disk counters.
	maxLanes = 3
	// lanePatience is how long Stats waits for the counters of one VM; they
	// take a few milliseconds.
	lanePatience = time.Second
)

// Stats implements hypervisor.Driver. Processor time and memory come from
// what libvirt knows without QEMU; disk counters need QEMU's monitor, which
// hangs if the VM is frozen.
func (d *Driver) Stats(ctx context.Context, frozen func(model.VMID) bool) ([]hypervisor.Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.CallTimeout)
	defer cancel()
	var stats []hypervisor.Stats
	var doms []lv.Domain
	err := d.call(ctx, d.safe, "read statistics", "", d.cfg.CallTimeout, func(l *lv.Libvirt) error {
		active, _, err := l.ConnectListAllDomains(1, lv.ConnectListDomainsActive)
		if err != nil {
			return err
		}
		for _, dom := range active {
			_, maxMemory, memory, vcpus, cpu, err := l.DomainGetInfo(dom)
			if lv.IsNotFound(err) {
				continue
			}
			if err != nil {
				return err
			}
			doms = append(doms, dom)
			stats = append(stats, hypervisor.Stats{VM: vmID(dom.UUID), CPUTime: time.Duration(cpu),
				Memory: model.MiB(memory >> 10), MaxMemory: model.MiB(maxMemory >> 10), VCPUs: int(vcpus)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range stats {
		s := &stats[i]
		if frozen != nil && frozen(s.VM) {
			s.NoDisks = "frozen"
			continue
		}
		s.Disks, err = d.lanes.disks(ctx, doms[i])
		if err != nil {
			s.NoDisks = err.Error()
		}
	}
	return stats, nil
}

// lanes are the connections for disk counters.
type lanes struct {
	socket, uri string
	ctx         context.Context // ends with Close
	free        chan *lane
	wg          sync.WaitGroup

	mu      sync.Mutex
	all     [maxLanes]*lane
	waiting map[model.VMID]bool // VMs whose request hangs
	closed  bool
}

// lane is used by one request at a time. Its connection is guarded by
// lanes.mu, as drop closes it from outside.
type lane struct{ conn *conn }

func newLanes(ctx context.Context, socket, uri string) *lanes {
	ls := &lanes{ctx: ctx, socket: socket, uri: uri, free: make(chan *lane, maxLanes), waiting: map[model.VMID]bool{}}
	for i := range ls.all {
		ls.all[i] = &lane{}
		ls.free <- ls.all[i]
	}
	return ls
}

var (
	errStillWaiting = errors.New("frozen or hung: an earlier request is not answered yet")
	errNoLane       = fmt.Errorf("not asked: %d other VMs, frozen or hung, have not answered", maxLanes)
	errSlow         = fmt.Errorf("no answer within %v: frozen or hung", lanePatience)
)

// disks asks for the counters of one domain, and stops waiting after
// lanePatience. The request itself keeps its lane until it ends.
func (ls *lanes) disks(ctx context.Context, dom lv.Domain) ([]hypervisor.DiskStats, error) {
	vm := vmID(dom.UUID)
	ln, err := ls.begin(vm)
	if err != nil {
		return nil, err
	}
	type answer struct {
		disks []hypervisor.DiskStats
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		defer ls.end(ln, vm)
		disks, err := ls.ask(ln, dom)
		done <- answer{disks, err}
	}()
	patience := time.NewTimer(lanePatience)
	defer patience.Stop()
	select {
	case a := <-done:
		return a.disks, a.err
	case <-patience.C:
		return nil, errSlow
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// begin takes a lane for vm.
func (ls *lanes) begin(vm model.VMID) (*lane, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch {
	case ls.closed:
		return nil, errClosed
	case ls.waiting[vm]:
		return nil, errStillWaiting
	}
	select {
	case ln := <-ls.free:
		ls.waiting[vm] = true
		ls.wg.Add(1)
		return ln, nil
	default:
		return nil, errNoLane
	}
}

func (ls *lanes) end(ln *lane, vm model.VMID) {
	ls.mu.Lock()
	delete(ls.waiting, vm)
	ls.free <- ln // has room for all
	ls.mu.Unlock()
	ls.wg.Done()
}

// ask returns when libvirtd answers or the lane's connection ends.
func (ls *lanes) ask(ln *lane, dom lv.Domain) ([]hypervisor.DiskStats, error) {
	c, err := ls.connect(ln)
	if err != nil {
		return nil, err
	}
	var records []lv.DomainStatsRecord
	err = c.do(ls.ctx, func(l *lv.Libvirt) error {
		var err error
		records, err = l.ConnectGetAllDomainStats([]lv.Domain{dom}, uint32(lv.DomainStatsBlock), uint32(lv.ConnectGetAllDomainsStatsNowait))
		return err
	})
	if err != nil {
		return nil, failure("read disk statistics of", vmID(dom.UUID), err)
	}
	for _, r := range records {
		if r.Dom.UUID == dom.UUID {
			return diskStats(r.Params)
		}
	}
	return nil, errors.New("the domain has gone")
}

func (ls *lanes) connect(ln *lane) (*conn, error) {
	ls.mu.Lock()
	c := ln.conn
	ls.mu.Unlock()
	if c != nil && !c.isDead() {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(ls.ctx, connectTimeout)
	defer cancel()
	c, err := open(ctx, ls.socket, ls.uri)
	if err != nil {
		return nil, err
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln.conn = c
	return c, nil
}

// drop closes the lanes' connections, which ends their requests.
func (ls *lanes) drop() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, ln := range ls.all {
		if ln.conn != nil {
			ln.conn.close()
		}
	}
}

// close waits for the requests under way, whose context must have ended, and
// closes the connections.
func (ls *lanes) close() {
	ls.mu.Lock()
	ls.closed = true
	ls.mu.Unlock()
	ls.wg.Wait()
	ls.drop()
}

// maxDisks bounds how many disks of a VM are reported.
const maxDisks = 256

// diskStats reads the "block" group: block.count, and block.N.FIELD for each.
// Without a count libvirt skipped the domain, as NOWAIT asks it to.
func diskStats(params []lv.TypedParam) ([]hypervisor.DiskStats, error) {
	values := make(map[string]any, len(params))
	for _, p := range params {
		values[p.Field] = p.Value.I
	}
	count, ok := values["block.count"]
	if !ok {
		return nil, errors.New("another operation holds the domain")
	}
	disks := []hypervisor.DiskStats{}
	for i := range min(number(count), maxDisks) {
		at := "block." + strconv.FormatUint(i, 10) + "."
		name, _ := values[at+"name"].(string)
		disks = append(disks, hypervisor.DiskStats{Target: name,
			Reads: number(values[at+"rd.reqs"]), ReadBytes: number(values[at+"rd.bytes"]),
			Writes: number(values[at+"wr.reqs"]), WriteBytes: number(values[at+"wr.bytes"]),
			Flushes: number(values[at+"fl.reqs"])})
	}
	return disks, nil
}

// number reads an unsigned parameter of either size; zero if it is absent.
func number(v any) uint64 {
	switch n := v.(type) {
	case uint32:
		return uint64(n)
	case uint64:
		return n
	}
	return 0
}
