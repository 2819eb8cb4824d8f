package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
)

// followPage is how many events of the log are read at once.
const followPage = 500

// serveFollow gives a server the events behind the one that it has, then each
// new one, until it hangs up or falls behind: then it comes again with the last
// one that it has, and nothing is lost. Empty lines are signs of life.
func (a *Agent) serveFollow(run context.Context, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	keep := func(event.Event) bool { return true }
	if q.Get("own") != "" {
		keep = func(e event.Event) bool { return e.By == a.host }
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(run, cancel)()
	f := follower{out: http.NewResponseController(w), w: w, enc: json.NewEncoder(w)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	after := q.Get("after")
	for first := true; ; first = false {
		next := a.events.Next() // before reading, so that nothing falls between
		list, last, found, err := a.events.After(after, followPage, keep)
		if err != nil {
			a.log.Error("events cannot be read", "err", err)
			return
		}
		if first && !found {
			w.Header().Set(local.HeaderGap, "1")
		}
		if !f.write(list) || ctx.Err() != nil {
			return
		}
		after = last
		if len(list) < followPage {
			f.follow(ctx, a, next, keep)
			return
		}
	}
}

type follower struct {
	out *http.ResponseController
	w   http.ResponseWriter
	enc *json.Encoder
}

func (f *follower) write(list []event.Event) bool {
	_ = f.out.SetWriteDeadline(time.Now().Add(writeWait))
	for _, e := range list {
		if f.enc.Encode(e) != nil {
			return false
		}
	}
	if len(list) == 0 {
		if _, err := f.w.Write([]byte{'\n'}); err != nil {
			return false
		}
	}
	return f.out.Flush() == nil
}

func (f *follower) follow(ctx context.Context, a *Agent, next uint64, keep func(event.Event) bool) {
	for {
		wait, cancel := context.WithTimeout(ctx, local.FollowBeat)
		list, n, missed, err := a.events.Wait(wait, next)
		cancel()
		if ctx.Err() != nil || missed > 0 {
			return
		}
		var fresh []event.Event
		if err == nil {
			next = n
			for _, e := range list {
				if keep(e) {
					fresh = append(fresh, e)
				}
			}
			if len(fresh) == 0 {
				continue
			}
		}
		if !f.write(fresh) {
			return
		}
	}
}
