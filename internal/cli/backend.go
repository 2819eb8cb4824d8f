package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/view"
)

// backend answers the commands about a cluster: the agent of this host, or a
// server. Both say the same in the same words.
type backend interface {
	Status(ctx context.Context) (*local.Status, error)
	Admin(ctx context.Context, req fdm.AdminRequest) (fdm.AdminReply, error)
	Config(ctx context.Context) ([]byte, error)
	Events(ctx context.Context, q local.EventQuery, each func(event.Event) error) error
}

// login is what `hanok login` keeps (0600, in the user's configuration).
type login struct {
	// Server is an address such as https://control:8443, or the path of a
	// server's socket.
	Server string `json:"server"`
	// Token proves who asks; empty for a socket.
	Token string `json:"token,omitempty"`
	// Issued: hanok login got the token for a password; logout revokes it.
	Issued bool `json:"issued,omitempty"`
	// CA is the certificate (PEM) that the server is known by; empty: any that
	// this machine trusts.
	CA string `json:"ca,omitempty"`
	// Cluster is the one meant when no other is named.
	Cluster string `json:"cluster,omitempty"`
}

func loginFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "hanok", "login.json"), nil
}

// readLogin is the login in force: flags, then the environment, then the file;
// nil when nothing names a server.
func (a *app) readLogin() (*login, error) {
	var l login
	path, err := loginFile()
	if err == nil {
		b, rerr := os.ReadFile(path)
		if rerr == nil {
			if err := json.Unmarshal(b, &l); err != nil {
				return nil, Fail(ExitUsage, "hanok login again", "%s: %w", path, err)
			}
		} else if !errors.Is(rerr, fs.ErrNotExist) {
			return nil, rerr
		}
	}
	for _, o := range []struct {
		to    *string
		value string
	}{{&l.Server, os.Getenv("HANOK_SERVER")}, {&l.Token, os.Getenv("HANOK_TOKEN")}, {&l.Cluster, os.Getenv("HANOK_CLUSTER")}, {&l.Server, a.server}, {&l.Cluster, a.cluster}} {
		if o.value != "" {
			*o.to = o.value
		}
	}
	if l.Server == "" || l.Server == "none" {
		return nil, nil
	}
	return &l, nil
}

// agent is whoever answers for the cluster.
func (a *app) agent() backend {
	l, err := a.readLogin()
	switch {
	case err != nil:
		return broken{err}
	case l == nil:
		return local.NewClient(a.socket)
	}
	c, err := dialServer(l)
	if err != nil {
		return broken{err}
	}
	return &remote{server: c, cluster: l.Cluster}
}

// api is the server of the login; on a host without one, the socket of a server
// on this machine.
func (a *app) api() (*apiClient, error) {
	l, err := a.readLogin()
	if err != nil {
		return nil, err
	}
	if l == nil {
		l = &login{Server: a.serverSocket, Cluster: a.cluster}
	}
	return dialServer(l)
}

// broken answers everything with an error.
type broken struct{ err error }

func (b broken) Status(context.Context) (*local.Status, error) { return nil, b.err }
func (b broken) Admin(context.Context, fdm.AdminRequest) (fdm.AdminReply, error) {
	return fdm.AdminReply{}, b.err
}
func (b broken) Config(context.Context) ([]byte, error) { return nil, b.err }
func (b broken) Events(context.Context, local.EventQuery, func(event.Event) error) error {
	return b.err
}

// apiClient is a connection to a server.
type apiClient struct {
	login     *login
	inventory hanokv1connect.InventoryServiceClient
	config    hanokv1connect.ConfigServiceClient
	operation hanokv1connect.OperationServiceClient
	task      hanokv1connect.TaskServiceClient
	event     hanokv1connect.EventServiceClient
	ha        hanokv1connect.HAServiceClient
	system    hanokv1connect.SystemServiceClient
	auth      hanokv1connect.AuthServiceClient
	user      hanokv1connect.UserServiceClient
	audit     hanokv1connect.AuditServiceClient
	trust     hanokv1connect.TrustServiceClient
}

