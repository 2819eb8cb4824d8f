package fusefs

import (
	"fmt"
	"strings"
)

// Fault is a failure of a host's path to a datastore.
type Fault string

// The faults. They take effect for operations that start later and, where that
// has a meaning, for those that are blocked now.
const (
	// None is a healthy path.
	None Fault = "none"
	// Hang blocks every operation until the fault changes (all paths down).
	// The operation of a caller that gets SIGKILL meanwhile is given up and has
	// no effect; other signals do not disturb it.
	Hang Fault = "hang"
	// HangHard is Hang for which nothing is given up: a killed caller stays in
	// D state and its blocked writes reach the disk after the path heals.
	HangHard Fault = "hang-hard"
	// Lost fails every operation with EIO (device permanently lost).
	Lost Fault = "lost"
	// Slow delays every operation that moves data or changes a directory by
	// Options.SlowDelay.
	Slow Fault = "slow"
	// Full fails with ENOSPC what needs new blocks: creating files, extending
	// them, writing into holes. Removing a file through this mount makes as
	// much room as the file occupied.
	Full Fault = "full"
	// Readonly fails every change with EROFS.
	Readonly Fault = "readonly"
)

// Faults lists all faults in the order in which help shows them.
func Faults() []Fault { return []Fault{None, Hang, HangHard, Lost, Slow, Full, Readonly} }

// ParseFault reads the name of a fault.
func ParseFault(s string) (Fault, error) {
	var names []string
	for _, f := range Faults() {
		if s == string(f) {
			return f, nil
		}
		names = append(names, string(f))
	}
	return "", fmt.Errorf("storage fault %q: use one of %s", s, strings.Join(names, ", "))
}
