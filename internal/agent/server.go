package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/version"
)

// Bounds of the local API.
const (
	maxClients = 32
	// adminWait is how long an administrator's request may take; the machine
	// gives up earlier.
	adminWait = 90 * time.Second
	// writeWait is how long a client may take to read a piece of an answer.
	writeWait = 10 * time.Second
)

// listenLocal listens on the socket, replacing that of a dead agent.
func listenLocal(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("local API: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("local API: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("local API: %w", err), ln.Close())
	}
	return ln, nil
}

func limitListener(ln net.Listener, n int) net.Listener { return netutil.LimitListener(ln, n) }

func (a *Agent) handler(run context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+local.PathStatus, a.serveStatus)
	mux.HandleFunc("GET "+local.PathEvents, func(w http.ResponseWriter, r *http.Request) { a.serveEvents(run, w, r) })
	mux.HandleFunc("POST "+local.PathAdmin, a.serveAdmin("on this host"))
	mux.HandleFunc("GET "+local.PathConfig, a.serveConfig)
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}

func refuse(w http.ResponseWriter, status int, err error, remedy string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(local.Failure{Error: err.Error(), Remedy: remedy})
}

// ready refuses while the agent cannot work.
func (a *Agent) ready(w http.ResponseWriter) bool {
	l := a.localPart()
	if l.Error == "" {
		return true
	}
	refuse(w, http.StatusServiceUnavailable, errors.New(l.Error), l.Remedy)
	return false
}

var errLoop = errors.New("the agent's main loop does not answer")

func (a *Agent) serveStatus(w http.ResponseWriter, r *http.Request) {
	s, err := a.Status(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err, "look at its log; `kill -QUIT` makes it write what it does")
		return
	}
	reply(w, s)
}

// Status is what this host knows of its cluster. It fails when the main loop
// does not answer.
func (a *Agent) Status(ctx context.Context) (local.Status, error) {
	s := local.Status{Software: version.Version, Role: model.RoleNone, State: model.HostInitError,
		Hosts: []local.Host{}, VMs: []local.VM{}, Datastores: []local.Datastore{}}
	s.Local = a.localPart()
	if s.Local.Error == "" {
		s.Host, s.Cluster = a.host, a.setup.Load().cluster.Name
		s.ConfigVersion = a.setup.Load().cluster.Version
		if !a.ask(ctx, func(m core) { s.SetView(m.View(a.cfg.Ports.Now())) }) {
			return s, errLoop
		}
		if h := s.HostByName(s.Host); h != nil {
			s.Role, s.State = h.Role, h.State
		}
		a.addGuard(ctx, &s.Local)
	}
	s.FindProblems()
	return s, nil
}

// addGuard asks the guard itself, for figures of this moment.
func (a *Agent) addGuard(ctx context.Context, l *local.Local) {
	conn, why := a.links.get()
	l.Guard = conn != nil
	st := a.guardStatus()
	if conn == nil {
		l.GuardProblem = why
	} else {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		r, err := conn.Do(ctx, lease.Request{Status: &lease.StatusRequest{}})
		switch {
		case err != nil:
			l.GuardProblem = "it does not answer: " + err.Error()
		case r.Status != nil:
			st = *r.Status
		}
	}
	l.Armed, l.ArmedWhy, l.HookSeen, l.Warnings = st.Armed, st.ArmedWhy, st.HookSeen, st.Warnings
	l.LongestWriteSeconds = st.LongestWrite.Seconds()
	l.Leases = local.Leases(st.Datastores)
	for _, v := range st.VMs {
		l.Locks = append(l.Locks, local.Lock{VM: v.VM, Name: v.Name, Datastore: v.Home, Epoch: v.Epoch,
			Phase: string(v.Phase), Outstanding: v.Outstanding, Reason: v.Reason})
	}
}

// maxBy bounds the name of who asks, in bytes.
const maxBy = 128

// asker is who asks, for events: what the caller says, and where it asked.
func (a *Agent) asker(by, where string) string {
	by = strings.ToValidUTF8(by, "")
	if len(by) > maxBy {
		by = strings.ToValidUTF8(by[:maxBy], "")
	}
	if where == "on this host" {
		where = "on " + string(a.host)
	}
	return cmp.Or(by, "somebody") + " " + where
}

// serveAdmin takes administrators' requests; where is where they come from.
func (a *Agent) serveAdmin(where string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { a.takeAdmin(w, r, where) }
}

