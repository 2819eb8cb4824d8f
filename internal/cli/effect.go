package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

// effect shows what a cluster file would mean: contradictions of its rules and
// what admission control says. With always it is told, too, that all is well. It
// returns the refusal.
func (a *app) effect(c *cobra.Command, next *config.Cluster, always bool) error {
	w := c.ErrOrStderr()
	if always {
		w = c.OutOrStdout()
	}
	for _, x := range snapshot.Check(next, rules.Options{}).Conflicts {
		i18n.Fprintf(w, "rules %s contradict each other: %s\n", strings.Join(x.Rules, ", "), x.Reason)
	}
	return a.admissionOf(c, w, next, always)
}

// admissionOf shows what admission control says to a cluster file.
func (a *app) admissionOf(c *cobra.Command, w io.Writer, next *config.Cluster, always bool) error {
	data, err := next.Marshal()
	if err != nil {
		return err
	}
	return a.consider(c.Context(), w, always, fdm.Consideration{Dry: true, Apply: &fdm.ConfigOffer{Version: next.Version, File: data}})
}

// considered shows what admission control would say to something, and returns the
// refusal.
func (a *app) considered(c *cobra.Command, what fdm.Consideration) error {
	what.Dry = true
	return a.consider(c.Context(), c.OutOrStdout(), true, what)
}

// consider asks admission control. That it cannot be asked refuses nothing yet:
// it is asked again when it matters.
func (a *app) consider(ctx context.Context, w io.Writer, always bool, what fdm.Consideration) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	r, err := a.agent().Admin(ctx, fdm.AdminRequest{Consider: &what})
	if err == nil && !r.OK && !r.Refused {
		err = fmt.Errorf("%s", r.Text)
	}
	if err != nil {
		if always {
			i18n.Fprintf(w, "admission control was not asked: %v\n", err)
		}
		return nil
	}
	for _, x := range r.Warnings {
		i18n.Fprintf(w, "warning: %s\n", x)
	}
	switch d := r.Decision; {
	case r.Refused && always:
		i18n.Fprintf(w, "%s\n", r.Text)
		for _, x := range r.Help {
			i18n.Fprintf(w, "what would help: %s\n", x)
		}
	case d != nil && always:
		i18n.Fprintf(w, "admission control (%s): %s: %s\n", d.Policy, d.Answer, d.Reason)
	case always:
		i18n.Fprintf(w, "admission control has nothing to decide\n")
	}
	if r.Refused {
		return refusal(r)
	}
	return nil
}
