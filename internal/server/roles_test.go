package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// Roles as the table has them.
const (
	anyone = iota
	viewer
	operator
	administrator
)

// scope is what a role must be held on.
type scope string

const (
	self    scope = "self"    // nothing: the call is about its caller
	whole   scope = "whole"   // everything
	cluster scope = "cluster" // the cluster that the request names
	seen    scope = "seen"    // the cluster that the request names, or else any: the answer is what the caller may see
	ofTask  scope = "task"    // the cluster of the task that the request names
)

type right struct {
	role int
	on   scope
}

// rights says who may call each method. One without a line here fails the test.
var rights = map[string]right{
	"InventoryService/ListClusters":   {viewer, seen},
	"InventoryService/GetCluster":     {viewer, seen},
	"InventoryService/GetStatus":      {viewer, seen},
	"InventoryService/ListHosts":      {viewer, seen},
	"InventoryService/GetHost":        {viewer, seen},
	"InventoryService/ListVMs":        {viewer, seen},
	"InventoryService/GetVM":          {viewer, seen},
	"InventoryService/ListDatastores": {viewer, seen},
	"InventoryService/ListNetworks":   {viewer, seen},
	"InventoryService/Watch":          {viewer, seen},

	"ConfigService/GetConfig":          {viewer, seen},
	"ConfigService/ListConfigVersions": {viewer, seen},
	"ConfigService/CheckConfig":        {viewer, seen},
	"ConfigService/ApplyConfig":        {administrator, cluster},
	"ConfigService/SetFields":          {administrator, cluster},
	"ConfigService/AdoptConfig":        {administrator, cluster},
	"ConfigService/RemoveCluster":      {administrator, cluster},

	"OperationService/StartVM":        {operator, cluster},
	"OperationService/StopVM":         {operator, cluster},
	"OperationService/UnprotectVM":    {administrator, cluster},
	"OperationService/SetMaintenance": {operator, cluster},

	"TaskService/ListTasks":  {viewer, seen},
	"TaskService/GetTask":    {viewer, ofTask},
	"TaskService/WatchTask":  {viewer, ofTask},
	"TaskService/CancelTask": {operator, cluster},

	"EventService/ListEvents":    {viewer, seen},
	"EventService/WatchEvents":   {viewer, seen},
	"EventService/ListFailovers": {viewer, seen},
	"EventService/GetFailover":   {viewer, seen},

	"HAService/GetHAStatus":    {viewer, seen},
	"HAService/ListResources":  {viewer, seen},
	"HAService/PutResource":    {administrator, cluster},
	"HAService/RemoveResource": {administrator, cluster},
	"HAService/ListRules":      {viewer, seen},
	"HAService/PutRule":        {administrator, cluster},
	"HAService/RemoveRule":     {administrator, cluster},
	"HAService/Rehearse":       {viewer, seen},

	"SystemService/GetServer": {viewer, seen},
	"SystemService/Backup":    {administrator, whole},

	"AuthService/SetUp":          {anyone, self},
	"AuthService/Login":          {anyone, self},
	"AuthService/Logout":         {anyone, self},
	"AuthService/WhoAmI":         {anyone, self},
	"AuthService/ChangePassword": {viewer, self},
	"AuthService/CreateToken":    {viewer, self},
	"AuthService/ListTokens":     {viewer, self},
	"AuthService/RevokeToken":    {viewer, self},

	"UserService/AddUser":     {administrator, whole},
	"UserService/ListUsers":   {administrator, whole},
	"UserService/RemoveUser":  {administrator, whole},
	"UserService/SetPassword": {administrator, whole},
	"UserService/SetRoles":    {administrator, whole},

	"TrustService/EnrolHost":        {anyone, self},
	"TrustService/GetTrust":         {viewer, seen},
	"TrustService/CreateHostToken":  {administrator, cluster},
	"TrustService/ImportAuthority":  {administrator, cluster},
	"TrustService/ReplaceAuthority": {administrator, cluster},

	"AuditService/ListAudit": {administrator, whole},
}

// ownWord are the methods that refuse for reasons of their own: a wrong token or
// password is no lack of a role.
var ownWord = []string{"AuthService/SetUp", "AuthService/Login", "AuthService/ChangePassword", "TrustService/EnrolHost"}

// someone holds a role on the whole, and roles on clusters; their token gives at most
// limit.
type someone struct {
	role, limit int
	on          map[string]int
}