func (a *Agent) takeAdmin(w http.ResponseWriter, r *http.Request, where string) {
	if !a.ready(w) {
		return
	}
	var req fdm.AdminRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, local.MaxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("request: %w", err), "")
		return
	}
	if req.Force || req.By != "" {
		req.By = a.asker(req.By, where)
	}
	offer := req.Apply
	if req.Consider != nil && req.Consider.Apply != nil {
		offer = req.Consider.Apply
	}
	if offer != nil {
		if err := a.checkApply(offer); err != nil {
			refuse(w, http.StatusUnprocessableEntity, err, "")
			return
		}
	}
	id := a.adminID.Add(1)
	answer := make(chan fdm.AdminReply, 1)
	a.admins.Store(id, answer)
	defer a.admins.Delete(id)
	ctx, cancel := context.WithTimeout(r.Context(), adminWait)
	defer cancel()
	a.post(ctx, fdm.AdminAsked{ID: id, Request: req})
	select {
	case rep := <-answer:
		reply(w, rep)
	case <-ctx.Done():
		refuse(w, http.StatusGatewayTimeout, errors.New("the request was not answered in time; it may still be carried out"), "see `hanok status`")
	}
}

// checkApply refuses a cluster file before it is handed on.
func (a *Agent) checkApply(o *fdm.ConfigOffer) error {
	c, err := config.Parse(o.File)
	if err != nil {
		return err
	}
	if err := c.CheckDeployable(""); err != nil {
		return err
	}
	now := a.setup.Load().cluster
	switch {
	case c.Version != o.Version:
		return fmt.Errorf("the file says version %d, the request %d", c.Version, o.Version)
	case c.Version <= now.Version:
		return fmt.Errorf("version %d is not above %d, which is in force; somebody else may have applied a change meanwhile", c.Version, now.Version)
	case c.ID != now.ID:
		return fmt.Errorf("the file belongs to cluster %q, this host to %q; the id of a cluster never changes", c.ID, now.ID)
	}
	return nil
}

func (a *Agent) serveConfig(w http.ResponseWriter, _ *http.Request) {
	if !a.ready(w) {
		return
	}
	b, err := a.setup.Load().cluster.Marshal()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err, "")
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(b)
}

func (a *Agent) serveEvents(run context.Context, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit := local.DefaultEvents
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > local.MaxEvents {
			refuse(w, http.StatusBadRequest, fmt.Errorf("limit %q: must be from 1 to %d", s, local.MaxEvents), "")
			return
		}
		limit = n
	}
	keep := func(event.Event) bool { return true }
	next := a.events.Next() // before reading, so that nothing falls between
	if f := q.Get("failover"); f != "" {
		if f == "last" {
			list, err := a.events.Read(local.MaxEvents, func(e event.Event) bool { return e.Failover != "" && event.BeginsFailover(e.Kind) })
			if err != nil {
				refuse(w, http.StatusInternalServerError, err, "")
				return
			}
			if len(list) == 0 {
				refuse(w, http.StatusNotFound, errors.New("no failover is known on this host"), "")
				return
			}
			f = slices.MaxFunc(list, func(x, y event.Event) int { return x.Wall.Compare(y.Wall) }).Failover
		}
		if f == "list" {
			keep = func(e event.Event) bool { return e.Failover != "" }
		} else {
			keep = func(e event.Event) bool { return e.Failover == f }
		}
	}
	events, err := a.events.Read(limit, keep)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err, "")
		return
	}
	// They were written down as they came, from several hosts.
	slices.SortStableFunc(events, func(x, y event.Event) int { return x.Wall.Compare(y.Wall) })
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	write := func(list []event.Event) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeWait))
		for _, e := range list {
			if keep(e) && enc.Encode(e) != nil {
				return false
			}
		}
		return out.Flush() == nil
	}
	if !write(events) || q.Get("follow") == "" {
		return
	}
	sent := map[string]bool{}
	for _, e := range events {
		sent[e.ID] = true // may come again as the first followed ones
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(run, cancel)()
	for {
		list, n, _, err := a.events.Wait(ctx, next)
		if err != nil {
			return
		}
		next = n
		fresh := list[:0]
		for _, e := range list {
			if !sent[e.ID] {
				fresh = append(fresh, e)
			}
		}
		if !write(fresh) {
			return
		}
	}
}
