// Package cli is the command line: the root command with everything below it,
// and what commands share for output, errors and exit codes.
//
// Commands that belong to another part live in packages of their own below
// this one, export New() *cobra.Command, and are mounted in root.go.
package cli
