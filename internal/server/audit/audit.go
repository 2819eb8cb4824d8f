// Package audit keeps the log of calls that change something: who, from where,
// what, with which result.
//
// An entry is written before the call is carried out, with the result "begun",
// and again with the outcome: a server that dies in between leaves "begun", so
// that no change is without an entry. A call that cannot be recorded is refused.
// Refused calls of people who are logged in, and failed logins, are recorded
// too, under a kind of their own: strangers cannot push changes out of the log.
// What is refused because it came too soon or without any login is not, so that
// nobody fills the store by asking. Secrets of requests are never part of it.
package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// writeLimit bounds the write of an outcome, which goes on when the caller left.
const writeLimit = 5 * time.Second

// maxText bounds texts of an entry, in bytes.
const maxText = 500

// Log writes the audit log into a store. It implements access.Recorder.
type Log struct {
	Store *store.Store
	// Server is this server's name.
	Server string
	Log    *slog.Logger
}

// Recorded reports whether calls of a method are in the log: all but those that
// only read.
func Recorded(m protoreflect.MethodDescriptor) bool {
	if o, ok := m.Options().(*descriptorpb.MethodOptions); ok && o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
		return false
	}
	return !m.IsStreamingServer() || access.RoleOf(m) != hanokv1.Role_ROLE_VIEWER
}

// Begin implements access.Recorder.
func (l *Log) Begin(ctx context.Context, m protoreflect.MethodDescriptor, cluster string, msg any) (func(error), error) {
	if !Recorded(m) {
		return func(error) {}, nil
	}
	e := l.entry(ctx, m, cluster, msg)
	known := access.From(ctx) != nil
	if known { // strangers write nothing before they succeeded or failed
		e.Result = "begun"
		if err := l.write(ctx, state.AuditChange, e); err != nil {
			return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("it cannot be recorded, and so is not done: %w", err))
		}
	}
	return func(err error) {
		kind := state.AuditChange
		if !known && err != nil {
			if connect.CodeOf(err) == connect.CodeResourceExhausted {
				return
			}
			kind = state.AuditRefused
		}
		l.outcome(ctx, kind, e, err)
	}, nil
}

// Refused implements access.Recorder.
func (l *Log) Refused(ctx context.Context, m protoreflect.MethodDescriptor, cluster string, msg any, err error) {
	if Recorded(m) && access.From(ctx) != nil {
		l.outcome(ctx, state.AuditRefused, l.entry(ctx, m, cluster, msg), err)
	}
}

func (l *Log) outcome(ctx context.Context, kind string, e *hanokv1.AuditEntry, err error) {
	e.Result = "ok"
	if err != nil {
		var ce *connect.Error
		e.Result, e.Text = connect.CodeOf(err).String(), clean(err.Error())
		if errors.As(err, &ce) {
			e.Text = clean(ce.Message())
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeLimit)
	defer cancel()
	if err := l.write(ctx, kind, e); err != nil {
		l.Log.Error("the outcome of a call could not be recorded", "id", e.Id, "method", e.Method, "principal", e.Principal, "result", e.Result, "err", err)
	}
}

func (l *Log) write(ctx context.Context, kind string, e *hanokv1.AuditEntry) error {
	_, err := l.Store.Commit(ctx, new(store.Txn).Put(state.AuditKey(kind, e.Id), state.Encode(e)))
	return err
}

func (l *Log) entry(ctx context.Context, m protoreflect.MethodDescriptor, cluster string, msg any) *hanokv1.AuditEntry {
	now := time.Now().UTC()
	var tail [4]byte
	_, _ = rand.Read(tail[:]) // it never fails
	e := &hanokv1.AuditEntry{Id: fmt.Sprintf("%016x-%s", now.UnixNano(), hex.EncodeToString(tail[:])), Time: timestamppb.New(now), Via: "nobody",
		Address: clean(access.Address(ctx)), Method: string(m.Parent().Name()) + "/" + string(m.Name()), Cluster: clean(cluster), Target: clean(target(msg)), Server: clean(l.Server)}
	if p := access.From(ctx); p != nil {
		e.Principal, e.Via = p.Name, p.Via
		if p.Via == access.ViaToken {
			e.Via += " " + p.CredentialID
		}
	}
	return e
}

// targets are fields that name what a request is about, never a secret.
var targets = []protoreflect.Name{"vm", "host", "name", "user", "sid", "rule", "task", "id"}

func target(msg any) string {
	m, ok := msg.(proto.Message)
	if !ok {
		return ""
	}
	r := m.ProtoReflect()
	for _, name := range targets {
		f := r.Descriptor().Fields().ByName(name)
		if f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() && r.Get(f).String() != "" {
			return r.Get(f).String()
		}
	}
	return ""
}

// clean makes a text from outside fit to be kept: bounded, valid, one line.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	for len(s) > maxText {
		_, n := utf8.DecodeLastRuneInString(s[:maxText+1])
		s = s[:maxText+1-n]
	}
	return s
}