var callers = map[string]someone{
	"viewer":                    {role: viewer},
	"operator":                  {role: operator},
	"administrator":             {role: administrator},
	"administrator's reader":    {role: administrator, limit: viewer},
	"administrator of seoul":    {on: map[string]int{"seoul": administrator}},
	"operator of seoul":         {on: map[string]int{"seoul": operator}},
	"seoul's reader":            {on: map[string]int{"seoul": administrator}, limit: viewer},
	"administrator of busan":    {on: map[string]int{"busan": administrator}},
	"viewer, operator of busan": {role: viewer, on: map[string]int{"busan": operator}},
}

// may is what the table says of a call about seoul, or about no cluster.
func (c someone) may(r right, aboutSeoul bool) bool {
	has := c.role
	switch {
	case r.on == seen && !aboutSeoul || r.on == self:
		for _, role := range c.on {
			has = max(has, role)
		}
	case r.on != whole && aboutSeoul:
		has = max(has, c.on["seoul"])
	}
	if c.limit > 0 {
		has = min(has, c.limit)
	}
	return has >= r.role
}

// tokenOf makes them a user with a token.
func (c someone) tokenOf(t *testing.T, s *Server, name string) string {
	t.Helper()
	var grants []*hanokv1.Grant
	for _, x := range slices.Sorted(maps.Keys(c.on)) {
		grants = append(grants, &hanokv1.Grant{Cluster: x, Role: hanokv1.Role(c.on[x])})
	}
	if _, err := s.book.Add(t.Context(), name, "correct horse battery", hanokv1.Role(c.role), grants); err != nil {
		t.Fatal(err)
	}
	return moreToken(t, s, name, c.limit)
}

func moreToken(t *testing.T, s *Server, name string, limit int) string {
	t.Helper()
	_, text, err := s.book.CreateToken(t.Context(), access.Local, name, "", hanokv1.Role(limit), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// twoClusters is a server with accounts that knows seoul, with its hosts, and busan.
func twoClusters(t *testing.T) *rig {
	t.Helper()
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	s, _ := withUsersAnd(t, fakeagent.Dial(func(id string) *fakeagent.Cluster {
		if id == hosts.ID() {
			return hosts
		}
		return nil
	}))
	r := &rig{t: t, hosts: hosts}
	r.serve(s)
	for _, file := range []string{clusterFile, busanFile} {
		if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: file}); err != nil {
			t.Fatal(err)
		}
	}
	r.until("the VMs", func() bool { return r.cache.VM("seoul", "web") != nil })
	return r
}

const busanFile = `version: 1
name: busan
networks: [{name: lan, heartbeat: true}]
hosts: [{name: node1, address: {lan: 10.9.9.1}}]
`

// request is what a method is asked: about seoul, if the request can say so. What
// is wrong with the rest ends streams at once.
func request(m protoreflect.MethodDescriptor, task string) (about, nothing string) {
	fields := m.Input().Fields()
	body := map[string]any{}
	for name, v := range map[protoreflect.Name]any{"resume_token": "none", "hosts": []string{"none"}} {
		if f := fields.ByName(name); f != nil {
			body[f.JSONName()] = v
		}
	}
	b, _ := json.Marshal(body) // texts only
	nothing = string(b)
	for name, v := range map[protoreflect.Name]string{"cluster": "seoul", "task": task} {
		if f := fields.ByName(name); f != nil {
			body[f.JSONName()] = v
		}
	}
	b, _ = json.Marshal(body)
	return string(b), nothing
}