func dialServer(l *login) (*apiClient, error) {
	var client *http.Client
	base := strings.TrimSuffix(l.Server, "/")
	switch {
	case strings.HasPrefix(l.Server, "/"):
		client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 2 * time.Second}
			return d.DialContext(ctx, "unix", l.Server)
		}}}
		base = "http://server"
	case !strings.HasPrefix(base, "https://"):
		return nil, usage("give https://HOST:PORT, or the path of the server's socket", "server %q", l.Server)
	default:
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		if l.CA != "" {
			conf.RootCAs = x509.NewCertPool()
			if !conf.RootCAs.AppendCertsFromPEM([]byte(l.CA)) {
				return nil, Fail(ExitUsage, "hanok login again", "the login has no certificate of the server")
			}
		}
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: askLimit}}
	}
	o := connect.WithInterceptors(bearer(l.Token))
	return &apiClient{login: l, inventory: hanokv1connect.NewInventoryServiceClient(client, base, o), config: hanokv1connect.NewConfigServiceClient(client, base, o),
		operation: hanokv1connect.NewOperationServiceClient(client, base, o), task: hanokv1connect.NewTaskServiceClient(client, base, o),
		event: hanokv1connect.NewEventServiceClient(client, base, o), ha: hanokv1connect.NewHAServiceClient(client, base, o),
		system: hanokv1connect.NewSystemServiceClient(client, base, o), auth: hanokv1connect.NewAuthServiceClient(client, base, o),
		user: hanokv1connect.NewUserServiceClient(client, base, o), audit: hanokv1connect.NewAuditServiceClient(client, base, o),
		trust: hanokv1connect.NewTrustServiceClient(client, base, o)}, nil
}

// bearer puts the token into every request.
type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if b != "" {
			r.Header().Set("Authorization", "Bearer "+string(b))
		}
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		c := next(ctx, s)
		if b != "" {
			c.RequestHeader().Set("Authorization", "Bearer "+string(b))
		}
		return c
	}
}

func (b bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// clusterName is the cluster that is meant: the one named, or the only one.
func (c *apiClient) clusterName(ctx context.Context) (string, error) {
	if c.login.Cluster != "" {
		return c.login.Cluster, nil
	}
	r, err := c.inventory.ListClusters(ctx, &hanokv1.ListClustersRequest{PageSize: 50})
	if err != nil {
		return "", err
	}
	switch len(r.Clusters) {
	case 1:
		return r.Clusters[0].Name, nil
	case 0:
		return "", Fail(ExitNotFound, "hanok apply -f FILE adds one", "the server knows no cluster")
	}
	var names []string
	for _, x := range r.Clusters {
		names = append(names, x.Name)
	}
	return "", usage("give --cluster NAME", "the server knows several clusters: %s", strings.Join(names, ", "))
}

// remote is a server as a backend.
type remote struct {
	server  *apiClient
	cluster string
	version uint64 // of the cluster file read last
}

func (r *remote) name(ctx context.Context) (string, error) {
	if r.cluster == "" {
		n, err := r.server.clusterName(ctx)
		if err != nil {
			return "", err
		}
		r.cluster = n
	}
	return r.cluster, nil
}

// Status implements backend.
func (r *remote) Status(ctx context.Context) (*local.Status, error) {
	name, err := r.name(ctx)
	if err != nil {
		return nil, err
	}
	s, err := r.server.inventory.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: name})
	if err != nil {
		return nil, err
	}
	out := view.Status(s, time.Now())
	out.Problems = []local.Problem{}
	for _, p := range s.Problems {
		out.Problems = append(out.Problems, local.Problem{About: p.About, Text: p.Text, Remedy: p.Remedy})
	}
	return out, nil
}

