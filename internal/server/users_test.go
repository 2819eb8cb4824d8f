package server

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/store"
)

// rules says who may call each method. One without a line here fails the test.
var rules = map[string]string{
	"InventoryService": "viewer: ListClusters GetCluster GetStatus ListHosts GetHost ListVMs GetVM ListDatastores ListNetworks Watch",
	"ConfigService":    "viewer: GetConfig ListConfigVersions CheckConfig; administrator: ApplyConfig SetFields AdoptConfig RemoveCluster",
	"OperationService": "operator: StartVM StopVM SetMaintenance; administrator: UnprotectVM",
	"TaskService":      "viewer: ListTasks GetTask WatchTask; operator: CancelTask",
	"EventService":     "viewer: ListEvents WatchEvents ListFailovers GetFailover",
	"HAService":        "viewer: GetHAStatus ListResources ListRules Rehearse; administrator: PutResource RemoveResource PutRule RemoveRule",
	"SystemService":    "viewer: GetServer; administrator: Backup",
	"AuthService":      "anyone: SetUp Login Logout WhoAmI; viewer: ChangePassword CreateToken ListTokens RevokeToken",
	"UserService":      "administrator: AddUser ListUsers RemoveUser SetPassword SetRoles",
	"TrustService":     "anyone: EnrolHost; viewer: GetTrust; administrator: CreateHostToken ImportAuthority ReplaceAuthority",
	"AuditService":     "administrator: ListAudit",
}

var order = map[string]int{"anyone": 0, "viewer": 1, "operator": 2, "administrator": 3}

