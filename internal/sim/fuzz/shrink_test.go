package fuzz

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/scenario"
)

const shrinkable = `-- cluster.yaml --
version: 1
name: shrink
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1, backing: a}]
hosts:
- {name: host1, datastores: [ds1]}
- {name: host2, datastores: [ds1]}
- {name: host3, datastores: [ds1]}
vms: [{name: a, datastore: ds1}]
-- script --
at 1s network loss 10
at 2s power-off host1
at 3s storage host2 ds1 hang
at 4s vm crash a
at 5s partition host1,host2 | host3
at 6s stop guard host3
at 7s cont guard host3
at 8s storage host2 ds1 none
at 9s power-on host1
at 10s heal host3
at 11s heal host1
at 12s heal host2
at 20s network loss 0
at 20s storage host1 ds1 none
at 20s power-on host2
at 40s vm crash a
`

// TestShrink: what is left breaks the same invariant for the same subject, no
// fault that is left misses the step that ends it, and nothing is left over.
func TestShrink(t *testing.T) {
	sc, err := scenario.Parse([]byte(shrinkable))
	if err != nil {
		t.Fatal(err)
	}
	// Subject a breaks when host2's storage hangs and the networks part; with the
	// partition alone, or when the storage does not answer again, it is b.
	play := func(sc *scenario.Scenario) (*Outcome, error) {
		has := func(text string) bool {
			return slices.ContainsFunc(sc.Steps, func(s scenario.Step) bool { return strings.HasPrefix(s.Text, text) })
		}
		o := &Outcome{Seed: 1}
		switch {
		case has("storage host2 ds1 hang") && has("storage host2 ds1 none") && has("partition"):
			o.Violation = &scenario.Violation{At: 30, Invariant: "restart", Subject: "a"}
		case has("partition") || has("storage host2 ds1 hang"):
			o.Violation = &scenario.Violation{At: 25, Invariant: "restart", Subject: "b"}
		}
		return o, nil
	}
	found, _ := play(sc)
	short, o := shrink(sc, found, 1000, play)
	if *o.Violation != *found.Violation {
		t.Errorf("it became another violation: %+v", *o.Violation)
	}
	var got []string
	for _, s := range short.Steps {
		got = append(got, fmt.Sprintf("%v %s", s.At, s.Text))
	}
	want := []string{"3s storage host2 ds1 hang", "5s partition host1,host2 | host3", "8s storage host2 ds1 none", "9s power-on host1",
		"10s heal host3", "11s heal host1", "12s heal host2", "20s power-on host2", "35s expect all running"}
	if !slices.Equal(got, want) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
