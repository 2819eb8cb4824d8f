package sim

// Cover is a kind of event that makes a simulation worth something.
type Cover int

// The kinds that are counted.
const (
	Failovers Cover = iota
	Verdicts
	Elections
	Takeovers
	ContendedClaims
	Partitions
	Freezes
	Thaws
	Resets
	LateWrites
	LostReplies
	Kills
	Restarts
	PowerLosses
	ListsTaken
	LateReplies    // storage calls that were answered long after they took effect
	FullDatastores // paths on which a datastore was full
	SlowHosts
	ClockChanges
	GuestHangs

	coverKinds
)

var coverNames = [coverKinds]string{"failovers", "verdicts", "elections", "takeovers", "contendedClaims", "partitions", "freezes",
	"thaws", "resets", "lateWrites", "lostReplies", "kills", "restarts", "powerLosses", "listsTaken",
	"lateReplies", "fullDatastores", "slowHosts", "clockChanges", "guestHangs"}

// Coverage counts what happened, by kind.
type Coverage [coverKinds]int

// Add adds another simulation's.
func (c *Coverage) Add(o Coverage) {
	for i := range c {
		c[i] += o[i]
	}
}

// Map is the coverage by name.
func (c Coverage) Map() map[string]int {
	out := map[string]int{}
	for i, n := range c {
		out[coverNames[i]] = n
	}
	return out
}

// Coverage is what happened until now.
func (s *Sim) Coverage() Coverage { return s.cover }
