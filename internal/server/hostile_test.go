package server

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/store"
)

// raw sends a request as it is and returns the status line and the rest; path
// is not cleaned by a client's library.
func raw(t *testing.T, s *Server, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.LimitReader(c, 1<<20))
	if err != nil && len(b) == 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestPathsLeadNowhere(t *testing.T) {
	s, tokens := withUsers(t)
	for _, path := range []string{
		"/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/setup/../../../etc/passwd", "//etc/passwd", "/openapi.json/../../../../etc/shadow",
		"/..%2f..%2fetc%2fpasswd", "/hanok.v1.SystemService/..%2f..%2fdata", "/\x00", "/setup%00.html", "\\..\\..\\etc\\passwd", "/debug/pprof/", "/metrics",
	} {
		got := raw(t, s, "GET "+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+tokens["administrator"]+"\r\nConnection: close\r\n\r\n")
		line, _, _ := strings.Cut(got, "\r\n")
		if strings.Contains(got, "root:") || !strings.Contains(line, " 40") && !strings.Contains(line, " 30") {
			t.Errorf("%q: %s", path, line)
		}
	}
	// Names from requests are names, never paths: neither in the state nor on disk.
	for _, name := range []string{"../../etc/passwd", "a/../../user/administrator", "%2e%2e%2fuser", "user/administrator", "\x00"} {
		for method, body := range map[string]string{
			"ConfigService/GetConfig":         fmt.Sprintf(`{"cluster":%q}`, name),
			"InventoryService/GetVM":          fmt.Sprintf(`{"cluster":"seoul","vm":%q}`, name),
			"TaskService/GetTask":             fmt.Sprintf(`{"task":%q}`, name),
			"TrustService/CreateHostToken":    fmt.Sprintf(`{"cluster":"seoul","host":%q}`, name),
			"UserService/RemoveUser":          fmt.Sprintf(`{"name":%q}`, name),
			"InventoryService/ListVMs":        fmt.Sprintf(`{"pageToken":%q}`, name),
			"AuthService/RevokeToken":         fmt.Sprintf(`{"id":%q}`, name),
			"TrustService/EnrolHost":          fmt.Sprintf(`{"token":%q,"host":%q}`, "hanok-host:"+name+":host1:x", name),
			"OperationService/SetMaintenance": fmt.Sprintf(`{"cluster":%q,"host":"h"}`, name),
		} {
			if status, text := post(t, s, method, body, "Authorization", "Bearer "+tokens["administrator"]); status < 400 || status >= 500 {
				t.Errorf("%s of %q: %d %.200s", method, name, status, text)
			}
		}
	}
}

// Bodies are bounded as they come, unpacked ones included, and in time.
func TestBodiesAreBounded(t *testing.T) {
	s, tokens := withUsers(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write([]byte(`{"user":"`))
	zeros := bytes.Repeat([]byte("a"), 1<<20)
	for range 64 {
		_, _ = z.Write(zeros)
	}
	_, _ = z.Write([]byte(`"}`))
	_ = z.Close()
	if bomb.Len() > 1<<20 {
		t.Fatal("the bomb is no bomb")
	}
	auth := []string{"Authorization", "Bearer " + tokens["administrator"]}
	for name, tt := range map[string]struct {
		body   string
		header []string
	}{
		"too long":                 {`{"user":"` + strings.Repeat("a", maxBody) + `"}`, nil},
		"unpacks to 64 MiB":        {bomb.String(), []string{"Content-Encoding", "gzip"}},
		"an unknown encoding":      {bomb.String(), []string{"Content-Encoding", "zstd"}},
		"not what it calls itself": {"\xff\xfe", nil},
		"nested too deep":          {strings.Repeat(`{"user":`, 5000), nil},
	} {
		status, text := post(t, s, "AuthService/ListTokens", tt.body, append(auth, tt.header...)...)
		if status < 400 || status >= 600 || status == 500 {
			t.Errorf("%s: %d %.200s", name, status, text)
		}
	}
	// A client that sends a byte now and then is let go, and its connection too.
	slow := httptest.NewServer(hardened(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
		}
	}), 200*time.Millisecond))
	defer slow.Close()
	c, err := net.Dial("tcp", slow.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond) // a slow sender, not a wait for something
		}
	}()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		t.Error("the slow sender may go on for ever")
	}
	if took := time.Since(began); took > 5*time.Second || !strings.Contains(string(b), " 408 ") {
		t.Errorf("after %v: %.100s", took, b)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bounded{Listener: ln, from: map[netip.Addr]int{}}
	defer b.Close()
	got := make(chan net.Conn, 2*maxConnsAddress)
	go func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			got <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var first net.Conn
	for i := range maxConnsAddress {
		dial()
		if c := <-got; i == 0 {
			first = c
		}
	}
	over := dial()
	_ = over.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := over.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("one more than %d: %v", maxConnsAddress, err)
	}
	_ = first.Close()
	_ = first.Close() // twice counts once
	dial()
	select {
	case <-got:
	case <-time.After(10 * time.Second):
		t.Error("a place that became free is not given")
	}
	if b.all != maxConnsAddress {
		t.Errorf("%d are counted", b.all)
	}
}

