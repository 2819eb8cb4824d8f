package placement

import (
	"strings"
	"testing"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

func host1(name string, memory, used model.MiB, ds ...model.DatastoreName) Host {
	return Host{Name: model.HostID(name), Memory: memory, Reserved: Resources{Memory: used}, Datastores: ds}
}

func vm1(name string, memory model.MiB, ds ...model.DatastoreName) VM {
	return VM{Name: name, Reservation: Resources{Memory: memory}, Datastores: ds}
}

func TestPlaceTakesTheMostFreeMemoryThenTheName(t *testing.T) {
	vms := []VM{vm1("web", 100, "ds1")}
	got := New([]Host{host1("c", 1000, 500, "ds1"), host1("b", 1000, 100, "ds1"), host1("a", 1000, 500, "ds1")}, vms, nil).Place(Want{VM: "web"})
	if got.Host != "b" {
		t.Errorf("placed on %q, want b, which has the most free memory", got.Host)
	}
	got = New([]Host{host1("b", 1000, 100, "ds1"), host1("a", 1000, 100, "ds1")}, vms, nil).Place(Want{VM: "web"})
	if got.Host != "a" {
		t.Errorf("placed on %q, want a, first by name among equals", got.Host)
	}
}

func TestPlaceAvoidsWhereItFailed(t *testing.T) {
	s := New([]Host{host1("a", 1000, 0), host1("b", 1000, 900)}, []VM{vm1("web", 1)}, nil)
	if got := s.Place(Want{VM: "web", Failed: map[model.HostID]int{"a": 1}}); got.Host != "b" {
		t.Errorf("placed on %q, want b, where it has not failed", got.Host)
	}
}

func TestPlaceExplainsEveryHost(t *testing.T) {
	down := host1("a", 9000, 0, "ds1")
	down.Unfit = "host is failed"
	s := New([]Host{host1("c", 9000, 0, "ds2"), host1("b", 1000, 500, "ds1"), down}, []VM{vm1("web", 600, "ds1")}, nil)
	got := s.Place(Want{VM: "web"})
	if got.Host != "" || got.Busy || len(got.Refusals) != 3 {
		t.Fatalf("got %+v", got)
	}
	for i, want := range []string{"host is failed", "500 MiB free of 1000 MiB, 600 MiB needed", "does not reach datastore ds1"} {
		if !strings.Contains(got.Refusals[i].Reason, want) {
			t.Errorf("refusal %d is %q, want %q", i, got.Refusals[i].Reason, want)
		}
	}
}

func TestPlaceSaysBusyWhenOnlyTheLimitForbids(t *testing.T) {
	h := host1("a", 1000, 0)
	h.Starting, h.StartLimit = 2, 2
	s := New([]Host{h}, []VM{vm1("web", 1)}, nil)
	if got := s.Place(Want{VM: "web"}); got.Host != "" || !got.Busy {
		t.Errorf("got %+v; want nowhere and busy", got)
	}
	if got := s.PlaceAll([]Want{{VM: "web"}}); got.Choices[0].Host != "a" {
		t.Errorf("a plan got %+v; it may queue", got)
	}
}

func TestHardRulesHoldDuringAMove(t *testing.T) {
	list := []rules.Rule{{Name: "apart", Kind: rules.Apart, VMs: []string{"db1", "db2"}, Hard: true}}
	s := New([]Host{host1("a", 1000, 0), host1("b", 1000, 0), host1("c", 1000, 900)}, []VM{vm1("db1", 10), vm1("db2", 10)}, list)
	must(t, s.Run("db1", "a"))
	must(t, s.Move("db1", "b"))
	got := s.Place(Want{VM: "db2"})
	if got.Host != "c" {
		t.Errorf("db2 goes to %q; db1 counts on a and b while it moves", got.Host)
	}
	must(t, s.Run("db1", "b"))
	if got := s.Place(Want{VM: "db2"}); got.Host != "a" {
		t.Errorf("db2 goes to %q after the move, want a", got.Host)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSurvivesGivesTheSameReasonAgain(t *testing.T) {
	// Of VMs of one kind the first decides how hard all are to place: which is
	// first must not be left to chance.
	why := map[string]int{}
	for range 100 {
		s := New([]Host{host1("h1", 1000, 0, "ds1", "ds2"), host1("h2", 4, 0, "ds1", "ds2"), host1("h3", 4, 0, "ds1")},
			[]VM{vm1("a1", 1, "ds1"), vm1("a2", 100, "ds1"), vm1("b1", 2, "ds2"), vm1("b2", 200, "ds2")}, nil)
		for _, v := range []string{"a1", "a2", "b1", "b2"} {
			if err := s.Run(v, "h1"); err != nil {
				t.Fatal(err)
			}
		}
		why[s.Survives(Failures{Hosts: 1}).Reason]++
	}
	if len(why) != 1 {
		t.Errorf("the same state has the reasons %v", why)
	}
}
