package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

func newVM(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "List, protect, change, start and stop VMs"}
	cmd.AddCommand(newVMList(a), newVMShow(a), newProtect(a), newUnprotect(a), newDrift(a), newVMSet(a),
		newPower(a, power{use: "start", short: "Start a VM where it fits", done: "runs", forced: true,
			request: func(r *fdm.VMRef) fdm.AdminRequest { return fdm.AdminRequest{Start: r} },
			reached: func(v *local.VM) bool { return v.State == model.VMStarted }}),
		newPower(a, power{use: "stop", short: "Shut a VM down through its guest; it stays down", done: "is stopped",
			request: func(r *fdm.VMRef) fdm.AdminRequest { return fdm.AdminRequest{Shutdown: r} },
			reached: func(v *local.VM) bool { return v.State == model.VMStopped }}),
		newPower(a, power{use: "kill", short: "End a VM at once; it stays down", done: "is stopped",
			request: func(r *fdm.VMRef) fdm.AdminRequest { return fdm.AdminRequest{Kill: r} },
			reached: func(v *local.VM) bool { return v.State == model.VMStopped }}))
	return cmd
}

// status asks the agent of this host, and fails when it cannot work.
func (a *app) status(ctx context.Context) (*local.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := a.agent().Status(ctx)
	if err == nil && s.Local.Error != "" {
		return nil, Fail(ExitFailed, s.Local.Remedy, "the agent of this host cannot work: %s", s.Local.Error)
	}
	return s, err
}

// live is the cluster file in force and the state of the cluster.
func (a *app) live(ctx context.Context) (*config.Cluster, *local.Status, error) {
	c, err := a.config(ctx)
	if err != nil {
		return nil, nil, err
	}
	s, err := a.status(ctx)
	return c, s, err
}

// vm finds one VM of the cluster.
func (a *app) vm(ctx context.Context, name string) (*local.Status, *local.VM, error) {
	s, err := a.status(ctx)
	if err != nil {
		return nil, nil, err
	}
	if v := s.VMByName(name); v != nil {
		return s, v, nil
	}
	return s, nil, Fail(ExitNotFound, "`hanok vm list` shows the VMs of the cluster; `hanok vm protect "+name+"` on the host that has it adds it", "no VM %q is known", name)
}

func newVMList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the VMs of the cluster", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		s, err := a.status(c.Context())
		if err != nil {
			return err
		}
		if js {
			return writeJSON(c.OutOrStdout(), s.VMs)
		}
		vmTable(s).write(c.OutOrStdout(), painterFor(c.OutOrStdout()))
		return nil
	}
	return cmd
}

func newVMShow(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "show VM", Short: "Show what is known of one VM", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFrom(vmNames)}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		_, v, err := a.vm(c.Context(), args[0])
		if err != nil {
			return err
		}
		if js {
			return writeJSON(c.OutOrStdout(), v)
		}
		printVM(c.OutOrStdout(), v)
		return nil
	}
	return cmd
}

func printVM(w io.Writer, v *local.VM) {
	line := func(name, value string) { i18n.Fprintf(w, "%-12s %s\n", name, dash(value)) }
	line("name", v.Name)
	line("id", string(v.ID))
	line("state", string(v.State))
	line("host", string(v.Host))
	line("datastore", string(v.Datastore))
	line("protected", screen.YesNo(v.Protected))
	line("reason", v.Reason)
	line("guest", map[bool]string{true: "alive"}[v.Alive])
	line("priority", string(v.Priority))
	if len(v.WaitsFor) > 0 {
		line("starts after", strings.Join(v.WaitsFor, ", "))
	}
	if v.Order > 0 {
		line("turn", fmt.Sprintf("%d in the order of restarts", v.Order))
	}
	if v.Ready != "" {
		line("readiness", v.Ready)
	}
	if v.Origin != "" {
		line("was on", fmt.Sprintf("%s, before a failover; it goes back when live migration exists", v.Origin))
	}
	if v.Epoch > 0 {
		line("lock epoch", fmt.Sprint(v.Epoch))
	}
	if v.Attempts > 0 {
		line("attempts", fmt.Sprint(v.Attempts))
	}
	if v.RetryInSeconds > 0 {
		line("next in", fmt.Sprintf("%.0f s", v.RetryInSeconds))
	}
}

// adminLimit is above what the agent takes to answer a request.
const adminLimit = 2 * time.Minute

// order sends a request and turns a refusal into an error.
func (a *app) order(ctx context.Context, req fdm.AdminRequest) (string, error) {
	to := a.agent()
	if req.Leave != nil {
		to = local.NewClient(a.socket) // it is about this host
	}
	if req.Force && req.By == "" {
		req.By = whoAsks()
	}
	r, err := to.Admin(ctx, req)
	if err != nil {
		return "", err
	}
	if !r.OK {
		return "", refusal(r)
	}
	for _, w := range r.Warnings {
		r.Text = strings.TrimPrefix(r.Text+"\nwarning: "+w, "\n")
	}
	return r.Text, nil
}

// refusal is the error of a request that was not carried out.
func refusal(r fdm.AdminReply) error {
	remedy := strings.Join(r.Help, "; or ")
	if r.Refused {
		remedy = strings.TrimPrefix(remedy+"; or do it all the same with --force", "; or ")
	}
	return Fail(ExitRefused, remedy, "%s", r.Text)
}

