// Command server measures one server with 1,000 hosts and 20,000 VMs reporting
// to it: `make bench-server`. The hosts are simulated in this process; each answers
// on an address of its own (127.0.0.0/8) over mutual TLS with its own certificate,
// as agents do. The server is a process of its own, with the connections of a real
// one.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
)

var (
	clusters = flag.Int("clusters", 20, "clusters")
	hosts    = flag.Int("hosts", 50, "hosts of each cluster")
	vms      = flag.Int("vms", 1000, "VMs of each cluster")
	rate     = flag.Int("rate", 200, "changes of VMs a second while the stream is watched")
	seconds  = flag.Int("seconds", 20, "how long the stream is watched")
	serve    = flag.String("serve", "", "be the server, in this directory")
)

func main() {
	flag.Parse()
	err := bench()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-server:", err)
		os.Exit(1)
	}
}

// asServer is the process that is measured.
func asServer(dir string) error {
	var given []*pki.Credentials
	for n := range *clusters {
		c, err := pki.Load(serverDir(dir, n))
		if err != nil {
			return err
		}
		given = append(given, c)
	}
	s, err := server.New(server.Config{Name: "bench", Socket: filepath.Join(dir, "s"), Store: store.Config{Dir: filepath.Join(dir, "data")},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		AgentPort: local.RemotePort, Given: func() []*pki.Credentials { return given }})
	if err != nil {
		return err
	}
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

func caDir(dir string, n int) string     { return filepath.Join(dir, fmt.Sprintf("ca%d", n)) }
func serverDir(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("server%d", n)) }

// hostSide makes a cluster of simulated hosts, each with its certificate, that
// answer.
func hostSide(dir string, n int, c *config.Cluster) (*fakeagent.Cluster, error) {
	f, err := fakeagent.New(c)
	if err != nil {
		return nil, err
	}
	if err := pki.Init(caDir(dir, n), c.ID, pki.Options{}); err != nil {
		return nil, err
	}
	if err := pki.IssueServer(caDir(dir, n), serverDir(dir, n), "bench", pki.Options{}); err != nil {
		return nil, err
	}
	for _, h := range c.Hosts {
		at := h.Address["mgmt"]
		own := filepath.Join(dir, string(h.Name))
		if err := pki.Issue(caDir(dir, n), own, h.Name, []netip.Addr{at}, pki.Options{}); err != nil {
			return nil, err
		}
		f.SetTrust(h.Name, pki.NewKeeper(own))
		if _, err := f.Serve(h.Name, netip.AddrPortFrom(at, local.RemotePort)); err != nil { // until this process ends
			return nil, err
		}
	}
	return f, nil
}

func file(n int) (*config.Cluster, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nname: c%02d\nnetworks: [{name: mgmt, heartbeat: true}]\ndatastores: [{name: ds1}]\nhosts:\n", n)
	for h := range *hosts {
		fmt.Fprintf(&b, "- {name: c%02d-h%03d, address: {mgmt: 127.%d.0.%d}, memory: 512GiB, datastores: [ds1]}\n", n, h, n+10, h+1)
	}
	b.WriteString("vms:\n")
	for v := range *vms {
		fmt.Fprintf(&b, "- {name: c%02d-vm%04d, datastore: ds1, host: c%02d-h%03d, memory: 4GiB}\n", n, v, n, v%*hosts)
	}
	return config.Parse([]byte(b.String()))
}

func bench() error {
	if *serve != "" {
		return asServer(*serve)
	}
	dir, err := os.MkdirTemp("", "hanok")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var fakes []*fakeagent.Cluster
	var files []string
	for n := range *clusters {
		c, err := file(n)
		if err != nil {
			return err
		}
		f, err := hostSide(dir, n, c)
		if err != nil {
			return err
		}
		fakes = append(fakes, f)
		b, err := c.Marshal()
		if err != nil {
			return err
		}
		files = append(files, string(b))
	}
	cmd := exec.Command(os.Args[0], "-serve", dir, "-clusters", fmt.Sprint(*clusters))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("the server did not start: %w", err)
	}
	return measure(filepath.Join(dir, "s"), cmd.Process.Pid, files, fakes)
}

