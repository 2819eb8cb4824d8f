package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/network"
)

const maxRequest = 64 << 10

func (s *Supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.state()) })
	mux.HandleFunc("GET /events", s.follow)
	mux.HandleFunc("POST /down", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, struct{}{})
		s.cancel()
	})
	mux.HandleFunc("POST /power", action(s.power))
	mux.HandleFunc("POST /cut", action(func(_ context.Context, r CutRequest) error {
		d, err := network.ParseDirection(r.Direction)
		if err != nil {
			return err
		}
		n, err := s.node(r.Host)
		if err != nil {
			return err
		}
		return n.cut(r.Network, d)
	}))
	mux.HandleFunc("POST /partition", action(func(_ context.Context, r PartitionRequest) error { return s.partition(r.Groups) }))
	mux.HandleFunc("POST /heal", action(func(_ context.Context, r HealRequest) error {
		n, err := s.node(r.Host)
		if err != nil {
			return err
		}
		return n.heal()
	}))
	mux.HandleFunc("POST /storage", action(func(_ context.Context, r StorageRequest) error {
		f, err := fusefs.ParseFault(r.Fault)
		if err != nil {
			return err
		}
		n, err := s.node(r.Host)
		if err != nil {
			return err
		}
		return n.setFault(r.Datastore, f)
	}))
	mux.HandleFunc("POST /plug", action(func(_ context.Context, r PlugRequest) error { return s.plug(r) }))
	return mux
}

// guestNumber is the port of what is plugged in and is no host.
const guestNumber = 60000

// plug connects a process; what was plugged in before is unplugged.
func (s *Supervisor) plug(r PlugRequest) error {
	a, err := netip.ParseAddr(r.Address)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	for i := range s.cluster.Hosts {
		if s.cluster.Hosts[i].Address[s.cluster.Networks[0].Name] == a {
			return fmt.Errorf("address: %s is that of %s", a, s.cluster.Hosts[i].Name)
		}
	}
	if err := s.network.Unplug(guestNumber); err != nil {
		return err
	}
	return s.network.Plug(guestNumber, r.Pid, map[string]netip.Addr{s.cluster.Networks[0].Name: a})
}

func (s *Supervisor) power(ctx context.Context, r PowerRequest) error {
	n, err := s.node(r.Host)
	if err != nil {
		return err
	}
	switch r.Action {
	case PowerOn:
		return n.on(ctx, r.NoWatchdog)
	case PowerOff:
		return n.off()
	case Freeze, Thaw:
		return n.freeze(ctx, r.Action == Freeze)
	case Shutdown:
		return n.shutdown(ctx)
	case Reboot:
		if err := n.off(); err != nil {
			return err
		}
		return n.on(ctx, r.NoWatchdog)
	}
	return fmt.Errorf("unknown action %q", r.Action)
}

// follow streams events, one JSON object a line. The first is empty and says
// that nothing from now on is missed.
func (s *Supervisor) follow(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events := s.journal.Follow(ctx)
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	if out.Encode(journal.Event{}) != nil || flush.Flush() != nil {
		return
	}
	for e := range events {
		if out.Encode(e) != nil || flush.Flush() != nil {
			return
		}
	}
}

// action serves a request that only succeeds or fails.
func action[T any](do func(context.Context, T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&in); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		if err := do(r.Context(), in); err != nil {
			fail(w, http.StatusConflict, err)
			return
		}
		answer(w, struct{}{})
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Failure{err.Error()})
}
