package server

import (
	"net/http"

	hanokapi "hanok.dev/hanok/api/gen"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
)

// handler routes to the services of the API.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(hanokv1connect.NewSystemServiceHandler(&system{s: s}, s.options()...))
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(hanokapi.OpenAPI)
	})
	return mux
}