// withUsers runs a server with its own accounts and a token of each role.
func withUsers(t testing.TB) (*Server, map[string]string) {
	t.Helper()
	dir := t.TempDir()
	s, err := New(Config{Name: "s1", Store: store.Config{Dir: filepath.Join(dir, "data")}, Socket: filepath.Join(dir, "s"), Listen: "127.0.0.1:0", Plain: true,
		PasswordCost: account.Cost{Memory: 64, Passes: 1}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	tokens := map[string]string{"anyone": ""}
	for name, role := range map[string]hanokv1.Role{"administrator": 3, "operator": 2, "viewer": 1} {
		if _, err := s.book.Add(t.Context(), name, "correct horse battery", role, nil); err != nil {
			t.Fatal(err)
		}
		_, text, err := s.book.CreateToken(t.Context(), access.Local, name, "", 0, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		tokens[name] = text
	}
	return s, tokens
}

func TestEveryMethodHoldsItsRole(t *testing.T) {
	s, tokens := withUsers(t)
	want := map[string]int{}
	for service, text := range rules {
		for _, part := range strings.Split(text, ";") {
			role, methods, _ := strings.Cut(strings.TrimSpace(part), ": ")
			for _, m := range strings.Fields(methods) {
				want[service+"/"+m] = order[role]
			}
		}
	}
	seen := 0
	for _, m := range methods() {
		name := string(m.Parent().Name()) + "/" + string(m.Name())
		need, ok := want[name]
		if !ok {
			t.Errorf("%s: no rule says who may call it", name)
			continue
		}
		seen++
		for who, token := range tokens {
			if name == "AuthService/Logout" && who != "anyone" || m.IsStreamingServer() && name != "SystemService/Backup" && order[who] >= need {
				continue // it would end the token; streams go on
			}
			code := call(t, s, m, token)
			refused := code == "unauthenticated" || code == "permission_denied"
			switch {
			case need > 0 && who == "anyone" && code != "unauthenticated", order[who] < need && !refused:
				t.Errorf("%s by %s: %q", name, who, code)
			case order[who] >= need && refused && name != "AuthService/Login" && name != "AuthService/SetUp" && name != "TrustService/EnrolHost" && name != "AuthService/ChangePassword":
				t.Errorf("%s by %s: %q", name, who, code)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d methods, %d rules", seen, len(want))
	}
}

// methods are all methods of the API.
func methods() []protoreflect.MethodDescriptor {
	var out []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("hanok.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				out = append(out, f.Services().Get(i).Methods().Get(j))
			}
		}
		return true
	})
	return out
}

// writes: a method may change what the server keeps.
func writes(m protoreflect.MethodDescriptor) bool {
	o, ok := m.Options().(*descriptorpb.MethodOptions)
	return !m.IsStreamingServer() && (!ok || o.GetIdempotencyLevel() != descriptorpb.MethodOptions_NO_SIDE_EFFECTS)
}

// call makes an empty call and returns the error's code.
func call(t *testing.T, s *Server, m protoreflect.MethodDescriptor, token string) string {
	t.Helper()
	body, kind := "{}", "application/json"
	if m.IsStreamingServer() {
		body, kind = "\x00\x00\x00\x00\x02{}", "application/connect+json"
	}
	req, err := http.NewRequest("POST", "http://"+s.Address()+"/"+string(m.Parent().FullName())+"/"+string(m.Name()), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Code  string
		Error struct{ Code string }
	}
	if m.IsStreamingServer() {
		i := strings.LastIndex(string(b), `{"error"`)
		if i < 0 {
			return ""
		}
		b = b[i:]
	}
	_ = json.Unmarshal(b, &e) // an answer without a code is none of an error
	return e.Code + e.Error.Code
}

func TestAuditTellsWhoDidWhat(t *testing.T) {
	s, tokens := withUsers(t)
	post(t, s, "UserService/AddUser", `{"name":"eve","password":"correct horse battery","role":"ROLE_VIEWER","grants":[{"cluster":"busan","role":"ROLE_OPERATOR"}]}`, "Authorization", "Bearer "+tokens["administrator"])
	post(t, s, "OperationService/StartVM", `{"cluster":"seoul","vm":"web"}`, "Authorization", "Bearer "+tokens["viewer"])
	post(t, s, "AuthService/Login", `{"user":"eve","password":"a wrong one of hers"}`)
	post(t, s, "InventoryService/ListVMs", `{}`, "Authorization", "Bearer "+tokens["viewer"])
	_, body := post(t, s, "AuditService/ListAudit", `{}`, "Authorization", "Bearer "+tokens["administrator"])
	var got struct{ Entries []map[string]string }
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Entries) != 3 {
		t.Fatalf("%v: %s", err, body)
	}
	for i, want := range []map[string]string{
		{"via": "nobody", "method": "AuthService/Login", "target": "eve", "result": "unauthenticated"},
		{"principal": "viewer", "method": "OperationService/StartVM", "cluster": "seoul", "target": "web", "result": "permission_denied"},
		{"principal": "administrator", "method": "UserService/AddUser", "target": "eve", "result": "ok", "server": "s1", "text": "role=viewer grants=busan:operator"},
	} {
		for k, v := range want {
			if got.Entries[i][k] != v {
				t.Errorf("entry %d: %s is %q, want %q", i, k, got.Entries[i][k], v)
			}
		}
		if !strings.HasPrefix(got.Entries[i]["address"], "127.0.0.1:") {
			t.Errorf("entry %d: from %q", i, got.Entries[i]["address"])
		}
	}
	if strings.Contains(body, "horse") || strings.Contains(body, "wrong one") {
		t.Error("the log has a password")
	}
	_, body = post(t, s, "AuditService/ListAudit", `{"principal":"viewer","pageSize":1}`, "Authorization", "Bearer "+tokens["administrator"])
	if !strings.Contains(body, "StartVM") || strings.Contains(body, "AddUser") {
		t.Error(body)
	}
	// What was asked for and what came of it, without a secret.
	_, made := post(t, s, "AuthService/CreateToken", `{"note":"ci","limit":"ROLE_VIEWER"}`, "Authorization", "Bearer "+tokens["operator"])
	var token struct {
		Token  struct{ ID string }
		Secret string
	}
	if err := json.Unmarshal([]byte(made), &token); err != nil || token.Secret == "" {
		t.Fatalf("%v: %s", err, made)
	}
	_, body = post(t, s, "AuditService/ListAudit", `{"principal":"operator"}`, "Authorization", "Bearer "+tokens["administrator"])
	for _, want := range []string{"limit=viewer", `note=\"ci\"`, "token=" + token.Token.ID + " until "} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	if strings.Contains(body, token.Secret[len(token.Secret)-64:]) {
		t.Error("the log has a token")
	}
}

// A cookie alone changes nothing: another site can make a browser send it.
func TestCookiesNeedTheirToken(t *testing.T) {
	s, _ := withUsers(t)
	l, err := s.book.Login(t.Context(), "administrator", "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	cookie := l.Cookie.Name + "=" + l.Cookie.Value
	for name, tt := range map[string]struct {
		header []string
		status int
	}{
		"without":      {[]string{"Cookie", cookie}, 403},
		"a guess":      {[]string{"Cookie", cookie, account.HeaderCSRF, strings.Repeat("0", 64)}, 403},
		"cross-origin": {[]string{"Cookie", cookie, account.HeaderCSRF, l.CSRF, "Origin", "https://evil.example"}, 403},
		"with":         {[]string{"Cookie", cookie, account.HeaderCSRF, l.CSRF}, 200},
	} {
		if status, body := post(t, s, "UserService/ListUsers", "{}", tt.header...); status != tt.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	resp, err := http.Get("http://" + s.Address() + "/setup")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for h, want := range map[string]string{"Strict-Transport-Security": "max-age", "Content-Security-Policy": "sha256-", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff"} {
		if !strings.Contains(resp.Header.Get(h), want) {
			t.Errorf("%s: %q", h, resp.Header.Get(h))
		}
	}
}
