package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hanok.dev/hanok/internal/i18n"
)

// tr is a text in the language of the locale.
func tr(s string) string { return i18n.Text(s) }

// localise makes the help of root and of all its commands speak the language of
// the locale.
func localise(root *cobra.Command) {
	l := i18n.FromEnvironment()
	if l == i18n.English {
		return
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	usage := root.UsageTemplate()
	for _, heading := range []string{"Usage:", "Aliases:", "Examples:", "Available Commands:", "Additional Commands:", "Global Flags:", "Flags:", "Additional help topics:",
		"Use \"{{.CommandPath}} [command] --help\" for more information about a command."} {
		usage = strings.ReplaceAll(usage, heading, l.Text(heading))
	}
	root.SetUsageTemplate(usage)
	var all func(c *cobra.Command)
	all = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		c.Short, c.Long = l.Text(c.Short), l.Text(c.Long)
		translate := func(f *pflag.Flag) { f.Usage = l.Text(f.Usage) }
		c.Flags().VisitAll(translate)
		c.PersistentFlags().VisitAll(translate)
		for _, sub := range c.Commands() {
			all(sub)
		}
	}
	all(root)
}
