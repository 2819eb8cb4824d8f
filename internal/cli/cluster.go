package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
)

// applyWait is how long `cluster apply` waits for the hosts.
const applyWait = 30 * time.Second

func newCluster(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Show and change the cluster file, and whom its hosts trust"}
	cmd.AddCommand(newApply(a), newShow(a), newOptions(a), newClusterList(a), newAdopt(a), newClusterTrust(a))
	return cmd
}

func newApply(a *app) *cobra.Command {
	var file string
	var how applying
	cmd := &cobra.Command{Use: "apply -f FILE", Short: "Check a cluster file, show what changes, and bring it into force", Args: cobra.NoArgs,
		Long: `Check a cluster file, show what changes, and bring it into force on all hosts.
Its version is raised above the one in force. FILE may be - for standard input.

What changes is shown with the contradictions of its rules and with what admission
control says to it. Admission control refuses a file that starts VMs, reserves more
for them or takes hosts away, if no failure could be survived then.

On a host that has no cluster file yet it becomes the first one.`}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the cluster file, - for standard input")
	f.BoolVar(&how.dryRun, "dry-run", false, "only check and show; exit status 4 if it would be refused")
	f.BoolVarP(&how.yes, "yes", "y", false, "do not ask")
	forceFlag(cmd, &how.force)
	_ = cmd.MarkFlagRequired("file")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		next, err := a.readCluster(file)
		if err != nil {
			return err
		}
		return a.apply(c, next, how)
	}
	return cmd
}

// clusterData reads a cluster file that a command was given; "-" is standard
// input.
func (a *app) clusterData(file string) (data []byte, err error) {
	if file == "-" {
		data, err = io.ReadAll(io.LimitReader(a.in, config.MaxSize+1))
	} else {
		data, err = readFile(file, config.MaxSize)
	}
	if err != nil {
		return nil, Fail(ExitUsage, "", "cluster file: %w", err)
	}
	return data, nil
}

func (a *app) readCluster(file string) (*config.Cluster, error) {
	data, err := a.clusterData(file)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(data)
	if err == nil {
		err = c.CheckDeployable("")
	}
	if err != nil {
		return nil, Fail(ExitRefused, "nothing was changed; correct the file", "%s: %w", file, err)
	}
	return c, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// applying is how a cluster file is brought into force.
type applying struct{ dryRun, yes, force bool }

// apply brings next into force.
func (a *app) apply(c *cobra.Command, next *config.Cluster, how applying) error {
	ctx, out := c.Context(), c.OutOrStdout()
	now, err := a.config(ctx)
	if err != nil {
		return a.applyFirst(c, next, how.dryRun, err)
	}
	next = next.Clone()
	stale := next.Version < now.Version
	next.Version = max(next.Version, now.Version+1)
	diff := config.Diff(now, next)
	if len(diff) == 0 {
		i18n.Fprintf(out, "nothing changes; version %d stays in force\n", now.Version)
		return nil
	}
	for _, d := range diff {
		fmt.Fprintln(out, d)
	}
	if stale {
		i18n.Fprintf(c.ErrOrStderr(), "note: the file was made from an older version than %d, which is in force: look whether it takes back what others changed\n", now.Version)
	}
	warnOf(c.ErrOrStderr(), newConflicts(now, next))
	already := now.HA.Options.Ineffective()
	bad := slices.DeleteFunc(next.HA.Options.Ineffective(), func(o string) bool { return slices.Contains(already, o) })
	if len(bad) > 0 {
		i18n.Fprintf(c.ErrOrStderr(), "note: this version of Hanok does not act on %s\n", strings.Join(bad, ", "))
	}
	refused := a.effect(c, next, how.dryRun)
	if how.dryRun {
		i18n.Fprintf(out, "would become version %d\n", next.Version)
		if how.force {
			return nil
		}
		return refused
	}
	if refused != nil && !how.force {
		return refused
	}
	if !how.yes {
		if err := a.confirm(c, fmt.Sprintf("Bring this into force as version %d? [y/N] ", next.Version), "y", "yes"); err != nil {
			return err
		}
	}
	have, away, err := a.handOver(c, next, how.force)
	if err == nil {
		printInForce(out, next.Version, have, away)
	}
	return err
}

// handOver gives the cluster file to the primary and waits for the hosts: have
// it, or away.
func (a *app) handOver(c *cobra.Command, next *config.Cluster, force bool) (have, away []string, err error) {
	data, err := next.Marshal()
	if err != nil {
		return nil, nil, err
	}
	text, err := a.order(c.Context(), fdm.AdminRequest{Apply: &fdm.ConfigOffer{Version: next.Version, File: data}, Force: force})
	if err != nil {
		return nil, nil, err
	}
	say := progress{w: c.ErrOrStderr()}
	if text != "" {
		say.say("%s", text)
	}
	ctx, cancel := context.WithTimeout(c.Context(), applyWait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var wait []string
	for {
		if s, err := a.status(ctx); err == nil {
			have, wait, away = acknowledged(s, next.Version)
			say.say("version %d: %d of %d hosts have it", next.Version, len(have), len(have)+len(wait)+len(away))
			if s.ConfigVersion >= next.Version && len(wait) == 0 {
				return have, away, nil
			}
		}
		select {
		case <-ctx.Done():
			return have, away, Fail(ExitTimeout, "`hanok status` shows who has it; a host that refuses says so in `hanok events`", "version %d was not acknowledged within %v by %s", next.Version, applyWait, dash(strings.Join(wait, ", ")))
		case <-tick.C:
		}
	}
}

// acknowledged sorts the hosts: those with the version, those that should get
// it now, and those that are away.
func acknowledged(s *local.Status, version uint64) (have, wait, away []string) {
	for _, h := range s.Hosts {
		switch {
		case h.ConfigVersion >= version || h.Name == s.Host && s.ConfigVersion >= version:
			have = append(have, string(h.Name))
		case !s.HA, h.State == model.HostPrimary, h.State == model.HostConnected, h.State == model.HostMaintenance, h.State == model.HostElection:
			wait = append(wait, string(h.Name))
		default:
			away = append(away, string(h.Name))
		}
	}
	sort.Strings(have)
	return have, wait, away
}

// applyFirst makes next the first cluster file of this host, if it has none.
func (a *app) applyFirst(c *cobra.Command, next *config.Cluster, dryRun bool, why error) error {
	store := config.Store{Path: a.clusterFile}
	loaded, err := store.Load()
	switch {
	case err == nil:
		return fmt.Errorf("this host has version %d of the cluster file, but its agent cannot take another: %w", loaded.Cluster.Version, why)
	case !errors.Is(err, fs.ErrNotExist):
		i18n.Fprintf(c.ErrOrStderr(), "note: the cluster file of this host is unusable: %v\n", err)
	}
	if dryRun {
		i18n.Fprintf(c.OutOrStdout(), "would become the cluster file of this host, version %d\n", next.Version)
		return nil
	}
	if err := store.Save(next); err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), "version %d is the cluster file of this host now (%s); its daemons take it over by themselves\ncopy it to the other hosts, or apply it there as well\n", next.Version, a.clusterFile)
	return nil
}