// Config implements backend.
func (r *remote) Config(ctx context.Context) ([]byte, error) {
	name, err := r.name(ctx)
	if err != nil {
		return nil, err
	}
	c, err := r.server.config.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: name})
	if err != nil {
		return nil, err
	}
	r.version = c.Config.Version
	return []byte(c.Config.Yaml), nil
}

// Admin implements backend: the order becomes a task, which is waited for until
// it was handed over.
func (r *remote) Admin(ctx context.Context, req fdm.AdminRequest) (fdm.AdminReply, error) {
	name, err := r.name(ctx)
	if err != nil {
		return fdm.AdminReply{}, err
	}
	var task *hanokv1.Task
	switch {
	case req.Start != nil:
		var out *hanokv1.StartVMResponse
		if out, err = r.server.operation.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: name, Vm: req.Start.Name, Force: req.Force}); err == nil {
			task = out.Task
		}
	case req.Shutdown != nil, req.Kill != nil:
		ref, kill := req.Shutdown, false
		if req.Kill != nil {
			ref, kill = req.Kill, true
		}
		var out *hanokv1.StopVMResponse
		if out, err = r.server.operation.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: name, Vm: ref.Name, Kill: kill}); err == nil {
			task = out.Task
		}
	case req.Unprotect != nil:
		var out *hanokv1.UnprotectVMResponse
		if out, err = r.server.operation.UnprotectVM(ctx, &hanokv1.UnprotectVMRequest{Cluster: name, Vm: req.Unprotect.Name}); err == nil {
			task = out.Task
		}
	case req.Apply != nil:
		if r.version == 0 {
			if _, err := r.Config(ctx); err != nil {
				return fdm.AdminReply{}, err
			}
		}
		out, err := r.server.config.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Cluster: name, Yaml: string(req.Apply.File), ExpectedVersion: min(r.version, req.Apply.Version-1), Force: req.Force})
		if err != nil {
			return fdm.AdminReply{}, err
		}
		return fdm.AdminReply{OK: true, Text: fmt.Sprintf("version %d is stored", out.Version)}, nil
	case req.Consider != nil && req.Consider.Apply != nil:
		return r.considered(ctx, name, string(req.Consider.Apply.File))
	default:
		return fdm.AdminReply{}, Fail(ExitRefused, "run it there, with --server none", "this has to be done on the VM's host")
	}
	if err != nil {
		return fdm.AdminReply{}, err
	}
	return r.handedOver(ctx, task)
}

// considered is what the server, or the primary through it, says to a cluster file.
func (r *remote) considered(ctx context.Context, cluster, yaml string) (fdm.AdminReply, error) {
	c, err := r.server.config.CheckConfig(ctx, &hanokv1.CheckConfigRequest{Cluster: cluster, Yaml: yaml})
	if err != nil {
		return fdm.AdminReply{}, err
	}
	a := c.Admission
	if a == nil || a.Policy == string(admission.Off) {
		return fdm.AdminReply{OK: true}, nil
	}
	d := admission.Decision{Allowed: !a.Refused, Report: admission.Report{Policy: admission.Kind(a.Policy), Answer: a.Verdict, Reason: a.Text, Help: a.Help, Warnings: a.Warnings}}
	return fdm.AdminReply{OK: !a.Refused, Refused: a.Refused, Text: a.Text, Help: a.Help, Warnings: a.Warnings, Fields: a.Fields, Decision: &d}, nil
}