func measure(socket string, pid int, files []string, fakes []*fakeagent.Cluster) error {
	ctx := context.Background()
	h := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	inv, conf := hanokv1connect.NewInventoryServiceClient(h, "http://s"), hanokv1connect.NewConfigServiceClient(h, "http://s")
	events := hanokv1connect.NewEventServiceClient(h, "http://s")
	tr := hanokv1connect.NewTrustServiceClient(h, "http://s")
	begin := time.Now()
	for n, f := range files {
		if _, err := conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: f}); err != nil {
			return err
		}
		// From now on the server looks after the hosts' certificates.
		ca, err := pki.LoadAuthority(caDir(filepath.Dir(socket), n))
		if err != nil {
			return err
		}
		cert, key, err := ca.PEM()
		if err != nil {
			return err
		}
		if _, err := tr.ImportAuthority(ctx, &hanokv1.ImportAuthorityRequest{Cluster: fmt.Sprintf("c%02d", n), Certificate: string(cert), Key: string(key)}); err != nil {
			return err
		}
	}
	total := *clusters * *vms
	list := func() (int, string, error) {
		n, token := 0, ""
		req := &hanokv1.ListVMsRequest{PageSize: 5000}
		for {
			p, err := inv.ListVMs(ctx, req)
			if err != nil {
				return 0, "", err
			}
			if token == "" {
				token = p.ResumeToken
			}
			n += len(p.Vms)
			if req.PageToken = p.NextPageToken; req.PageToken == "" {
				return n, token, nil
			}
		}
	}
	var token string
	for {
		n, tok, err := list()
		if err != nil {
			return err
		}
		if token = tok; n == total {
			break
		}
		if time.Since(begin) > 3*time.Minute {
			return fmt.Errorf("after %v %d of %d VMs are known", time.Since(begin), n, total)
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Printf("%d hosts, %d VMs in %d clusters: all known %.1f s after the clusters were added\n", *clusters**hosts, total, *clusters, time.Since(begin).Seconds())
	time.Sleep(5 * time.Second) // reports go on meanwhile
	var times []time.Duration
	for range 20 {
		at := time.Now()
		if _, _, err := list(); err != nil {
			return err
		}
		times = append(times, time.Since(at))
	}
	fmt.Printf("list of all VMs, pages of 5000: p50 %v, worst %v\n", quantile(times, 50), quantile(times, 100))
	if err := stream(ctx, inv, events, fakes, token); err != nil {
		return err
	}
	fmt.Printf("the server: %s now, %s at most, %s of processor time in %.0f s\n", memory(pid, "VmRSS:"), memory(pid, "VmHWM:"), processor(pid), time.Since(begin).Seconds())
	return nil
}

// stream changes VMs and hosts' logs, and measures until a stream tells.
func stream(ctx context.Context, inv hanokv1connect.InventoryServiceClient, events hanokv1connect.EventServiceClient, fakes []*fakeagent.Cluster, token string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*seconds+60)*time.Second)
	defer cancel()
	w, err := inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: token, Kinds: []string{"vm"}})
	if err != nil {
		return err
	}
	ew, err := events.WatchEvents(ctx, &hanokv1.WatchEventsRequest{})
	if err != nil {
		return err
	}
	total := *rate * *seconds
	sent := make([]time.Time, total)
	go func() {
		tick := time.NewTicker(time.Second / time.Duration(*rate))
		defer tick.Stop()
		for i := range total {
			<-tick.C
			sent[i] = time.Now()
			f := fakes[i%len(fakes)]
			f.SetVM(i/len(fakes), func(v *local.VM) { v.Reason = fmt.Sprint("change ", i) })
			f.Emit(model.HostID(fmt.Sprintf("c%02d-h%03d", i%len(fakes), i%*hosts)), event.Event{Severity: event.Info, Kind: event.VMUp, Text: fmt.Sprint("change ", i)})
		}
	}()
	var lag, elag []time.Duration
	seen := make(chan error, 1)
	go func() {
		for ew.Receive() {
			var i int
			if e := ew.Msg().Event; e != nil {
				if n, _ := fmt.Sscanf(e.Text, "change %d", &i); n == 1 {
					if elag = append(elag, time.Since(sent[i])); len(elag) == total {
						seen <- nil
						return
					}
				}
			}
		}
		seen <- fmt.Errorf("stream of events, %d of %d came: %w", len(elag), total, ew.Err())
	}()
	for len(lag) < total && w.Receive() {
		var i int
		if v := w.Msg().GetVm(); v != nil {
			if n, _ := fmt.Sscanf(v.Reason, "change %d", &i); n == 1 {
				lag = append(lag, time.Since(sent[i]))
			}
		}
	}
	if len(lag) < total {
		return fmt.Errorf("stream of VMs, %d of %d changes came: %w", len(lag), total, w.Err())
	}
	if err := <-seen; err != nil {
		return err
	}
	fmt.Printf("stream of VMs, %d changes a second, hosts asked once a second: all %d came, p50 %v, worst %v after the change\n", *rate, total, quantile(lag, 50), quantile(lag, 100))
	fmt.Printf("stream of events, %d a second: all %d came once, p50 %v, worst %v after the event\n", *rate, total, quantile(elag, 50), quantile(elag, 100))
	return nil
}

func quantile(d []time.Duration, p int) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[(len(s)-1)*p/100].Round(time.Millisecond)
}

// memory reads a line of the process's status.
func memory(pid int, field string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, field); ok {
			var kb int
			if _, err := fmt.Sscan(rest, &kb); err == nil {
				return fmt.Sprintf("%d MiB", kb>>10)
			}
		}
	}
	return "unknown"
}

// processor is the time that a process took, user and system.
func processor(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var user, system int
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	_, _ = fmt.Sscan(f[11], &user)
	_, _ = fmt.Sscan(f[12], &system)
	return time.Duration(user+system) * (time.Second / 100) // in ticks of 10 ms
}
