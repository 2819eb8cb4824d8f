package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/hypervisor/domainxml"
	"hanok.dev/hanok/internal/hypervisor/libvirt"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
)

// libvirtWait is how long a command waits for libvirtd.
const libvirtWait = 10 * time.Second

func newProtect(a *app) *cobra.Command {
	var all bool
	var how adopting
	cmd := &cobra.Command{Use: "protect VM...", Short: "Protect VMs of this host", Args: cobra.ArbitraryArgs,
		Long: `Protect VMs that libvirt knows on this host: their definitions are checked and
copied beside their disks, libvirt's autostart is cleared, and Hanok restarts
them elsewhere when this host fails. Running VMs run on.

A VM that cannot be protected is named with every reason and what to do.`,
		ValidArgsFunction: a.completeDomains}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all VMs of this host")
	f.BoolVar(&how.dryRun, "dry-run", false, "only check, and ask admission control")
	forceFlag(cmd, &how.force)
	f.DurationVar(&how.wait, "wait", time.Minute, "how long to wait until it is protected; 0 does not wait")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return usage("usage: "+c.UseLine(), "name VMs, or give --all")
		}
		p, err := a.newAdopter(c.Context())
		if err != nil {
			return err
		}
		defer p.hv.Close()
		domains, err := p.choose(c.Context(), args)
		if err != nil {
			return err
		}
		failed := 0
		var last error
		for _, d := range domains {
			err := p.adopt(c, d, how)
			var more *Error
			if errors.As(err, &more) || err != nil {
				failed, last = failed+1, err
				if len(domains) > 1 {
					report(c.ErrOrStderr(), err)
				}
			}
		}
		if failed > 0 && len(domains) > 1 {
			return Fail(explain(last).Code, "", "%s of %s not protected", plural(failed, "VM"), plural(len(domains), "VM"))
		}
		return last
	}
	return cmd
}

// adopting is how domains are protected.
type adopting struct {
	dryRun, force bool
	wait          time.Duration
}

// adopter protects domains of this host.
type adopter struct {
	app     *app
	cluster *config.Cluster
	status  *local.Status
	place   domainxml.Place
	hv      *libvirt.Driver
}

func (a *app) newAdopter(ctx context.Context) (*adopter, error) {
	s, err := a.status(ctx)
	if err != nil {
		return nil, err
	}
	c, err := a.config(ctx)
	if err != nil {
		return nil, err
	}
	hv, err := openLibvirt(ctx)
	if err != nil {
		return nil, err
	}
	place := domainxml.Place{Datastores: map[string]model.DatastoreName{}, Resolve: resolve}
	for _, d := range c.DatastoresOf(s.Host) {
		place.Datastores[resolve(d.Path)] = d.Name
	}
	return &adopter{app: a, cluster: c, status: s, place: place, hv: hv}, nil
}

func resolve(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

// config is the cluster file that the agent keeps.
func (a *app) config(ctx context.Context) (*config.Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	b, err := a.agent().Config(ctx)
	if err != nil {
		return nil, err
	}
	return config.Parse(b)
}

// openLibvirt connects to libvirtd of this host.
func openLibvirt(ctx context.Context) (*libvirt.Driver, error) {
	hv := libvirt.New(libvirt.Config{})
	limit := time.NewTimer(libvirtWait)
	defer limit.Stop()
	for {
		select {
		case e := <-hv.Events():
			if e.Kind == hypervisor.EventResync {
				return hv, nil
			}
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), hv.Close())
		case <-limit.C:
			why := hv.Connection().Err
			return nil, errors.Join(Fail(ExitUnreachable, "systemctl start libvirtd", "libvirt on this host does not answer: %w", why), hv.Close())
		}
	}
}

// choose finds the named domains, or all that are not protected yet.
func (p *adopter) choose(ctx context.Context, names []string) ([]hypervisor.Domain, error) {
	list, err := p.hv.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []hypervisor.Domain
	if len(names) == 0 {
		for _, d := range list {
			if v := p.status.VMByName(string(d.VM)); v == nil || !v.Protected {
				out = append(out, d)
			}
		}
		return out, nil
	}
	known := make([]string, len(list))
	for i, d := range list {
		known[i] = d.Name
	}
next:
	for _, n := range names {
		for _, d := range list {
			if d.Name == n || string(d.VM) == n {
				out = append(out, d)
				continue next
			}
		}
		remedy := "run it on the host that has the VM"
		if v := p.status.VMByName(n); v != nil && v.Host != "" {
			remedy = "run it on " + string(v.Host)
		} else if near := config.Suggest(n, known); near != "" {
			remedy += ", or: " + near
		}
		return nil, Fail(ExitNotFound, remedy, "libvirt on %s has no domain %q", p.status.Host, n)
	}
	return out, nil
}

