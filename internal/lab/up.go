package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/guard/hook"
	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/guest"
	"hanok.dev/hanok/internal/lab/host"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
)

// Options say what Up brings up. The zero value is three hosts and six VMs.
type Options struct {
	// Name of the lab. Empty: "lab".
	Name string
	// Hosts and VMs of a generated cluster. Zero hosts: 3. Negative VMs: none;
	// zero: 6. Ignored when Cluster is given.
	Hosts, VMs int
	// Cluster is the content of a cluster file; addresses and VM ids that it
	// leaves out are filled in.
	Cluster []byte
	// Bare starts the VMs with virsh, without Hanok's daemons.
	Bare bool
	// NoWatchdog boots the hosts without watchdogs.
	NoWatchdog bool
	// RebootOnReset boots a host again after its watchdog reset it.
	RebootOnReset bool
	// SyncDisk passes fsync on to the machine's disk (supervisor.Settings).
	SyncDisk bool
	// Binary is the hanok binary; its directory is what hosts see. Empty: the
	// running one.
	Binary string
	// Packages are deb files that are installed in every host in place of
	// Binary's directory. Such hosts have a /usr of their own, and this machine's
	// systemd as PID 1.
	Packages []string
	// Progress is called with one line for each step. May be nil.
	Progress func(string)
}

// Default and largest amounts.
const (
	DefaultName  = "lab"
	defaultHosts = 3
	defaultVMs   = 6
	startAtOnce  = 3 // VMs started at a time: emulation is processor work
)

const (
	supervisorTimeout = 10 * time.Second
	libvirtTimeout    = 30 * time.Second
)

// programs are what the lab calls, and the packages that have them.
var programs = map[string]string{
	"/usr/sbin/libvirtd": "libvirt-daemon", "/usr/bin/virsh": "libvirt-clients",
	"/usr/bin/qemu-system-x86_64": "qemu-system-x86", "/usr/sbin/qemu-ga": "qemu-guest-agent",
	"/bin/busybox": "busybox-static", "/usr/bin/nsenter": "util-linux",
}

// Check says whether a lab can run here: as root, with all packages.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab makes namespaces, mounts and cgroups: run the command as root")
	}
	var missing []string
	for path, pkg := range programs {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing packages (%s): run scripts/install-deps.sh", strings.Join(missing, ", "))
	}
	_, err := cgroup.Mount()
	return err
}

// up is the state of one Up.
type up struct {
	Options
	client  *Client
	layout  layout.Lab
	cluster *config.Cluster
	begin   time.Time
}

// Up brings a lab up and returns when all VMs run: their guests answer and,
// unless it is bare, they are protected. On failure the lab is left for
// inspection if its supervisor runs, otherwise removed.
func Up(ctx context.Context, o Options) (*Client, error) {
	u, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := u.install(ctx); err != nil {
		return nil, errors.Join(err, Down(context.WithoutCancel(ctx), u.layout.Name(), nil))
	}
	for _, step := range []func(context.Context) error{u.bootHosts, u.installPackages, u.startDaemons, u.startVMs} {
		if err := step(ctx); err != nil {
			return u.client, fmt.Errorf("lab %s: %w (it is left for inspection; remove it with `hanok lab down --lab %s`)",
				u.layout.Name(), err, u.layout.Name())
		}
	}
	u.say("lab %s is up", u.layout.Name())
	return u.client, nil
}

// prepare checks and fills in the options; it changes nothing.
func prepare(o Options) (*up, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = DefaultName
	}
	client, err := Open(o.Name)
	if err != nil {
		return nil, err
	}
	if o.Binary == "" {
		if o.Binary, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	u := &up{Options: o, client: client, layout: client.layout, begin: time.Now()}
	group, err := cgroup.At(u.layout.Cgroup())
	if err != nil {
		return nil, err
	}
	if group.Exists() || pathExists(u.layout.DataDir()) {
		return nil, fmt.Errorf("lab %s exists already: remove it with `hanok lab down --lab %s`, or choose another name with --lab", o.Name, o.Name)
	}
	u.cluster, err = u.makeCluster()
	return u, err
}