// handedOver waits until a task was sent to the hosts, or ended.
func (r *remote) handedOver(ctx context.Context, t *hanokv1.Task) (fdm.AdminReply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.server.task.WatchTask(ctx, &hanokv1.WatchTaskRequest{Task: t.Id})
	if err != nil {
		return fdm.AdminReply{}, err
	}
	for s.Receive() {
		t = s.Msg().Task
		switch {
		case t.State == hanokv1.TaskState_TASK_STATE_FAILED, t.State == hanokv1.TaskState_TASK_STATE_CANCELLED:
			text, help, _ := strings.Cut(strings.TrimPrefix(t.Message, "refused: "), "; what would help: ")
			reply := fdm.AdminReply{Refused: t.Refused, Text: text}
			if help != "" {
				reply.Help = []string{help}
			}
			return reply, nil
		case t.State == hanokv1.TaskState_TASK_STATE_SUCCEEDED, t.Progress >= 50 && t.Kind != api.TaskUnprotect:
			return fdm.AdminReply{OK: true}, nil
		}
	}
	return fdm.AdminReply{}, s.Err()
}

// Events implements backend.
func (r *remote) Events(ctx context.Context, q local.EventQuery, each func(event.Event) error) error {
	name, err := r.name(ctx)
	if err != nil {
		return err
	}
	req := &hanokv1.ListEventsRequest{Cluster: name}
	if q.Failover != "" && q.Failover != "list" {
		f, err := r.server.event.GetFailover(ctx, &hanokv1.GetFailoverRequest{Cluster: name, Failover: q.Failover})
		if connect.CodeOf(err) == connect.CodeNotFound {
			return &local.RequestError{Status: 404, Failure: local.Failure{Error: messageOf(err)}}
		}
		if err != nil {
			return err
		}
		req.Failover = f.Summary.Failover
	}
	limit := q.Limit
	if limit == 0 {
		limit = local.DefaultEvents
	}
	var list []event.Event
	token := ""
	for {
		req.PageSize = int32(min(limit-len(list), api.MaxPage))
		p, err := r.server.event.ListEvents(ctx, req)
		if err != nil {
			return err
		}
		if token == "" {
			token = p.ResumeToken
		}
		for _, e := range p.Events {
			if q.Failover != "list" || e.Failover != "" {
				list = append(list, api.FromEvent(e))
			}
		}
		if req.PageToken = p.NextPageToken; req.PageToken == "" || len(list) >= limit {
			break
		}
	}
	slices.SortStableFunc(list, func(x, y event.Event) int { return x.Wall.Compare(y.Wall) })
	for _, e := range list {
		if err := each(e); err != nil {
			return err
		}
	}
	if !q.Follow {
		return nil
	}
	s, err := r.server.event.WatchEvents(ctx, &hanokv1.WatchEventsRequest{Cluster: name, ResumeToken: token})
	if err != nil {
		return err
	}
	defer s.Close()
	for s.Receive() {
		if e := s.Msg().Event; e != nil {
			if err := each(api.FromEvent(e)); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.Err()
}

// messageOf is an error's sentence without its code.
func messageOf(err error) string {
	var e *connect.Error
	if errors.As(err, &e) {
		return e.Message()
	}
	return err.Error()
}

// explainAPI turns an error of the API into one with remedy and exit code.
func explainAPI(e *connect.Error) *Error {
	out := &Error{Err: errors.New(e.Message()), Code: ExitRefused}
	switch e.Code() {
	case connect.CodeUnavailable:
		out.Code, out.Remedy = ExitUnreachable, "is the server running? systemctl status hanok-server; `--server none` asks this host instead"
	case connect.CodeUnauthenticated:
		out.Remedy = "hanok login"
	case connect.CodeNotFound:
		out.Code = ExitNotFound
	case connect.CodeDeadlineExceeded:
		out.Code = ExitTimeout
	case connect.CodeInvalidArgument:
		out.Code = ExitUsage
	case connect.CodeInternal, connect.CodeUnknown:
		out.Code = ExitFailed
	}
	for _, d := range e.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		switch m := v.(type) {
		case *hanokv1.Remedy:
			out.Remedy = strings.Replace(m.Text, "all the same by force", "all the same with --force", 1)
		case *hanokv1.FieldErrors:
			for _, f := range m.Errors {
				if f.Remedy != "" && out.Remedy == "" {
					out.Remedy = f.Remedy
				}
			}
		}
	}
	return out
}
