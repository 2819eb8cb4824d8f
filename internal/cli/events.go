package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/i18n"
)

func newEvents(a *app) *cobra.Command {
	var failover string
	var follow bool
	var limit int
	cmd := &cobra.Command{Use: "events", Aliases: []string{"event"}, Short: "Show what happened, or the timeline of a failover", Args: cobra.NoArgs,
		Long: "Show the newest events with cause and evidence, on any host.\n\n--failover last shows the timeline of the newest failover, --failover ID of\nanother one, --failover list which ones there are."}
	out := outputFlag(cmd)
	cmd.Flags().StringVar(&failover, "failover", "", "timeline of a failover: last, list, or its ID")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events")
	cmd.Flags().IntVarP(&limit, "limit", "n", local.DefaultEvents, "how many events at most")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		if limit < 1 || limit > local.MaxEvents {
			return usage("", "--limit %d: must be from 1 to %d", limit, local.MaxEvents)
		}
		if failover != "" {
			if follow {
				return usage("use one of them", "--follow and --failover do not go together")
			}
			return a.failover(c, failover, js)
		}
		p := painterFor(c.OutOrStdout())
		err = a.agent().Events(c.Context(), local.EventQuery{Limit: limit, Follow: follow}, func(e event.Event) error {
			if js {
				return json.NewEncoder(c.OutOrStdout()).Encode(e)
			}
			return printEvent(c.OutOrStdout(), p, e)
		})
		if follow && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	return cmd
}

func printEvent(w io.Writer, p painter, e event.Event) error {
	colour := map[event.Severity]string{event.Warning: yellow, event.Error: red}[e.Severity]
	text := tr(e.Text)
	if e.Cause != "" {
		text += ": " + tr(e.Cause)
	}
	_, err := fmt.Fprintf(w, "%s  %-8s %-22s %s\n", e.Wall.Local().Format("2006-01-02 15:04:05.000"), e.By, e.Kind, p.paint(colour, text))
	return err
}

// failover shows one timeline, or the list of failovers.
func (a *app) failover(c *cobra.Command, id string, js bool) error {
	ctx, cancel := context.WithTimeout(c.Context(), askLimit)
	defer cancel()
	var events []event.Event
	err := a.agent().Events(ctx, local.EventQuery{Failover: id, Limit: local.MaxEvents}, func(e event.Event) error {
		events = append(events, e)
		return nil
	})
	var refused *local.RequestError
	if errors.As(err, &refused) && refused.Status == 404 {
		return Fail(ExitNotFound, "", "%s", refused.Failure.Error)
	}
	if err != nil {
		return err
	}
	w := c.OutOrStdout()
	if id == "list" {
		list := event.Failovers(events)
		if js {
			return writeJSON(w, list)
		}
		t := &table{header: []string{"FAILOVER", "KIND", "HOST", "BEGAN", "VMS", "RUNNING", "LAST RUNNING AFTER", "STATE"}}
		for _, f := range list {
			last, state := "-", "under way"
			if f.LastRunning != nil {
				last = fmt.Sprintf("%.3f s", *f.LastRunning)
			}
			if f.Done {
				state = "done"
			}
			t.add(f.Failover, string(f.Cause), dash(string(f.Host)), f.Began.Local().Format("2006-01-02 15:04:05"), fmt.Sprint(f.VMs), fmt.Sprint(f.Running), last, state)
		}
		t.write(w, painterFor(w))
		return nil
	}
	if id == "last" && len(events) > 0 {
		id = events[len(events)-1].Failover
	}
	tl, ok := event.Build(events, id)
	if !ok {
		return Fail(ExitNotFound, "`hanok events --failover list` shows those that are known", "no failover %q is known on this host", id)
	}
	if js {
		return writeJSON(w, tl)
	}
	p := painterFor(w)
	fmt.Fprintln(w, p.paint(bold, tr(tl.Heading())))
	for _, l := range tl.Findings(tr) {
		fmt.Fprintln(w, l)
	}
	fmt.Fprintln(w)
	if len(tl.VMs) > 0 {
		t := &table{}
		t.header, t.rows = tl.Table()
		t.write(w, p)
		i18n.Fprintln(w, "\nSeconds since the last sign of life (and since the phase before).")
	}
	i18n.Fprintln(w, tl.Conclusion())
	return nil
}
