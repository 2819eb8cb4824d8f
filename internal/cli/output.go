package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/i18n"
)

// outputFlag adds -o to a command.
func outputFlag(cmd *cobra.Command) *string {
	o := cmd.Flags().StringP("output", "o", "table", "output: table or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return o
}

// asJSON reports whether -o says json; an unknown word is an error.
func asJSON(o string) (bool, error) {
	switch o {
	case "json":
		return true, nil
	case "table", "":
		return false, nil
	}
	return false, usage("use -o table or -o json", "unknown output %q", o)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Colours, used on terminals only.
const (
	plain  = ""
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	red    = "\x1b[31m"
	grey   = "\x1b[90m"
	bold   = "\x1b[1m"
	reset  = "\x1b[0m"
)

// painter colours text if its output is a terminal.
type painter bool

func (p painter) paint(colour, s string) string {
	if !bool(p) || colour == plain || s == "" {
		return s
	}
	return colour + s + reset
}

func painterFor(w io.Writer) painter {
	return painter(screen.IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// table is rows of cells in columns as wide as needed.
type table struct {
	header []string
	rows   [][]string
	colour func(row, column int, cell string) string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer, p painter) {
	widths := make([]int, len(t.header))
	header := translated(t.header)
	rows := make([][]string, len(t.rows))
	for i, row := range t.rows {
		rows[i] = translated(row)
	}
	for _, row := range append([][]string{header}, rows...) {
		for i, c := range row {
			if n := screen.Columns(c); i < len(widths) && n > widths[i] {
				widths[i] = n
			}
		}
	}
	line := func(row []string, paint func(i int, s string) string) {
		var b strings.Builder
		for i, c := range row {
			pad := ""
			if i < len(row)-1 {
				pad = strings.Repeat(" ", widths[i]-screen.Columns(c)+2)
			}
			b.WriteString(paint(i, c) + pad)
		}
		i18n.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	line(header, func(_ int, s string) string { return p.paint(bold, s) })
	for n, row := range rows {
		line(row, func(i int, s string) string {
			if t.colour == nil {
				return s
			}
			return p.paint(t.colour(n, i, t.rows[n][i]), s)
		})
	}
}

// translated is a row in the language of the locale.
func translated(row []string) []string {
	out := make([]string, len(row))
	for i, c := range row {
		out[i] = tr(c)
	}
	return out
}

// progress writes what goes on while a command waits: each change once, to
// standard error, so that output can be piped.
type progress struct {
	w    io.Writer
	last string
}

func (p *progress) say(format string, args ...any) {
	if s := i18n.FromEnvironment().Sprintf(format, args...); s != p.last {
		p.last = s
		fmt.Fprintln(p.w, s)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// plural is "1 VM" or "3 VMs".
func plural(n int, what string) string {
	if n == 1 {
		return tr("1 " + what)
	}
	return tr(fmt.Sprintf("%d %ss", n, what))
}
