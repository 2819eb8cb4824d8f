package placement

import (
	"strings"
	"testing"

	"hanok.dev/hanok/internal/model"
)

func host(name string, memory, used model.MiB, ds ...model.DatastoreName) Host {
	return Host{Name: model.HostID(name), Memory: memory, Used: used, Datastores: ds, Limit: 4}
}

func TestPlaceTakesTheMostFreeMemoryThenTheName(t *testing.T) {
	vm := VM{Name: "web", Memory: 100, Datastores: []model.DatastoreName{"ds1"}}
	got, _, _ := Place(vm, []Host{host("c", 1000, 500, "ds1"), host("b", 1000, 100, "ds1"), host("a", 1000, 500, "ds1")})
	if got != "b" {
		t.Errorf("placed on %q, want b, which has the most free memory", got)
	}
	got, _, _ = Place(vm, []Host{host("b", 1000, 100, "ds1"), host("a", 1000, 100, "ds1")})
	if got != "a" {
		t.Errorf("placed on %q, want a, first by name among equals", got)
	}
}

func TestPlaceAvoidsWhereItFailed(t *testing.T) {
	bad := host("a", 1000, 0)
	bad.Failed = 1
	if got, _, _ := Place(VM{Memory: 1}, []Host{bad, host("b", 1000, 900)}); got != "b" {
		t.Errorf("placed on %q, want b, where it has not failed", got)
	}
}

func TestPlaceExplainsEveryHost(t *testing.T) {
	vm := VM{Name: "web", Memory: 600, Datastores: []model.DatastoreName{"ds1"}}
	down := host("a", 9000, 0, "ds1")
	down.Unfit = "host is failed"
	full := host("b", 1000, 500, "ds1")
	blind := host("c", 9000, 0, "ds2")
	got, refusals, busy := Place(vm, []Host{blind, full, down})
	if got != "" || busy || len(refusals) != 3 {
		t.Fatalf("got %q, %v, busy %v", got, refusals, busy)
	}
	for i, want := range []string{"host is failed", "500 MiB free of 1000 MiB, 600 MiB needed", "does not reach datastore ds1"} {
		if !strings.Contains(refusals[i].Reason, want) {
			t.Errorf("refusal %d is %q, want %q", i, refusals[i].Reason, want)
		}
	}
}

func TestPlaceSaysBusyWhenOnlyTheLimitForbids(t *testing.T) {
	h := host("a", 1000, 0)
	h.Starting, h.Limit = 2, 2
	if got, _, busy := Place(VM{Memory: 1}, []Host{h}); got != "" || !busy {
		t.Errorf("got %q, busy %v; want nowhere and busy", got, busy)
	}
}