// adopt protects one domain.
func (p *adopter) adopt(c *cobra.Command, d hypervisor.Domain, how adopting) error {
	ctx, out := c.Context(), c.OutOrStdout()
	text, err := p.hv.XML(ctx, d.VM, d.Persistent)
	if err != nil {
		return err
	}
	def, err := domainxml.Parse([]byte(text))
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	place := p.place
	place.Transient = !d.Persistent
	problems := place.Check(def)
	printFindings(out, d.Name, problems)
	if !domainxml.Protectable(problems) {
		return Fail(ExitRefused, "do what is said above, then try again", "%s cannot be protected", d.Name)
	}
	home, ok := place.Home(def)
	if !ok {
		return Fail(ExitRefused, "give it a disk on a datastore", "%s has no disk on a datastore", d.Name)
	}
	file := filepath.Join(p.cluster.DatastoreByName(home).Path, def.Name, def.Name+".xml")
	vm := p.managed(def, place, home, file, d.Active)
	if how.dryRun {
		i18n.Fprintf(out, "%s can be protected; its lock would be on %s, its definition in %s\n", d.Name, home, file)
		if d.Active {
			return p.app.considered(c, fdm.Consideration{Protect: &vm})
		}
		return nil
	}
	normal, err := domainxml.Normalise([]byte(text))
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	if err := keepDefinition(file, normal, def.VM); err != nil {
		return err
	}
	if d.Autostart {
		if err := p.hv.SetAutostart(ctx, d.VM, false); err != nil {
			return err
		}
	}
	say := progress{w: c.ErrOrStderr()}
	reply, err := p.app.orderPrimary(ctx, how.wait, &say, home, fdm.AdminRequest{Protect: &vm, Force: how.force})
	if err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	if reply != "" {
		say.say("%s: %s", d.Name, reply)
	}
	if how.wait <= 0 {
		return nil
	}
	if !d.Active {
		i18n.Fprintf(out, "%s is registered; it does not run: hanok vm start %s\n", d.Name, d.Name)
		return nil
	}
	if _, err := p.app.await(ctx, how.wait, d.Name, &say, func(v *local.VM) bool { return v.Protected }); err != nil {
		return err
	}
	i18n.Fprintf(out, "%s is protected\n", d.Name)
	return nil
}

// managed is a domain of this host as Hanok will manage it.
func (p *adopter) managed(def *domainxml.Definition, place domainxml.Place, home model.DatastoreName, file string, active bool) model.ProtectedVM {
	vm := model.ProtectedVM{ID: def.VM, Name: def.Name, Home: home, Datastores: place.DatastoresOf(def), Config: file,
		Memory: def.Memory, CPUs: def.VCPUs, Requested: model.RequestedStarted, Host: p.status.Host}
	for _, disk := range def.Disks {
		if disk.Source != "" && !disk.ReadOnly {
			vm.Disks = append(vm.Disks, resolve(disk.Source))
		}
	}
	if v := p.cluster.VMByName(def.Name); v != nil {
		vm.Priority, vm.DependsOn, vm.Requested = v.Restart.Priority, v.DependsOn, v.Requested
	}
	if !active {
		vm.Requested = model.RequestedStopped
	}
	return vm
}

func printFindings(w io.Writer, name string, problems []domainxml.Problem) {
	for _, x := range problems {
		mark := "problem"
		if x.Advice {
			mark = "advice"
		}
		i18n.Fprintf(w, "%s: %s: %s\n  what to do: %s\n", name, mark, x.What, x.Remedy)
	}
}

// keepDefinition writes the definition durably, readable by root only. A
// definition of another VM is not replaced.
func keepDefinition(file string, text []byte, vm model.VMID) error {
	if old, err := os.ReadFile(file); err == nil {
		if d, err := domainxml.Parse(old); err == nil && d.VM != vm {
			return Fail(ExitRefused, "move that file away, or rename the VM", "%s belongs to another VM, %s", file, d.VM)
		}
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("keep the definition: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("keep the definition: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep the definition in %s: %w", file, err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("keep the definition: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("keep the definition: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func newDrift(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "drift VM", Short: "Show how libvirt's definition differs from the one on the datastore", Args: cobra.ExactArgs(1),
		Long:              "Show how libvirt's definition on this host differs from the one beside the VM's\ndisks, which is what another host would start. `hanok vm protect VM` brings\nlibvirt's to the datastore.",
		ValidArgsFunction: a.completeDomains}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		p, err := a.newAdopter(c.Context())
		if err != nil {
			return err
		}
		defer p.hv.Close()
		domains, err := p.choose(c.Context(), args)
		if err != nil {
			return err
		}
		text, err := p.hv.XML(c.Context(), domains[0].VM, domains[0].Persistent)
		if err != nil {
			return err
		}
		def, err := domainxml.Parse([]byte(text))
		if err != nil {
			return err
		}
		home, ok := p.place.Home(def)
		if !ok {
			return Fail(ExitRefused, "hanok vm protect "+args[0]+" says more", "%s has no disk on a datastore", args[0])
		}
		file := filepath.Join(p.cluster.DatastoreByName(home).Path, def.Name, def.Name+".xml")
		kept, err := os.ReadFile(file)
		if err != nil {
			return Fail(ExitNotFound, "hanok vm protect "+args[0], "no definition is kept: %w", err)
		}
		diff, err := domainxml.Drift(kept, []byte(text))
		if err != nil {
			return err
		}
		if js {
			if diff == nil {
				diff = []domainxml.Difference{}
			}
			return writeJSON(c.OutOrStdout(), diff)
		}
		if len(diff) == 0 {
			i18n.Fprintf(c.OutOrStdout(), "%s: libvirt and %s agree\n", args[0], file)
			return nil
		}
		for _, d := range diff {
			fmt.Fprintln(c.OutOrStdout(), d)
		}
		return Fail(ExitFailed, "hanok vm protect "+args[0]+" brings libvirt's definition to the datastore", "%s between %s and libvirt", plural(len(diff), "difference"), file)
	}
	return cmd
}

// completeDomains completes with the domains of this host.
func (a *app) completeDomains(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	hv, err := openLibvirt(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer hv.Close()
	list, err := hv.List(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, d := range list {
		if !strings.HasPrefix(d.Name, "hanok-canary-") {
			out = append(out, d.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
