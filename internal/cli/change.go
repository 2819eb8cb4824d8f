package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

// changing is how a command changes the cluster file in force.
type changing struct {
	dryRun bool
	// force: though admission control refuses.
	force bool
	json  bool
}

// flags adds those of a command that changes something.
func (o *changing) flags(cmd *cobra.Command) (out *string) {
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only check and show")
	forceFlag(cmd, &o.force)
	return outputFlag(cmd)
}

// changed is the outcome of such a command as JSON.
type changed struct {
	// Version is the one in force; with --dry-run the one that it would be.
	Version uint64          `json:"version"`
	DryRun  bool            `json:"dryRun,omitempty"`
	Changes []config.Change `json:"changes"`
	// Hosts have it; Away are not connected and get it when they come back.
	Hosts []string `json:"hosts,omitempty"`
	Away  []string `json:"away,omitempty"`
	// Conflicts are the contradictions among the rules that the change brought.
	Conflicts []rules.Conflict `json:"conflicts"`
}

// changeTries is how often a change is made anew because somebody else was faster.
const changeTries = 3

// change makes a change from the cluster file in force, and anew from the newer
// one when somebody else changed it meanwhile: neither change is lost.
func (a *app) change(c *cobra.Command, o changing, edit func(*config.Cluster) (*config.Cluster, error)) error {
	for try := 1; ; try++ {
		now, err := a.config(c.Context())
		if err != nil {
			return err
		}
		next, err := edit(now.Clone())
		if err != nil {
			return asUsage(err)
		}
		next.Version = now.Version + 1
		err = a.bring(c, o, now, next)
		if err == nil || try == changeTries || explain(err).Code != ExitRefused {
			return err
		}
		if newer, e := a.config(c.Context()); e != nil || newer.Version == now.Version {
			return err
		}
		i18n.Fprintf(c.ErrOrStderr(), "version %d was changed meanwhile; the change is made again from the newer one\n", now.Version)
	}
}

// asUsage is an error of what a command was told to set.
func asUsage(err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	return usage("nothing was changed", "%w", err)
}

func (a *app) bring(c *cobra.Command, o changing, now, next *config.Cluster) error {
	out := changed{Version: next.Version, DryRun: o.dryRun, Changes: config.Diff(now, next), Conflicts: newConflicts(now, next)}
	w := c.OutOrStdout()
	if len(out.Changes) == 0 {
		if out.Version = now.Version; o.json {
			out.Changes = []config.Change{}
			return writeJSON(w, out)
		}
		i18n.Fprintf(w, "nothing changes; version %d stays in force\n", now.Version)
		return nil
	}
	if !o.json {
		for _, d := range out.Changes {
			fmt.Fprintln(w, d)
		}
		warnOf(c.ErrOrStderr(), out.Conflicts)
	}
	switch {
	case o.dryRun && o.json:
		return writeJSON(w, out)
	case o.dryRun:
		refused := a.admissionOf(c, w, next, true)
		i18n.Fprintf(w, "would become version %d\n", next.Version)
		if o.force {
			return nil
		}
		return refused
	}
	var err error
	if out.Hosts, out.Away, err = a.handOver(c, next, o.force); err != nil {
		return err
	}
	if o.json {
		return writeJSON(w, out)
	}
	printInForce(w, next.Version, out.Hosts, out.Away)
	return nil
}

func printInForce(w io.Writer, version uint64, have, away []string) {
	i18n.Fprintf(w, "version %d is in force on %s\n", version, strings.Join(have, ", "))
	if len(away) > 0 {
		i18n.Fprintf(w, "not connected, they get it when they come back: %s\n", strings.Join(away, ", "))
	}
}

// newConflicts are the contradictions that were not there before.
func newConflicts(now, next *config.Cluster) []rules.Conflict {
	old := snapshot.Check(now, rules.Options{}).Conflicts
	return slices.DeleteFunc(append([]rules.Conflict{}, snapshot.Check(next, rules.Options{}).Conflicts...), func(x rules.Conflict) bool {
		return slices.ContainsFunc(old, func(y rules.Conflict) bool { return x.Disabled == y.Disabled && x.Reason == y.Reason })
	})
}

func warnOf(w io.Writer, list []rules.Conflict) {
	for _, x := range list {
		i18n.Fprintf(w, "note: rule %s will not be in force: %s contradict each other: %s\n", x.Disabled, strings.Join(x.Rules, ", "), x.Reason)
	}
}

// settings reads FIELD=VALUE arguments about one element of a list of the cluster
// file.
func settings(list, name string, args []string) ([]config.Setting, error) {
	var out []config.Setting
	for _, x := range args {
		field, value, ok := strings.Cut(x, "=")
		if !ok || field == "" {
			return nil, usage("write FIELD=VALUE, such as "+examples[list], "%q sets nothing", x)
		}
		if field == "name" {
			return nil, usage("remove it, and add it under the other name", "the name of %s cannot be changed", name)
		}
		out = append(out, config.Setting{Path: fmt.Sprintf("%s[%s].%s", list, name, field), Value: value})
	}
	return out, nil
}

var examples = map[string]string{"vms": "requested=stopped", "rules": "policy=apart"}

// completeSettings completes FIELD=VALUE for an element of a list; with names the
// first argument is one of them.
func (a *app) completeSettings(list string, names cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, to string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			if names == nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return names(c, args, to)
		}
		field, _, valued := strings.Cut(to, "=")
		var out []cobra.Completion
		for _, f := range config.FieldsOf(list) {
			switch {
			case valued && f.Path == field:
				for _, w := range f.Words {
					out = append(out, f.Path+"="+w)
				}
			case !valued:
				out = append(out, f.Path+"=")
			}
		}
		if valued {
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// newVMSet changes what the cluster file says of one VM.
func newVMSet(a *app) *cobra.Command {
	var o changing
	cmd := &cobra.Command{Use: "set VM FIELD=VALUE...", Short: "Change what the cluster file says of a VM", Args: cobra.MinimumNArgs(2),
		Long: `Change what the cluster file says of a VM, and bring that into force on all hosts.
The fields are those of vms[] in the cluster file (docs/configuration.md), such as

  requested=started|stopped|disabled|ignored
  restart.priority=disabled|lowest|low|medium|high|highest
  restart.maxRestart=2  restart.maxRelocate=1  restart.readyWhen=guestHeartbeat
  groups=front,web      dependsOn=dns

Without a value a field gets its default back. A VM that is protected and not in
the cluster file yet is added to it. When somebody else changes the file at the
same time, the change is made again from the newer one.`,
		ValidArgsFunction: a.completeSettings("vms", a.completeFrom(vmNames))}
	out := o.flags(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) (err error) {
		if o.json, err = asJSON(*out); err != nil {
			return err
		}
		sets, err := settings("vms", args[0], args[1:])
		if err != nil {
			return err
		}
		return a.change(c, o, func(now *config.Cluster) (*config.Cluster, error) {
			if now.VMByName(args[0]) == nil {
				_, v, err := a.vm(c.Context(), args[0])
				if err != nil {
					return nil, err
				}
				n := config.NewVM(v.Name)
				n.ID, n.Datastore = v.ID, v.Datastore
				now.VMs = append(now.VMs, n)
			}
			return now.WithAll(sets...)
		})
	}
	return cmd
}
