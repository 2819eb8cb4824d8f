package server

import (
	"encoding/binary"
	"encoding/json"
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
	"hanok.dev/hanok/internal/server/work"
	"hanok.dev/hanok/internal/store"
)

// withUsers runs a server with its own accounts and a token of each role.
func withUsers(t testing.TB) (*Server, map[string]string) {
	t.Helper()
	return withUsersAnd(t, nil)
}

// withUsersAnd is withUsers beside hosts.
func withUsersAnd(t testing.TB, dial work.Dial) (*Server, map[string]string) {
	t.Helper()
	dir := t.TempDir()
	s, err := New(Config{Name: "s1", Store: store.Config{Dir: filepath.Join(dir, "data")}, Socket: filepath.Join(dir, "s"), Listen: "127.0.0.1:0", Plain: true, Dial: dial, Interval: 20 * time.Millisecond, Follow: 10 * time.Millisecond,
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

// call makes a call and returns the error's code, empty for none, and the answer.
func call(t *testing.T, s *Server, m protoreflect.MethodDescriptor, token, body string) (code, answer string) {
	t.Helper()
	kind := "application/json"
	if m.IsStreamingServer() {
		body, kind = enveloped(body), "application/connect+json"
	}
	header := []string{"Content-Type", kind}
	if token != "" {
		header = append(header, "Authorization", "Bearer "+token)
	}
	_, answer = post(t, s, string(m.Parent().Name())+"/"+string(m.Name()), body, header...)
	var e struct {
		Code  string
		Error struct{ Code string }
	}
	last := answer
	if m.IsStreamingServer() {
		i := strings.LastIndex(answer, `{"error"`)
		if i < 0 {
			return "", answer
		}
		last = answer[i:]
	}
	_ = json.Unmarshal([]byte(last), &e) // an answer without a code is none of an error
	return e.Code + e.Error.Code, answer
}

// enveloped is a message of a stream.
func enveloped(body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))) + body
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