// forceFlag is --force: one word of one meaning wherever admission control may
// refuse.
func forceFlag(cmd *cobra.Command, force *bool) {
	cmd.Flags().BoolVar(force, "force", false, "do it though admission control refuses: room for failures may be missing then; an event says who did")
}

// whoAsks is the user who runs this, behind sudo if there is one.
func whoAsks() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("user %d", os.Getuid())
}

// orderPrimary is order for a request that the primary must answer: while there
// is none, or the list of the datastore home (any, if empty) has no owner yet,
// it waits, at most limit.
func (a *app) orderPrimary(ctx context.Context, limit time.Duration, say *progress, home model.DatastoreName, req fdm.AdminRequest) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, max(limit, adminLimit))
	defer cancel()
	until := time.Now().Add(limit)
	for {
		before := a.waitsFor(ctx, home)
		text, err := a.order(ctx, req)
		after := a.waitsFor(ctx, home)
		if err == nil || before == "" && after == "" || time.Now().After(until) {
			return text, err
		}
		if after != "" {
			say.say("waiting for %s", after)
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pollEvery):
		}
	}
}

// waitsFor is what will be there in a moment, and is not yet: a primary, or its
// hold on a list. Empty when all is there, or nothing is to be expected.
func (a *app) waitsFor(ctx context.Context, home model.DatastoreName) string {
	s, err := a.status(ctx)
	if err != nil || !s.HA {
		return ""
	}
	if s.Primary == "" || s.State == model.HostElection {
		return "a primary"
	}
	for _, d := range s.Datastores {
		if d.Owner == "" && (home == d.Name || home == "") {
			return fmt.Sprintf("the protected list of %s", d.Name)
		}
	}
	return ""
}

func newUnprotect(a *app) *cobra.Command {
	var here bool
	cmd := &cobra.Command{Use: "unprotect VM", Short: "Stop protecting a VM; it runs on", Args: cobra.MaximumNArgs(1),
		Long:              "Stop protecting a VM: it runs on, and nothing restarts it. Its lock and its\ndefinition stay on the datastore.\n\n--here takes all VMs that run on this host, before Hanok is removed from it.",
		ValidArgsFunction: a.completeFrom(vmNames)}
	cmd.Flags().BoolVar(&here, "here", false, "all protected VMs that run on this host")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if here == (len(args) == 1) {
			return usage("usage: "+c.UseLine(), "name a VM, or give --here")
		}
		names := args
		if here {
			var err error
			if names, err = a.vmsHere(c.Context()); err != nil {
				return err
			}
		}
		say := progress{w: c.ErrOrStderr()}
		for _, name := range names {
			text, err := a.orderPrimary(c.Context(), askLimit, &say, "", fdm.AdminRequest{Unprotect: &fdm.VMRef{Name: name}})
			if err != nil {
				return err
			}
			i18n.Fprintln(c.OutOrStdout(), text)
		}
		return nil
	}
	return cmd
}

// vmsHere names, by id, the protected VMs that run on this host under its guard.
func (a *app) vmsHere(ctx context.Context) ([]string, error) {
	s, err := a.status(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range s.Local.Locks {
		if k.Phase != string(lease.PhaseGone) && s.VMByName(string(k.VM)) != nil {
			out = append(out, string(k.VM))
		}
	}
	return out, nil
}

type power struct {
	use, short, done string
	forced           bool // admission control may refuse it
	request          func(*fdm.VMRef) fdm.AdminRequest
	reached          func(*local.VM) bool
}

// newPower is a command that changes whether a VM runs, and waits for it.
func newPower(a *app, p power) *cobra.Command {
	var wait time.Duration
	var force bool
	cmd := &cobra.Command{Use: p.use + " VM", Short: p.short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeFrom(vmNames)}
	cmd.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how long to wait for it; 0 does not wait")
	if p.forced {
		forceFlag(cmd, &force)
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		say := progress{w: c.ErrOrStderr()}
		req := p.request(&fdm.VMRef{Name: args[0]})
		req.Force = force
		text, err := a.orderPrimary(c.Context(), wait, &say, "", req)
		if err != nil {
			return err
		}
		if text != "" {
			say.say("%s", text)
		}
		if wait <= 0 {
			return nil
		}
		v, err := a.await(c.Context(), wait, args[0], &say, p.reached)
		if err != nil {
			return err
		}
		where := ""
		if v.State == model.VMStarted && v.Host != "" {
			where = " on " + string(v.Host)
		}
		i18n.Fprintf(c.OutOrStdout(), "%s %s%s\n", v.Name, p.done, where)
		return nil
	}
	return cmd
}

// pollEvery is the pause between looks while a command waits.
const pollEvery = 300 * time.Millisecond

// await looks at a VM until it is as wanted, and says what goes on.
func (a *app) await(ctx context.Context, limit time.Duration, name string, say *progress, reached func(*local.VM) bool) (*local.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	last := "it is not known yet"
	for {
		s, err := a.status(ctx)
		if err == nil {
			if v := s.VMByName(name); v != nil {
				if reached(v) {
					return v, nil
				}
				last = fmt.Sprintf("it is %s", v.State)
				if v.Reason != "" {
					last += ", " + v.Reason
				}
				say.say("waiting for %s: %s", name, last)
			}
		}
		select {
		case <-ctx.Done():
			return nil, Fail(ExitTimeout, "it may still happen: `hanok vm show "+name+"`", "%s: not within %v: %s", name, limit, last)
		case <-tick.C:
		}
	}
}
