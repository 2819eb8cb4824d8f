package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrFull: etcd has reached its quota and takes nothing any more. An embedded
// one makes room by itself first.
var ErrFull = errors.New("etcd is full: nothing can be changed until there is room")

// Compact drops the history before a revision: what a key was then can no longer
// be read, and no Watch begins there. That it is gone already is no error.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.client.Compact(ctx, revision); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("drop the history before revision %d: %w", revision, err)
	}
	return nil
}

// full tells the lack of room from other errors.
func full(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }

// tidy makes room at the start if etcd gave up for lack of it, or most of its
// file is empty.
func (s *Store) tidy(ctx context.Context) error {
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return err
	}
	for _, a := range alarms.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return s.makeRoom(ctx)
		}
	}
	r, err := s.client.Status(ctx, "")
	if err != nil {
		return err
	}
	if r.DbSize > s.cfg.Quota/2 && r.DbSizeInUse < r.DbSize/2 {
		return s.makeRoom(ctx)
	}
	return nil
}

// makeRoom gives up the history and the empty pages of the embedded etcd's file.
// While it works etcd answers nobody: seconds for each GiB.
func (s *Store) makeRoom(ctx context.Context) error {
	s.room.Lock()
	defer s.room.Unlock()
	before, err := s.client.Status(ctx, "")
	if err != nil {
		return err
	}
	if _, err := s.client.Compact(ctx, before.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("make room: %w", err)
	}
	if err := s.member.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("make room: %w", err)
	}
	after, err := s.client.Status(ctx, "")
	if err != nil {
		return err
	}
	s.cfg.Log.Warn("room was made for the state: the history for streams is gone", "before", before.DbSize, "after", after.DbSize, "quota", s.cfg.Quota)
	return nil
}
