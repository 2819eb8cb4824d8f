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
	"strconv"
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
func (l *Log) Begin(ctx context.Context, m protoreflect.MethodDescriptor, cluster string, msg any) (func(any, error), error) {
	if !Recorded(m) {
		return func(any, error) {}, nil
	}
	e := l.entry(ctx, m, cluster, msg)
	known := access.From(ctx) != nil
	if known { // strangers write nothing before they succeeded or failed
		e.Result = "begun"
		if err := l.write(ctx, state.AuditChange, e); err != nil {
			return nil, connect.NewError(connect.CodeUnavailable, fmt.Errorf("it cannot be recorded, and so is not done: %w", err))
		}
	}
	return func(answer any, err error) {
		e.Text = joined(e.Text, clean(told(answer, answers)))
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
		e.Result = connect.CodeOf(err).String()
		text := err.Error()
		if errors.As(err, &ce) {
			text = ce.Message()
		}
		e.Text = joined(clean(text), e.Text)
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
		Address: clean(access.Address(ctx)), Method: string(m.Parent().Name()) + "/" + string(m.Name()), Cluster: clean(cluster), Target: clean(target(msg)), Server: clean(l.Server), Text: clean(told(msg, questions))}
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

// questions are fields that say what a request asks for, answers those that say what
// came of it: neither is ever a secret.
var (
	questions = []protoreflect.Name{"role", "grants", "limit", "expires", "note", "seconds", "on", "kill", "force", "expected_version", "fields", "resource", "rule"}
	answers   = []protoreflect.Name{"version", "task", "token", "fingerprint"}
)

// told is what fields of a message say, those that are set: "role=viewer seconds=60".
func told(msg any, names []protoreflect.Name) string {
	m, ok := msg.(proto.Message)
	if !ok {
		return ""
	}
	r := m.ProtoReflect()
	var out []string
	for _, name := range names {
		f := r.Descriptor().Fields().ByName(name)
		if f == nil || !r.Has(f) && name != "on" {
			continue
		}
		v := r.Get(f)
		if f.IsList() {
			var list []string
			for i := range min(v.List().Len(), 20) {
				list = append(list, said(f, v.List().Get(i)))
			}
			out = append(out, string(name)+"="+strings.Join(list, ","))
		} else if text := said(f, v); text != "" {
			out = append(out, string(name)+"="+text)
		}
	}
	return strings.Join(out, " ")
}

// said is one value; empty for a secret and for what is said elsewhere.
func said(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		if f.Name() == "token" || f.Name() == "rule" { // a secret; the target
			return ""
		}
		return strconv.Quote(v.String())
	case protoreflect.EnumKind:
		if d := f.Enum().Values().ByNumber(v.Enum()); d != nil {
			return strings.ToLower(strings.TrimPrefix(string(d.Name()), "ROLE_"))
		}
		return strconv.Itoa(int(v.Enum()))
	case protoreflect.MessageKind:
		switch x := v.Message().Interface().(type) {
		case *timestamppb.Timestamp:
			return x.AsTime().Format(time.RFC3339)
		case *hanokv1.Grant:
			return x.Cluster + ":" + strings.ToLower(strings.TrimPrefix(x.Role.String(), "ROLE_"))
		case *hanokv1.FieldValue:
			return x.Field + "=" + strconv.Quote(x.Value)
		case *hanokv1.Task:
			return x.Id
		case *hanokv1.Token:
			return x.Id + " until " + x.Expires.AsTime().Format(time.RFC3339)
		case *hanokv1.Resource:
			return x.Id
		case *hanokv1.Rule:
			return x.Kind + " " + x.Name
		}
		return ""
	}
	return fmt.Sprint(v.Interface())
}

// joined are the texts that there are.
func joined(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return clean(a + "; " + b)
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