func (u *up) makeCluster() (*config.Cluster, error) {
	if u.Cluster != nil {
		c, err := config.Parse(u.Cluster)
		if err != nil {
			return nil, err
		}
		return c, Complete(c)
	}
	hosts, vms := u.Hosts, u.VMs
	if hosts == 0 {
		hosts = defaultHosts
	}
	if vms == 0 {
		vms = defaultVMs
	}
	return GenerateCluster(u.layout, hosts, max(vms, 0))
}

func (u *up) say(format string, args ...any) {
	if u.Progress != nil {
		u.Progress(fmt.Sprintf("%5.1fs  %s", time.Since(u.begin).Seconds(), fmt.Sprintf(format, args...)))
	}
}

func pathExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// install makes all files of the lab and starts its supervisor.
func (u *up) install(ctx context.Context) error {
	binDir := filepath.Dir(u.Binary)
	guestDir, err := guest.Build(layout.CacheRoot, binDir)
	if err != nil {
		return err
	}
	u.say("guest image %s", filepath.Base(guestDir))
	if err := os.MkdirAll(u.layout.DataDir(), 0o700); err != nil {
		return err
	}
	for _, ds := range u.cluster.Datastores {
		if err := os.MkdirAll(u.layout.Backing(string(ds.Name)), 0o700); err != nil {
			return err
		}
	}
	settings := supervisor.Settings{BinDir: binDir, GuestDir: guestDir, RebootOnReset: u.RebootOnReset,
		SyncDisk: u.SyncDisk, Bare: u.Bare, Packages: len(u.Packages) > 0}
	for i := range u.cluster.VMs {
		v := &u.cluster.VMs[i]
		if err := createVM(u.layout, u.cluster, v); err != nil {
			return fmt.Errorf("create VM %s: %w", v.Name, err)
		}
		settings.VMs = append(settings.VMs, supervisor.VM{Name: v.Name, ID: string(v.ID),
			Disk: filepath.Join(u.layout.Backing(string(v.Datastore)), v.Name, "disk0.raw")})
	}
	if err := u.installHosts(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(supervisor.SettingsFile(u.layout), data, 0o600); err != nil {
		return err
	}
	u.say("%d hosts, %d datastores and %d VMs prepared", len(u.cluster.Hosts), len(u.cluster.Datastores), len(u.cluster.VMs))
	return u.startSupervisor(ctx)
}

// installHosts writes the cluster file and provisions every host with it and
// with its certificate.
func (u *up) installHosts() error {
	file, err := u.cluster.Marshal()
	if err != nil {
		return err
	}
	if err := os.WriteFile(u.layout.ClusterFile(), file, 0o600); err != nil {
		return err
	}
	if !u.Bare {
		if err := pki.Init(u.layout.PKIDir(), u.cluster.ID, pki.Options{}); err != nil {
			return fmt.Errorf("cluster CA: %w", err)
		}
	}
	neighbours := map[string]netip.Addr{}
	for _, h := range u.cluster.Hosts {
		neighbours[string(h.Name)] = h.Address[u.cluster.Networks[0].Name]
	}
	for _, h := range u.cluster.Hosts {
		if err := u.installHost(h, file, neighbours); err != nil {
			return fmt.Errorf("install host %s: %w", h.Name, err)
		}
	}
	return nil
}

func (u *up) installHost(h config.Host, file []byte, neighbours map[string]netip.Addr) error {
	etc := u.layout.HostEtc(string(h.Name))
	machine := make([]byte, 16)
	if _, err := rand.Read(machine); err != nil {
		return err
	}
	err := host.Provision(etc, u.layout.HostVar(string(h.Name)), host.Identity{Name: string(h.Name),
		UUID: uuid.NewString(), MachineID: hex.EncodeToString(machine), Neighbours: neighbours})
	if err == nil && len(u.Packages) > 0 {
		err = host.ProvisionSystemd(etc)
	}
	if err != nil || u.Bare {
		return err
	}
	inside := func(path string) string { return filepath.Join(etc, strings.TrimPrefix(path, "/etc/")) }
	if err := os.WriteFile(inside(paths.ClusterFile), file, 0o600); err != nil {
		return err
	}
	if len(u.Packages) == 0 {
		if err := hook.Install(inside(paths.Hook), filepath.Join(layout.HostBin, "hanok-guard")); err != nil {
			return err
		}
	}
	// Released when the datastores are initialised: before, the guard could
	// only complain.
	if err := os.WriteFile(inside(layout.HoldFile), nil, 0o600); err != nil {
		return err
	}
	var addresses []netip.Addr
	for _, n := range u.cluster.Networks {
		addresses = append(addresses, h.Address[n.Name])
	}
	if err := os.RemoveAll(inside(paths.PKIDir)); err != nil {
		return err
	}
	return pki.Issue(u.layout.PKIDir(), inside(paths.PKIDir), h.Name, addresses, pki.Options{})
}

// startSupervisor starts the daemon in its own session, cgroup and mount
// namespace.
func (u *up) startSupervisor(ctx context.Context) error {
	group, err := cgroup.At(u.layout.SupervisorCgroup())
	if err != nil {
		return err
	}
	if err := group.Create(); err != nil {
		return err
	}
	dir, err := os.Open(string(group))
	if err != nil {
		return err
	}
	defer dir.Close()
	log, err := os.OpenFile(u.layout.SupervisorLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(u.Binary, "lab", "supervise", "--lab", u.layout.Name())
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	died := make(chan error, 1)
	go func() { // ends with the supervisor
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		died <- err
	}()
	ctx, cancel := context.WithTimeout(ctx, supervisorTimeout)
	defer cancel()
	return u.client.waitUp(ctx, died)
}

// bootHosts powers all hosts on.
func (u *up) bootHosts(ctx context.Context) error {
	err := u.eachHost(func(name string) error { return u.client.PowerOn(ctx, name, u.NoWatchdog) })
	if err == nil {
		u.say("%d hosts are on", len(u.cluster.Hosts))
	}
	return err
}

func (u *up) eachHost(do func(name string) error) error {
	errs := make([]error, len(u.cluster.Hosts))
	var wg sync.WaitGroup
	for i, h := range u.cluster.Hosts {
		wg.Go(func() { errs[i] = do(string(h.Name)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startDaemons initialises the datastores and waits for libvirtd everywhere.
func (u *up) startDaemons(ctx context.Context) error {
	if !u.Bare {
		if err := u.initDatastores(ctx); err != nil {
			return err
		}
		err := u.eachHost(func(name string) error {
			if err := os.Remove(filepath.Join(u.layout.HostEtc(name), strings.TrimPrefix(layout.HoldFile, "/etc/"))); err != nil || len(u.Packages) == 0 {
				return err
			}
			_, err := u.client.Exec(ctx, name, "systemctl", "start", "hanok-guard", "libvirtd", "hanok-agent", "hanok-host-shutdown")
			return err
		})
		if err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtTimeout)
	defer cancel()
	err := u.eachHost(func(name string) error {
		return u.client.retry(ctx, name, "virsh", "--quiet", "-c", "qemu:///system", "list")
	})
	if err == nil {
		u.say("libvirtd answers on all hosts")
	}
	return err
}

func (u *up) initDatastores(ctx context.Context) error {
	for _, ds := range u.cluster.Datastores {
		for _, h := range u.cluster.Hosts {
			if !mounts(h, ds.Name) {
				continue
			}
			if _, err := u.client.Exec(ctx, string(h.Name), "hanok", "datastore", "init", string(ds.Name)); err != nil {
				return fmt.Errorf("initialise datastore %s: %w", ds.Name, err)
			}
			u.say("datastore %s initialised", ds.Name)
			break
		}
	}
	return nil
}

func mounts(h config.Host, ds model.DatastoreName) bool {
	for _, name := range h.Datastores {
		if name == ds {
			return true
		}
	}
	return false
}

// retry runs a command in a host until it succeeds.
func (c *Client) retry(ctx context.Context, host string, argv ...string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Exec(ctx, host, argv...)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
