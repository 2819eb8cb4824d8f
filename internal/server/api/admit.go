package api

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/server/view"
)

// refused asks the primary whether admission control lets a cluster file pass; nil
// if it does, or cannot be asked now: it is asked again when the file is handed
// over.
func (a *API) refused(ctx context.Context, c *config.Cluster, yaml string) error {
	r, err := a.considered(ctx, c, yaml)
	if err != nil || !r.Refused {
		return nil
	}
	remedy := strings.TrimPrefix(strings.Join(r.Help, "; or ")+"; or do it all the same by force", "; or ")
	e := connect.NewError(connect.CodeFailedPrecondition, errors.New(r.Text))
	if len(r.Fields) > 0 {
		f := &hanokv1.FieldErrors{}
		for _, name := range r.Fields {
			f.Errors = append(f.Errors, &hanokv1.FieldError{Field: name, Text: r.Text, Remedy: remedy})
		}
		detail(e, f)
	}
	detail(e, &hanokv1.Remedy{Text: remedy})
	return e
}

// considered is what the primary says to a cluster file.
func (a *API) considered(ctx context.Context, c *config.Cluster, yaml string) (fdm.AdminReply, error) {
	if a.ask == nil || a.cache.Wanted(c.Name) == nil {
		return fdm.AdminReply{}, errors.New("no host can be asked")
	}
	r, err := a.ask(ctx, c.Name, fdm.Consideration{Dry: true, Apply: &fdm.ConfigOffer{Version: c.Version, File: []byte(yaml)}})
	if err == nil && !r.OK && !r.Refused {
		err = errors.New(r.Text)
	}
	return r, err
}

// live is the effect on admission as the primary sees it; nil: it cannot be asked,
// or has nothing to decide.
func (a *API) live(ctx context.Context, c *config.Cluster, yaml string) *hanokv1.AdmissionEffect {
	r, err := a.considered(ctx, c, yaml)
	if err != nil || r.Decision == nil {
		return nil
	}
	e := view.Admission(r.Decision.Report)
	e.Live, e.Refused, e.Fields = true, r.Refused, r.Fields
	if r.Refused {
		e.Text = r.Text
	}
	return e
}
