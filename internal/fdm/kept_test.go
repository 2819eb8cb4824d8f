package fdm

import (
	"testing"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// A change counts, and is confirmed, only when the guard says after the write of it
// that it holds the list still: a host that stood still may have written after its
// successor copied the list.
func TestConfirmedOnlyWhileTheListIsHeld(t *testing.T) {
	begin := func(t *testing.T) *bench {
		b := newBench(t, chaosConfig(1))
		p := protectedVM("v1")
		p.Requested, p.Host = model.RequestedStopped, ""
		b.lead(p)
		b.pass(time.Second)
		b.written()
		take[Answer](b)
		b.step(AdminAsked{ID: 9, Request: AdminRequest{Unprotect: &VMRef{Name: "web"}}})
		for _, e := range take[WriteList](b) { // it lands; the guard is not heard yet
			b.step(ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version})
		}
		if got := take[Answer](b); len(got) != 0 {
			t.Fatalf("confirmed by the write alone: %+v", got)
		}
		return b
	}
	says := func(term model.Term) lease.Reply {
		return lease.Reply{Code: lease.CodeOK, Status: &lease.Status{Datastores: []lease.DatastoreStatus{
			{Name: "ds1", OK: term != 0, ListTerm: term}, {Name: "ds2", OK: true, ListTerm: 5}}}}
	}
	t.Run("held", func(t *testing.T) {
		b := begin(t)
		if n := b.kept(says(5)); n != 1 {
			t.Errorf("the guard was asked %d times", n)
		}
		if got := take[Answer](b); len(got) != 1 || !got[0].Reply.OK {
			t.Errorf("answers %+v", got)
		}
	})
	for name, term := range map[string]model.Term{"lost": 0, "of another term": 7} {
		t.Run(name, func(t *testing.T) {
			b := begin(t)
			b.kept(says(term))
			b.pass(5 * time.Second)
			for _, a := range take[Answer](b) {
				if a.Reply.OK {
					t.Errorf("confirmed: %+v", a)
				}
			}
			if p := b.m.stores["ds1"].list.phase; p == listOwned {
				t.Error("it acts on for the list")
			}
		})
	}
	t.Run("the guard does not answer", func(t *testing.T) {
		b := begin(t)
		b.kept(lease.Reply{Code: lease.CodeTimeout})
		if got := take[Answer](b); len(got) != 0 {
			t.Errorf("confirmed without its word: %+v", got)
		}
		b.pass(listRetry)
		b.kept(says(5))
		if got := take[Answer](b); len(got) != 1 || !got[0].Reply.OK {
			t.Errorf("after its word: %+v", got)
		}
	})
}
