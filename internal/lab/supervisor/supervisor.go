package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/network"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/resident"
)

// priority puts the supervisor before the hosts' own work: a real disk or
// watchdog does not get slower because a host is busy.
const priority = -15

// Supervisor owns a running lab.
type Supervisor struct {
	lab         layout.Lab
	cluster     *config.Cluster
	settings    Settings
	log         *slog.Logger
	cgroupMount string
	journal     *journal.Journal
	network     *network.Switch
	observer    *observer.Observer
	nodes       []*node
	machine     lateness

	ctx        context.Context
	cancel     context.CancelFunc
	background sync.WaitGroup
}

// SettingsFile is where Run reads Settings.
func SettingsFile(lab layout.Lab) string { return filepath.Join(lab.DataDir(), "lab.json") }

// Run owns the lab until a client asks it to stop or ctx ends. All hosts are
// off at first, and off again when it returns.
func Run(ctx context.Context, lab layout.Lab) error {
	raisePriority()
	s := &Supervisor{lab: lab, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if err := resident.Lock(); err != nil { // its disks and watchdogs do not wait for this machine's
		s.log.Warn("the lab may stand still with this machine's disk", "err", err)
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	defer s.cancel()
	if err := s.load(); err != nil {
		return err
	}
	var err error
	if s.journal, err = journal.Open(lab.EventLog()); err != nil {
		return err
	}
	defer s.journal.Close()
	if s.network, err = network.NewSwitch(networks(s.cluster)); err != nil {
		return err
	}
	defer s.network.Close()
	hosts, err := cgroup.At(filepath.Dir(lab.HostCgroup("any")))
	if err != nil {
		return err
	}
	if err := hosts.Create(); err != nil {
		return err
	}
	if s.observer, err = observer.Start(observer.Config{Hosts: hosts, Journal: s.journal}); err != nil {
		return err
	}
	defer s.observer.Stop()
	if s.settings.Packages {
		if err := mountUsr(lab); err != nil {
			return err
		}
	}
	if err := s.addNodes(); err != nil {
		return err
	}
	s.background.Go(func() { s.machine.watch(s.ctx) })
	err = s.serve()
	s.cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(s.nodes))
	for i, n := range s.nodes {
		wg.Go(func() { errs[i] = n.off() })
	}
	wg.Wait()
	s.background.Wait()
	return errors.Join(append(errs, err)...)
}

// raisePriority changes all threads that exist; later ones inherit it. Where the
// kernel groups processes by session for scheduling, a nice value counts only
// within the session, so the session's own is raised too; hosts begin sessions
// of their own.
func raisePriority() {
	_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(priority)), 0)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, priority)
		}
	}
}

func (s *Supervisor) load() error {
	data, err := os.ReadFile(s.lab.ClusterFile())
	if err != nil {
		return err
	}
	if s.cluster, err = config.Parse(data); err != nil {
		return fmt.Errorf("%s: %w", s.lab.ClusterFile(), err)
	}
	data, err = os.ReadFile(SettingsFile(s.lab))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.settings); err != nil {
		return fmt.Errorf("%s: %w", SettingsFile(s.lab), err)
	}
	s.cgroupMount, err = cgroup.Mount()
	return err
}

// networks gives each network the address .1 of its hosts' /24 as gateway.
func networks(c *config.Cluster) []network.Network {
	var out []network.Network
	for _, n := range c.Networks {
		net := network.Network{Name: n.Name}
		for _, h := range c.Hosts {
			if a := h.Address[n.Name]; a.Is4() {
				b := a.As4()
				b[3] = 1
				net.Gateway = netip.PrefixFrom(netip.AddrFrom4(b), 24)
				break
			}
		}
		out = append(out, net)
	}
	return out
}

// mountUsr makes room for what packages install. It must be a file system that
// can hold the changes of an overlay, which the lab's own directory may not be.
func mountUsr(lab layout.Lab) error {
	if err := os.MkdirAll(lab.UsrDir(), 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", lab.UsrDir(), "tmpfs", 0, "mode=700"); err != nil {
		return fmt.Errorf("room for the packages of the hosts: %w", err)
	}
	return nil
}

func (s *Supervisor) addNodes() error {
	for i, h := range s.cluster.Hosts {
		group, err := cgroup.At(s.lab.HostCgroup(string(h.Name)))
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, &node{s: s, number: i + 1, name: string(h.Name), group: group, addrs: h.Address,
			stores: s.cluster.DatastoresOf(h.Name), cuts: map[string]network.Direction{}, faults: map[string]fusefs.Fault{}})
	}
	return nil
}

func (s *Supervisor) node(name string) (*node, error) {
	var names []string
	for _, n := range s.nodes {
		if n.name == name {
			return n, nil
		}
		names = append(names, n.name)
	}
	return nil, fmt.Errorf("no host %q in lab %s; it has %s", name, s.lab.Name(), strings.Join(names, ", "))
}

// partition keeps every host apart from those of other groups. A host that is
// healed hears all again, but those still in a partition do not hear it.
func (s *Supervisor) partition(groups [][]string) error {
	var sets [][]*node
	for _, g := range groups {
		var set []*node
		for _, name := range g {
			n, err := s.node(name)
			if err != nil {
				return err
			}
			set = append(set, n)
		}
		sets = append(sets, set)
	}
	for i, set := range sets {
		var others []*node
		for j, other := range sets {
			if i != j {
				others = append(others, other...)
			}
		}
		for _, n := range set {
			if err := n.separate(others); err != nil {
				return err
			}
		}
	}
	s.journal.Add(journal.Event{Kind: journal.Fault, Detail: fmt.Sprintf("partition %v", groups)})
	return nil
}

func (s *Supervisor) state() State {
	st := State{Lab: s.lab.Name(), Pid: os.Getpid(), Bare: s.settings.Bare, VMs: s.settings.VMs, Instances: s.observer.Instances()}
	var err error
	if st.Violations, err = s.observer.Violations(); err != nil {
		st.ObserverError = err.Error()
	}
	for _, n := range s.nodes {
		st.Hosts = append(st.Hosts, n.state())
	}
	return st
}

// serve answers clients until the context ends.
func (s *Supervisor) serve() error {
	if err := os.MkdirAll(s.lab.RunDir(), 0o700); err != nil {
		return err
	}
	_ = os.Remove(s.lab.Socket())
	l, err := net.Listen("unix", s.lab.Socket())
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return s.ctx }}
	stopped := make(chan struct{})
	context.AfterFunc(s.ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	})
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}
