package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
)

// askLimit bounds questions to the agent of this host.
const askLimit = 10 * time.Second

func newStatus(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{Use: "status", Short: "Show hosts, VMs, and what is wrong", Args: cobra.NoArgs,
		Long: "Show the cluster as this host knows it: roles, states, leases, watchdogs, VMs,\nand what is wrong with what to do. Works on any host."}
	out := outputFlag(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it anew every second")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		show := func() error {
			ctx, cancel := context.WithTimeout(c.Context(), askLimit)
			defer cancel()
			s, err := a.agent().Status(ctx)
			if err != nil {
				return err
			}
			if js {
				return writeJSON(c.OutOrStdout(), s)
			}
			if watch && screen.IsTerminal(c.OutOrStdout()) {
				fmt.Fprint(c.OutOrStdout(), "\x1b[H\x1b[2J")
			}
			printStatus(c.OutOrStdout(), s)
			if s.Local.Error != "" && !watch {
				return Fail(ExitFailed, s.Local.Remedy, "the agent of this host cannot work")
			}
			return nil
		}
		for {
			err := show()
			if !watch {
				return err
			}
			if err != nil {
				report(c.ErrOrStderr(), err)
			}
			select {
			case <-c.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	}
	return cmd
}

func printStatus(w io.Writer, s *local.Status) {
	p := painterFor(w)
	if s.Local.Error == "" {
		i18n.Fprintf(w, "Cluster %s, seen from %s (%s): %s; cluster file version %d\n\n",
			p.paint(bold, s.Cluster), s.Host, s.State, quorum(s, p), s.ConfigVersion)
		hostTable(s).write(w, p)
		fmt.Fprintln(w)
		if len(s.Datastores) > 0 {
			datastoreTable(s).write(w, p)
			fmt.Fprintln(w)
		}
		if len(s.VMs) > 0 {
			vmTable(s).write(w, p)
		} else {
			i18n.Fprintln(w, "No VM is protected yet: hanok vm protect NAME")
		}
		fmt.Fprintln(w)
	}
	if len(s.Problems) == 0 {
		i18n.Fprintln(w, p.paint(green, tr("Nothing is wrong.")))
		return
	}
	i18n.Fprintln(w, p.paint(bold, plural(len(s.Problems), "problem")+":"))
	for _, x := range s.Problems {
		i18n.Fprintf(w, "- %s\n", p.paint(yellow, tr(x.Text)))
		if x.Remedy != "" {
			i18n.Fprintf(w, "  what to do: %s\n", x.Remedy)
		}
	}
}

// quorum says in a few words whether HA can act.
func quorum(s *local.Status, p painter) string {
	switch {
	case !s.HA:
		return p.paint(yellow, tr("HA is off"))
	case s.Primary == "":
		return p.paint(yellow, tr("no primary, election under way"))
	default:
		return p.paint(green, tr("HA is on")) + tr(", primary ") + string(s.Primary)
	}
}

var hostColours = map[model.HostState]string{
	model.HostPrimary: green, model.HostConnected: green, model.HostMaintenance: grey, model.HostStandby: grey,
	model.HostElection: yellow, model.HostUninitialized: yellow, model.HostAgentUnreachable: yellow, model.HostDisconnected: yellow,
}

func hostTable(s *local.Status) *table {
	t := &table{header: []string{"HOST", "ROLE", "STATE", "ARMED", "HOOK", "GUARD", "LIBVIRT", "LEASES", "MEMORY USED"}}
	for _, h := range s.Hosts {
		live := h.State == model.HostPrimary || h.State == model.HostConnected || h.State == model.HostMaintenance
		flag := func(b bool) string {
			if !live {
				return "?"
			}
			return screen.YesNo(b)
		}
		leases := "?"
		if live {
			leases = ""
			for _, l := range h.Leases {
				word := "ok"
				if !l.OK {
					word = dash(l.Kind)
				}
				leases += fmt.Sprintf(" %s:%s", l.Datastore, word)
			}
		}
		memory := "-"
		if h.Memory > 0 {
			memory = fmt.Sprintf("%d of %d MiB", h.MemoryUsed, h.Memory)
		}
		role := string(h.Role)
		if h.Role == model.RoleNone {
			role = "-"
		}
		t.add(string(h.Name), dash(role), string(h.State), flag(h.Armed), flag(h.Hook), flag(h.Guard), flag(h.Hypervisor), dash(trim(leases)), memory)
	}
	t.colour = func(row, col int, cell string) string {
		switch {
		case col == 2:
			if c, ok := hostColours[model.HostState(cell)]; ok {
				return c
			}
			return red
		case col >= 3 && col <= 6 && cell == "no":
			return red
		}
		return plain
	}
	return t
}

func trim(s string) string {
	if len(s) > 0 && s[0] == ' ' {
		return s[1:]
	}
	return s
}

func datastoreTable(s *local.Status) *table {
	t := &table{header: []string{"DATASTORE", "LIST OWNER", "TERM", "VMS", "LEASE HERE", "PROBLEM"}}
	for _, d := range s.Datastores {
		left := "-"
		for _, l := range s.Local.Leases {
			if l.Datastore == d.Name {
				left = fmt.Sprintf("%.1f s left", l.LeftSeconds)
			}
		}
		t.add(string(d.Name), dash(string(d.Owner)), fmt.Sprint(d.Term), fmt.Sprint(d.VMs), left, dash(d.Problem))
	}
	t.colour = func(_, col int, cell string) string {
		if col == 5 && cell != "-" {
			return red
		}
		return plain
	}
	return t
}

var vmColours = map[model.VMState]string{
	model.VMStarted: green, model.VMStopped: grey, model.VMDisabled: grey, model.VMIgnored: grey,
	model.VMStarting: yellow, model.VMStopping: yellow, model.VMQueued: yellow, model.VMMigrating: yellow, model.VMRecovery: yellow,
}

func vmTable(s *local.Status) *table {
	t := &table{header: []string{"VM", "STATE", "HOST", "PROTECTED", "GUEST", "DATASTORE", "REASON"}}
	for _, v := range s.VMs {
		guest := "-"
		if v.Alive {
			guest = "alive"
		}
		reason := v.Reason
		switch {
		case v.Order > 0:
			reason = fmt.Sprintf("restart %d in turn: %s", v.Order, reason)
		case v.Ready != "" && reason == "":
			reason = v.Ready
		}
		if v.RetryInSeconds > 0 {
			reason += fmt.Sprintf(" (next attempt in %.0f s)", math.Ceil(v.RetryInSeconds))
		}
		t.add(v.Name, string(v.State), dash(string(v.Host)), screen.YesNo(v.Protected), guest, dash(string(v.Datastore)), dash(reason))
	}
	t.colour = func(_, col int, cell string) string {
		switch {
		case col == 1:
			if c, ok := vmColours[model.VMState(cell)]; ok {
				return c
			}
			return red
		case col == 3 && cell == "no":
			return yellow
		}
		return plain
	}
	return t
}
