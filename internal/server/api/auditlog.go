package api

import (
	"context"
	"strconv"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Audit is AuditService.
type Audit struct{ *API }

// ListAudit implements the service.
func (a Audit) ListAudit(ctx context.Context, r *hanokv1.ListAuditRequest) (*hanokv1.ListAuditResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	before := int64(0) // entries have a revision of their own each
	if p.after != "" {
		if before, err = strconv.ParseInt(p.after, 16, 64); err != nil || before <= 0 {
			return nil, invalid("pageToken", "give the token of the page before", "is none of this list")
		}
	}
	out := &hanokv1.ListAuditResponse{}
	for {
		const chunk = 500
		items, _, err := a.store.List(ctx, state.AuditPrefix(""), store.ListOptions{NewestFirst: true, Limit: chunk, CreatedBefore: before})
		if err != nil {
			return nil, unavailable(err)
		}
		for _, it := range items {
			e, err := state.Decode[hanokv1.AuditEntry](it.Key, it.Value)
			if err != nil {
				return nil, unavailable(err)
			}
			if r.Principal != "" && e.Principal != r.Principal || r.Method != "" && e.Method != r.Method ||
				r.OnCluster != "" && e.Cluster != r.OnCluster || r.Failed && e.Result == "ok" {
				before = it.Created
				continue
			}
			if len(out.Entries) == p.size {
				out.NextPageToken = tokenOf(strconv.FormatInt(before, 16))
				return out, nil
			}
			before = it.Created
			out.Entries = append(out.Entries, e)
		}
		if len(items) < chunk {
			return out, nil
		}
	}
}
