package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
)

// completeFrom completes one argument with names from the agent's status.
func (a *app) completeFrom(names func(*local.Status) []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := a.agent().Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(s), cobra.ShellCompDirectiveNoFileComp
	}
}

func vmNames(s *local.Status) []string {
	out := make([]string, len(s.VMs))
	for i, v := range s.VMs {
		out[i] = v.Name
	}
	return out
}
