package server

import (
	"net/http"

	hanokapi "hanok.dev/hanok/api/gen"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/server/api"
)

// handler routes to the services of the API.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	o := s.options()
	mux.Handle(hanokv1connect.NewSystemServiceHandler(&system{s: s}, o...))
	mux.Handle(hanokv1connect.NewInventoryServiceHandler(api.Inventory{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewConfigServiceHandler(api.Config{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewOperationServiceHandler(api.Operations{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewTaskServiceHandler(api.Tasks{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewEventServiceHandler(api.Events{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewHAServiceHandler(api.HA{API: s.api}, o...))
	mux.Handle(hanokv1connect.NewAuthServiceHandler(api.Auth{Book: s.book}, o...))
	mux.Handle(hanokv1connect.NewUserServiceHandler(api.Users{Book: s.book}, o...))
	mux.Handle(hanokv1connect.NewTrustServiceHandler(api.Trust{API: s.api, Book: s.trust, Reach: s.reach}, o...))
	mux.Handle(hanokv1connect.NewAuditServiceHandler(api.Audit{API: s.api}, o...))
	mux.HandleFunc("GET /setup", serveSetup)
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(hanokapi.OpenAPI)
	})
	s.health(mux)
	return mux
}