// ownFiles writes a certificate of an administrator's own for localhost.
func ownFiles(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	a, err := pki.NewAuthority("", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := tls.X509KeyPair(func() ([]byte, []byte) {
		c, k, err := a.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "key.pem"), k, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cert.pem"), c, 0o600); err != nil {
			t.Fatal(err)
		}
		return c, k
	}())
	if err != nil {
		t.Fatal(err)
	}
	return key.Leaf
}

// The administrator's own files are shown, read anew when they change, and half
// a file does not take the server out.
func TestOwnCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	first := ownFiles(t, dir)
	files := TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	s, err := New(Config{Name: "s1", Store: store.Config{Dir: filepath.Join(dir, "data")}, Listen: "127.0.0.1:0", TLS: files, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = s.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(t.Context()) })
	shown := func() *x509.Certificate {
		c, err := tls.Dial("tcp", s.Address(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0]
	}
	if !shown().Equal(first) || s.Fingerprint() != pki.Fingerprint(first) {
		t.Error("another certificate is shown")
	}
	if err := os.WriteFile(files.Cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !shown().Equal(first) {
		t.Error("half a file took the certificate away")
	}
	second := ownFiles(t, dir)
	if !shown().Equal(second) {
		t.Error("the new files are not shown")
	}
	if err := os.WriteFile(files.Key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad, err := New(Config{Name: "s2", Store: store.Config{Dir: filepath.Join(dir, "data2")}, Listen: "127.0.0.1:0", TLS: files, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Start(t.Context()); err == nil {
		t.Error("started with a key that is none")
		_ = bad.Stop(t.Context())
	}
}

// requests are the request messages of all methods.
func requests() (methods []protoreflect.MethodDescriptor) {
	protoregistry.GlobalFiles.RangeFilesByPackage("hanok.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				methods = append(methods, f.Services().Get(i).Methods().Get(j))
			}
		}
		return true
	})
	return methods
}

// FuzzRequest decodes what a stranger sends for each method, in both codecs.
func FuzzRequest(f *testing.F) {
	all := requests()
	for i := range all {
		f.Add(i, []byte(`{}`))
	}
	for _, s := range []string{"", "null", "[]", `{"cluster":"a","cluster":"b"}`, `{"pageSize":1e99}`, `{"fields":[{}]}`, `{"resource":{"failback":1}}`, "\x0a\x05seoul", "\xff", `{"a":` + strings.Repeat("[", 500)} {
		f.Add(3, []byte(s))
		f.Add(7, []byte(s))
	}
	f.Fuzz(func(t *testing.T, n int, b []byte) {
		m := all[(n%len(all)+len(all))%len(all)]
		kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
		if err != nil {
			t.Fatal(err)
		}
		msg := kind.New().Interface()
		if (strictJSON{}).Unmarshal(b, msg) == nil {
			text, err := (strictJSON{}).Marshal(msg)
			again := kind.New().Interface()
			if err != nil || (strictJSON{}).Unmarshal(text, again) != nil {
				t.Errorf("%s: %s is not read back from %s: %v", m.FullName(), b, text, err)
			}
		}
		_ = proto.Unmarshal(b, kind.New().Interface())
	})
}

// FuzzCall makes whole calls as a viewer, of every method: none may fail inside
// the server, and none may change anything.
func FuzzCall(f *testing.F) {
	s, tokens := withUsers(f)
	token := tokens["viewer"]
	all := requests()
	for i := range all {
		f.Add(i, `{"cluster":"seoul","vm":"x","host":"h","name":"n","id":"i","task":"t","pageToken":"zz","yaml":"a: b"}`)
		f.Add(i, `{}`)
	}
	f.Fuzz(func(t *testing.T, n int, body string) {
		m := all[(n%len(all)+len(all))%len(all)]
		if m.IsStreamingServer() {
			return // they go on
		}
		name := string(m.Parent().Name()) + "/" + string(m.Name())
		if name == "AuthService/Logout" {
			return
		}
		status, text := post(t, s, name, body, "Authorization", "Bearer "+token)
		if status >= 500 {
			t.Errorf("%s with %q: %d %s", name, body, status, text)
		}
	})
}
