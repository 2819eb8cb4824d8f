package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"hanok.dev/hanok/internal/agent/metrics"
)

// maxScrapers bounds the connections to the metrics.
const maxScrapers = 8

// observe serves metrics and health. They are a convenience: an address that
// cannot be listened on is said in the log and stops nothing.
func (a *Agent) observe(ctx context.Context) {
	if a.cfg.Metrics == "" {
		return
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Metrics)
	if err != nil {
		a.log.Error("no metrics are served", "address", a.cfg.Metrics, "err", err)
		return
	}
	srv := &http.Server{
		Handler:           metrics.Handler(a.Status),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
	a.goes(func() {
		if err := srv.Serve(limitListener(ln, maxScrapers)); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("metrics are not served any more", "address", a.cfg.Metrics, "err", err)
		}
	})
	a.goes(func() {
		<-ctx.Done()
		_ = srv.Close() // its clients notice
	})
}
