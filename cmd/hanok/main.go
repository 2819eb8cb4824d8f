// Command hanok is everything of Hanok but the guard: the agent, the command
// line, the lab.
package main

import (
	"os"

	"hanok.dev/hanok/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