func TestEveryMethodHoldsItsRole(t *testing.T) {
	r := twoClusters(t)
	started, err := r.ops.StopVM(t.Context(), &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(started.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	tokens := map[string]string{}
	for who, c := range callers {
		tokens[who] = c.tokenOf(t, r.Server, fmt.Sprintf("u%d", len(tokens)))
	}
	known := 0
	for _, m := range methods() {
		name := string(m.Parent().Name()) + "/" + string(m.Name())
		need, ok := rights[name]
		if !ok {
			t.Errorf("%s: no line says who may call it", name)
			continue
		}
		known++
		about, nothing := request(m, started.Task.Id)
		for _, body := range []string{about, nothing} {
			code, _ := call(t, r.Server, m, "", body)
			if need.role > anyone && code != "unauthenticated" || need.role == anyone && code != "" && !slices.Contains(ownWord, name) {
				t.Errorf("%s by nobody, %s: %q", name, body, code)
			}
			for who, c := range callers {
				token := tokens[who]
				if name == "AuthService/Logout" { // it ends the token
					token = moreToken(t, r.Server, "u0", 0)
				}
				code, answer := call(t, r.Server, m, token, body)
				refused := code == "unauthenticated" || code == "permission_denied"
				if need.on == ofTask && c.may(right{viewer, self}, false) { // of a task that one may not see nothing is said
					refused = code == "not_found"
					if body == nothing {
						continue
					}
				}
				if may := c.may(need, body == about && about != nothing); may == refused && !slices.Contains(ownWord, name) {
					t.Errorf("%s by %s, %s: %q, may is %t", name, who, body, code, may)
				}
				// Whoever has nothing to do with seoul hears nothing of it.
				if c.role == 0 && c.on["seoul"] == 0 && body == nothing {
					for _, secret := range []string{"seoul", "host1", "10.0.0.", "ds1"} {
						if strings.Contains(answer, secret) {
							t.Errorf("%s tells %s of %s: %s", name, who, secret, answer)
						}
					}
				}
			}
		}
	}
	if known != len(rights) {
		t.Errorf("%d methods, %d lines", known, len(rights))
	}
}

// A file names its cluster itself: it is not a way around the roles on clusters.
func TestAFileNamesItsCluster(t *testing.T) {
	r := twoClusters(t)
	changed := strings.Replace(clusterFile, "memory: 16GiB", "memory: 8GiB", 1)
	for who, c := range map[string]someone{"neighbour": {on: map[string]int{"busan": administrator}}, "reader": {role: viewer, on: map[string]int{"busan": administrator}}} {
		token := c.tokenOf(t, r.Server, who)
		for _, method := range []string{"CheckConfig", "ApplyConfig"} {
			for _, named := range []string{"", "busan"} {
				body, _ := json.Marshal(map[string]any{"cluster": named, "yaml": changed})
				code, answer := call(t, r.Server, methodOf("ConfigService", method), token, string(body))
				if who == "reader" && method == "CheckConfig" && named == "" { // it may read seoul
					if code != "" || !strings.Contains(answer, "16GiB") {
						t.Errorf("%s: %s", who, answer)
					}
					continue
				}
				if strings.Contains(answer, "16GiB") || strings.Contains(answer, `"currentVersion"`) || named == "" && code != "permission_denied" {
					t.Errorf("%s by %s on %q: %s", method, who, named, answer)
				}
			}
		}
	}
}

// Whoever names a cluster of their own gives up no task of another's.
func TestATaskIsOfItsCluster(t *testing.T) {
	r := twoClusters(t)
	r.hosts.SetDown(true) // it does not end
	out, err := r.ops.StartVM(t.Context(), &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		someone
		cluster, code string
	}{
		{"stranger", someone{on: map[string]int{"busan": administrator}}, "busan", "not_found"},
		{"reader", someone{role: viewer, on: map[string]int{"busan": administrator}}, "busan", "permission_denied"},
		{"mistaken", someone{role: operator}, "busan", "invalid_argument"},
		{"unnamed", someone{on: map[string]int{"seoul": operator}}, "", "permission_denied"},
		{"starter", someone{on: map[string]int{"seoul": operator}}, "seoul", ""},
	} {
		body, _ := json.Marshal(map[string]string{"task": out.Task.Id, "cluster": tt.cluster})
		code, answer := call(t, r.Server, methodOf("TaskService", "CancelTask"), tt.tokenOf(t, r.Server, tt.name), string(body))
		if code != tt.code {
			t.Errorf("%s: %s", tt.name, answer)
		}
		if task := r.cache.Task(out.Task.Id); task.CancelRequested && tt.code != "" {
			t.Fatalf("%s gave it up", tt.name)
		}
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_CANCELLED)
}

// A stream shows what the caller may see, and no more.
func TestStreamsHoldRoles(t *testing.T) {
	r := twoClusters(t)
	token := someone{on: map[string]int{"busan": viewer}}.tokenOf(t, r.Server, "b")
	with := connect.WithInterceptors(bearer(token))
	at := "http://" + r.Address()
	inv := hanokv1connect.NewInventoryServiceClient(http.DefaultClient, at, with)
	events := hanokv1connect.NewEventServiceClient(http.DefaultClient, at, with)
	list, err := inv.ListClusters(t.Context(), &hanokv1.ListClustersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// First something of seoul, then something of busan: when that is there, the other was left out.
	for i, c := range []string{"seoul", "busan"} {
		field := &hanokv1.FieldValue{Field: "ha.isolationDelay", Value: fmt.Sprintf("%ds", 7+i)}
		if _, err := r.conf.SetFields(t.Context(), &hanokv1.SetFieldsRequest{Cluster: c, Fields: []*hanokv1.FieldValue{field}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes, err := inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: list.ResumeToken})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Close()
	seenBy(t, changes, func(w *hanokv1.WatchResponse) bool {
		if strings.Contains(w.String(), "seoul") {
			t.Errorf("%v", w)
		}
		return w.GetCluster().GetName() == "busan" && w.GetCluster().GetDesiredVersion() == 2
	})
	happened, err := events.WatchEvents(ctx, &hanokv1.WatchEventsRequest{ResumeToken: list.ResumeToken})
	if err != nil {
		t.Fatal(err)
	}
	defer happened.Close()
	for happened.Receive() {
		e := happened.Msg().Event
		if strings.Contains(e.String(), "seoul") {
			t.Errorf("%v", e)
		}
		if e.GetCluster() == "busan" {
			return
		}
	}
	t.Errorf("the stream ended: %v", happened.Err())
}

// A stream ends with what its caller showed, and with their role.
func TestStreamsEndWithTheirCaller(t *testing.T) {
	r := twoClusters(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	at := "http://" + r.Address()
	if _, err := r.book.Add(ctx, "boss", "correct horse battery", administrator, nil); err != nil { // without one nobody is removed
		t.Fatal(err)
	}
	touch := func(round int) {
		for i, c := range []string{"seoul", "busan"} {
			field := &hanokv1.FieldValue{Field: "ha.isolationDelay", Value: fmt.Sprintf("%ds", 7+2*round+i)}
			if _, err := r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: c, Fields: []*hanokv1.FieldValue{field}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, err := r.inv.ListVMs(ctx, &hanokv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	touch(0) // each stream has something to begin with
	for name, tt := range map[string]struct {
		end  func(name, token string) error
		want connect.Code
	}{
		"revoked": {func(_, token string) error {
			_, err := r.book.RevokeToken(ctx, "", strings.Split(token, "_")[2])
			return err
		}, connect.CodeUnauthenticated},
		"removed": {func(name, _ string) error { return r.book.Remove(ctx, name) }, connect.CodeUnauthenticated},
		"moved": {func(name, _ string) error {
			_, err := r.book.SetRoles(ctx, name, 0, []*hanokv1.Grant{{Cluster: "busan", Role: viewer}})
			return err
		}, connect.CodePermissionDenied},
		"logged-out": {func(_, token string) error {
			_, err := hanokv1connect.NewAuthServiceClient(http.DefaultClient, at, connect.WithInterceptors(bearer(token))).Logout(ctx, &hanokv1.LogoutRequest{})
			return err
		}, connect.CodeUnauthenticated},
	} {
		token := someone{on: map[string]int{"seoul": viewer}}.tokenOf(t, r.Server, name)
		inv := hanokv1connect.NewInventoryServiceClient(http.DefaultClient, at, connect.WithInterceptors(bearer(token)))
		s, err := inv.Watch(ctx, &hanokv1.WatchRequest{Cluster: "seoul", ResumeToken: first.ResumeToken})
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.end(name, token); err != nil {
			t.Fatal(err)
		}
		for s.Receive() {
		}
		if got := connect.CodeOf(s.Err()); s.Err() == nil || got != tt.want {
			t.Errorf("%s: %v, want %v", name, s.Err(), tt.want)
		}
		_ = s.Close()
	}

	// Who may still call it sees what they may by now.
	token := someone{on: map[string]int{"seoul": viewer, "busan": viewer}}.tokenOf(t, r.Server, "narrowed")
	s, err := hanokv1connect.NewInventoryServiceClient(http.DefaultClient, at, connect.WithInterceptors(bearer(token))).Watch(ctx, &hanokv1.WatchRequest{ResumeToken: first.ResumeToken})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := r.book.SetRoles(ctx, "narrowed", 0, []*hanokv1.Grant{{Cluster: "busan", Role: viewer}}); err != nil {
		t.Fatal(err)
	}
	seoul := true
	for round := 1; seoul; round++ { // the last rounds are without seoul
		seoul = false
		touch(round)
		seenBy(t, s, func(w *hanokv1.WatchResponse) bool {
			seoul = seoul || w.GetCluster().GetName() == "seoul"
			return w.GetCluster().GetName() == "busan" && w.GetCluster().GetDesiredVersion() == uint64(round+2)
		})
	}
}

// bearer makes calls with a token.
type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", "Bearer "+string(b))
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		c := next(ctx, s)
		c.RequestHeader().Set("Authorization", "Bearer "+string(b))
		return c
	}
}

func (b bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