// confirm asks on the terminal and wants one of the answers.
func (a *app) confirm(c *cobra.Command, question string, answers ...string) error {
	if !screen.IsTerminal(a.in) {
		return usage("give --yes to go on without a question", "there is no terminal to ask on")
	}
	i18n.Fprintf(c.ErrOrStderr(), "%s", question)
	line, err := untilInterrupt(c.Context(), func() (string, error) {
		return bufio.NewReader(io.LimitReader(a.in, 4096)).ReadString('\n')
	})
	switch {
	case c.Context().Err() != nil:
		return err
	case err != nil && line == "":
		return Fail(ExitRefused, "", "nothing was changed: no answer")
	}
	for _, want := range answers {
		if strings.TrimSpace(line) == want {
			return nil
		}
	}
	return Fail(ExitRefused, "", "nothing was changed")
}

func newShow(a *app) *cobra.Command {
	var out string
	cmd := &cobra.Command{Use: "show", Short: "Show the cluster file in force", Args: cobra.NoArgs}
	cmd.Flags().StringVarP(&out, "output", "o", "yaml", "output: yaml or json")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if out != "yaml" && out != "json" {
			return usage("use -o yaml or -o json", "unknown output %q", out)
		}
		now, err := a.config(c.Context())
		if err != nil {
			return err
		}
		b, err := now.Marshal()
		if err == nil && out == "json" {
			b, err = yaml.YAMLToJSON(b)
			b = append(b, '\n')
		}
		if err != nil {
			return err
		}
		_, err = c.OutOrStdout().Write(b)
		return err
	}
	return cmd
}

func newOptions(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "options", Short: "List the advanced options: default, value in force, meaning", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		list := config.Options(nil).Describe()
		now, err := a.config(c.Context())
		if err == nil {
			list = now.DescribeOptions()
		} else {
			i18n.Fprintf(c.ErrOrStderr(), "note: what is set cannot be shown: %v\n", err)
		}
		if js {
			return writeJSON(c.OutOrStdout(), list)
		}
		t := &table{header: []string{"OPTION", "TYPE", "DEFAULT", "VALUE", "ACTS", "MEANING"}}
		for _, o := range list {
			name := o.Name
			if o.Numbered {
				name += "0-9"
			}
			acts := "yes"
			if !o.Effective() {
				acts = "with " + o.Later
			}
			t.add(name, string(o.Kind), dash(o.Default), dash(o.Value), acts, o.Meaning)
		}
		t.write(c.OutOrStdout(), painterFor(c.OutOrStdout()))
		return nil
	}
	return cmd
}

func newHA(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "ha", Short: "Switch high availability, or host monitoring, on and off; resources, rules, the firewall"}
	cmd.AddCommand(newSwitch(a, "on", "Switch high availability on", func(h *config.HA) { h.Enabled = true }),
		newSwitch(a, "off", "Switch high availability off; running VMs run on", func(h *config.HA) { h.Enabled = false }))
	monitoring := &cobra.Command{Use: "monitoring", Short: "Switch host monitoring, for work on the network"}
	monitoring.AddCommand(newSwitch(a, "on", "Watch the hosts", func(h *config.HA) { h.HostMonitoring = true }),
		newSwitch(a, "off", "No verdicts on hosts, no isolation response", func(h *config.HA) { h.HostMonitoring = false }))
	cmd.AddCommand(monitoring, newFirewall(a), newHAStatus(a), newHAResources(a), newRuleList(a, "rules"))
	return cmd
}

// newSwitch is a command that changes one setting of the cluster file.
func newSwitch(a *app, use, short string, change func(*config.HA)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.change(c, changing{}, func(now *config.Cluster) (*config.Cluster, error) {
				change(&now.HA)
				return now, nil
			})
		}}
}
