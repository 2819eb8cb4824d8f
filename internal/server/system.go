package server

import (
	"bufio"
	"context"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/work"
	"hanok.dev/hanok/internal/version"
)

// system is SystemService.
type system struct{ s *Server }

func (x *system) GetServer(ctx context.Context, _ *hanokv1.GetServerRequest) (*hanokv1.GetServerResponse, error) {
	rev, err := x.s.store.Revision(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	leader, err := x.s.store.Leader(ctx, work.Leadership)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	return &hanokv1.GetServerResponse{Version: version.Version, Name: x.s.cfg.Name, Leader: leader, EmbeddedStore: x.s.store.Embedded(), Revision: rev,
		Address: x.s.Address(), Fingerprint: x.s.fingerprint, Ca: x.s.ca}, nil
}

func (x *system) Backup(ctx context.Context, _ *hanokv1.BackupRequest, out *connect.ServerStream[hanokv1.BackupResponse]) error {
	w := bufio.NewWriterSize(chunks{out}, 256<<10)
	if err := x.s.store.Backup(ctx, w); err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	return w.Flush()
}

type chunks struct {
	out *connect.ServerStream[hanokv1.BackupResponse]
}

func (c chunks) Write(b []byte) (int, error) {
	if err := c.out.Send(&hanokv1.BackupResponse{Chunk: b}); err != nil {
		return 0, err
	}
	return len(b), nil
}
