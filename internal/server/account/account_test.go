package account

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/store"
)

const (
	viewer   = hanokv1.Role_ROLE_VIEWER
	operator = hanokv1.Role_ROLE_OPERATOR
	admin    = hanokv1.Role_ROLE_ADMINISTRATOR
	good     = "correct horse battery"
)

// clock is a time that the test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func book(t *testing.T) (*Book, *clock) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := &clock{t: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	return New(Config{Store: s, Cost: Cost{Memory: 64, Passes: 1}, Now: c.now}), c
}

func add(t *testing.T, b *Book, name string, r hanokv1.Role, g ...*hanokv1.Grant) {
	t.Helper()
	if _, err := b.Add(t.Context(), name, good, r, g); err != nil {
		t.Fatal(err)
	}
}

func withCookie(method string, c *http.Cookie, csrf string) *http.Request {
	r := httptest.NewRequest(method, "/", nil)
	r.AddCookie(c)
	if csrf != "" {
		r.Header.Set(HeaderCSRF, csrf)
	}
	return r
}

func withToken(text string) *http.Request {
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("Authorization", "Bearer "+text)
	return r
}

func TestPasswords(t *testing.T) {
	h := newHasher(Cost{Memory: 64, Passes: 1})
	hash, err := h.hash(t.Context(), good)
	if err != nil || !strings.HasPrefix(hash, "$argon2id$v=19$m=64,t=1,p=1$") {
		t.Fatal(hash, err)
	}
	again, _ := h.hash(t.Context(), good)
	if again == hash {
		t.Error("no salt")
	}
	for pw, want := range map[string]bool{good: true, good + "x": false, "": false} {
		if ok, err := h.matches(t.Context(), hash, pw); ok != want || err != nil {
			t.Errorf("%q: %v, %v", pw, ok, err)
		}
	}
	if ok, _ := h.matches(t.Context(), "", ""); ok {
		t.Error("nobody's password matches")
	}
	for _, bad := range []string{"x", "$argon2i$v=19$m=64,t=1,p=1$a$b", strings.Replace(hash, "m=64", "m=4194304", 1), hash[:len(hash)-3]} {
		if ok, err := h.matches(t.Context(), bad, good); ok || err == nil {
			t.Errorf("the hash %q is taken", bad)
		}
	}
	for _, bad := range []string{"", "short", strings.Repeat("x", 300), strings.Repeat("a", 20), "alice1234567"} {
		if checkPassword("p", "alice", bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if DefaultCost.Memory < 19<<10 || DefaultCost.Passes < 2 {
		t.Error("the default costs less than OWASP's least")
	}
}

func TestTheSetUpLinkWorksOnce(t *testing.T) {
	b, _ := book(t)
	ctx := t.Context()
	first, err := b.SetUpToken(ctx)
	if err != nil || first == "" {
		t.Fatal(err)
	}
	second, _ := b.SetUpToken(ctx)
	for name, token := range map[string]string{"the one before": first, "none": "", "a guess": strings.Repeat("0", 64)} {
		if err := b.SetUp(ctx, token, "root1", good); !errors.Is(err, ErrSetUp) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.SetUp(ctx, second, "root1", "short"); err == nil || errors.Is(err, ErrSetUp) {
		t.Errorf("a bad password: %v", err) // and the token still works
	}
	errs := make(chan error, 4) // at once: one wins
	for i := range 4 {
		go func() { errs <- b.SetUp(ctx, second, fmt.Sprintf("root%d", i), good) }()
	}
	won := 0
	for range 4 {
		if err := <-errs; err == nil {
			won++
		} else if !errors.Is(err, ErrSetUp) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d administrators were set up", won)
	}
	if token, err := b.SetUpToken(ctx); token != "" || err != nil {
		t.Errorf("a link although there is a user: %v", err)
	}
	b, c := book(t)
	token, _ := b.SetUpToken(ctx)
	c.pass(SetUpLife)
	if err := b.SetUp(ctx, token, "root1", good); !errors.Is(err, ErrSetUp) {
		t.Errorf("after its time: %v", err)
	}
}

func TestUsers(t *testing.T) {
	b, _ := book(t)
	ctx := t.Context()
	add(t, b, "alice", admin)
	add(t, b, "bob", viewer, &hanokv1.Grant{Cluster: "seoul", Role: operator})
	for name, f := range map[string]func() error{
		"twice":       func() error { _, err := b.Add(ctx, "bob", good, viewer, nil); return err },
		"a path":      func() error { _, err := b.Add(ctx, "../x", good, viewer, nil); return err },
		"root's name": func() error { _, err := b.Add(ctx, "root@localhost", good, viewer, nil); return err },
		"no role":     func() error { _, err := b.Add(ctx, "eve", good, 0, nil); return err },
		"anyone":      func() error { _, err := b.Add(ctx, "eve", good, hanokv1.Role_ROLE_ANYONE, nil); return err },
		"a bad grant": func() error {
			_, err := b.Add(ctx, "eve", good, 0, []*hanokv1.Grant{{Cluster: "a/b", Role: viewer}})
			return err
		},
		"unknown":        func() error { return b.Remove(ctx, "eve") },
		"the last admin": func() error { return b.Remove(ctx, "alice") },
		"the last admin's role": func() error {
			_, err := b.SetRoles(ctx, "alice", operator, nil)
			return err
		},
	} {
		if f() == nil {
			t.Errorf("%s: permitted", name)
		}
	}
	// Two administrators who remove each other at once: one stays.
	add(t, b, "carol", admin)
	errs := make(chan error, 2)
	for _, n := range []string{"alice", "carol"} {
		go func() { errs <- b.Remove(ctx, n) }()
	}
	if e1, e2 := <-errs, <-errs; (e1 == nil) == (e2 == nil) {
		t.Errorf("%v, %v", e1, e2)
	}
	list, err := b.List(ctx)
	if err != nil || len(list) != 2 {
		t.Error(list, err)
	}
}

func TestSessions(t *testing.T) {
	b, c := book(t)
	ctx := t.Context()
	add(t, b, "alice", admin)
	s, err := b.Login(ctx, "alice", good)
	if err != nil {
		t.Fatal(err)
	}
	if k := s.Cookie; !k.HttpOnly || !k.Secure || k.SameSite != http.SameSiteStrictMode || k.Path != "/" || k.Domain != "" || !strings.HasPrefix(k.Name, "__Host-") {
		t.Errorf("%v", k)
	}
	who := func(k *http.Cookie, csrf string) (*access.Principal, error) {
		return b.Authenticate(withCookie("POST", k, csrf))
	}
	p, err := who(s.Cookie, s.CSRF)
	if err != nil || p.Name != "alice" || p.Role != admin || p.Renewed != nil {
		t.Fatal(p, err)
	}
	for name, csrf := range map[string]string{"without": "", "a wrong one": strings.Repeat("0", 64)} {
		if _, err := who(s.Cookie, csrf); err == nil {
			t.Errorf("%s CSRF token", name)
		}
	}
	if _, err := b.Authenticate(withCookie("GET", s.Cookie, "")); err != nil {
		t.Errorf("a GET: %v", err)
	}
	// Use after a while changes the secret; the old one counts for calls under way.
	c.pass(sessionTurn)
	p, err = who(s.Cookie, s.CSRF)
	if err != nil || p.Renewed == nil || p.Renewed.Value == s.Cookie.Value {
		t.Fatal(p, err)
	}
	if _, err := who(s.Cookie, s.CSRF); err != nil {
		t.Errorf("the old one at once: %v", err)
	}
	c.pass(sessionOverlap)
	if _, err := who(s.Cookie, s.CSRF); err == nil {
		t.Error("the old one is still taken")
	}
	if _, err := who(p.Renewed, s.CSRF); err != nil {
		t.Errorf("the new one: %v", err)
	}
	for name, harm := range map[string]func(*http.Cookie){
		"another id": func(k *http.Cookie) { k.Value = strings.Repeat("0", 16) + k.Value[16:] },
		"a path":     func(k *http.Cookie) { k.Value = "../../users/x/y.a.b" },
		"cut":        func(k *http.Cookie) { k.Value = k.Value[:40] },
	} {
		k := *p.Renewed
		harm(&k)
		if _, err := who(&k, s.CSRF); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := b.Logout(ctx, p); err != nil {
		t.Fatal(err)
	}
	if _, err := who(p.Renewed, s.CSRF); err == nil {
		t.Error("after logout")
	}
	// Idle, in all, and with the password.
	for name, f := range map[string]func(*Session){
		"idle":         func(*Session) { c.pass(sessionIdle + time.Second) },
		"a new passwd": func(*Session) { b.SetPassword(ctx, "alice", good, "") },
	} {
		s, err := b.Login(ctx, "alice", good)
		if err != nil {
			t.Fatal(err)
		}
		if f(s); err == nil {
			if _, err := who(s.Cookie, s.CSRF); err == nil {
				t.Errorf("%s: the session goes on", name)
			}
		}
	}
	if s, err = b.Login(ctx, "alice", good); err != nil {
		t.Fatal(err)
	}
	k := s.Cookie
	for range 80 {
		if p, err = who(k, s.CSRF); err != nil {
			break
		}
		if p.Renewed != nil {
			k = p.Renewed
		}
		c.pass(sessionTurn)
	}
	if err == nil {
		t.Error("a session in use never ends")
	}
	for range maxSessions + 5 {
		if _, err = b.Login(ctx, "alice", good); err != nil {
			t.Fatal(err)
		}
	}
	if list, _ := b.secrets(ctx, "session/"); len(list) > maxSessions {
		t.Errorf("%d sessions", len(list))
	}
}

func TestTokens(t *testing.T) {
	b, c := book(t)
	ctx := t.Context()
	add(t, b, "alice", admin)
	add(t, b, "bob", operator, &hanokv1.Grant{Cluster: "seoul", Role: admin})
	bob := &access.Principal{Name: "bob", Via: access.ViaSession}
	tok, text, err := b.CreateToken(ctx, bob, "bob", "backup", viewer, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.Authenticate(withToken(text))
	if err != nil || p.Name != "bob" || p.Role != viewer || p.Clusters["seoul"] != viewer {
		t.Fatalf("%+v, %v", p, err)
	}
	// Nothing more, and nothing longer, comes of a limited token.
	more, text2, err := b.CreateToken(ctx, p, "bob", "", admin, c.now().Add(tokenMost))
	if err != nil || more.Limit != viewer || !more.Expires.AsTime().Equal(tok.Expires.AsTime()) {
		t.Errorf("%v, %v", more, err)
	}
	// Who logged in with a password may make one that lasts.
	_, text3, _, err := b.LoginToken(ctx, "bob", good)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = b.Authenticate(withToken(text3)); err != nil || !p.Login {
		t.Fatalf("%+v, %v", p, err)
	}
	if long, _, err := b.CreateToken(ctx, p, "bob", "", viewer, time.Time{}); err != nil || !long.Expires.AsTime().Equal(c.now().Add(tokenLife)) {
		t.Errorf("of a login: %v, %v", long, err)
	}
	it, err := b.store.Get(ctx, "token/"+strings.Split(text, "_")[1]+"/"+tok.Id)
	if err != nil || strings.Contains(string(it.Value), strings.Split(text, "_")[3]) {
		t.Errorf("the secret is stored: %v", err)
	}
	if there, err := b.RevokeToken(ctx, "alice", tok.Id); there || err != nil {
		t.Error("another's token", err)
	}
	if there, err := b.RevokeToken(ctx, "bob", tok.Id); !there || err != nil {
		t.Error(err)
	}
	if _, err := b.Authenticate(withToken(text)); err == nil {
		t.Error("a revoked token")
	}
	// A lesser role counts at once; a user of the same name is another one.
	if _, err := b.SetRoles(ctx, "bob", 0, []*hanokv1.Grant{{Cluster: "seoul", Role: viewer}}); err != nil {
		t.Fatal(err)
	}
	if p, err := b.Authenticate(withToken(text2)); err != nil || p.Role != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := b.Remove(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	add(t, b, "bob", admin)
	if _, err := b.Authenticate(withToken(text2)); err == nil {
		t.Error("the token of a removed user")
	}
	_, text, _ = b.CreateToken(ctx, bob, "bob", "", 0, c.now().Add(time.Hour))
	c.pass(time.Hour)
	if _, err := b.Authenticate(withToken(text)); err == nil {
		t.Error("an expired token")
	}
	if list, err := b.Tokens(ctx, "bob"); len(list) != 0 || err != nil {
		t.Error(list, err)
	}
	for _, at := range []time.Time{c.now(), c.now().Add(tokenMost + time.Hour)} {
		if _, _, err := b.CreateToken(ctx, bob, "bob", "", 0, at); err == nil {
			t.Errorf("a token until %v", at)
		}
	}
	for range maxTokens {
		_, _, err = b.CreateToken(ctx, bob, "bob", "", 0, time.Time{})
		if err != nil {
			break
		}
	}
	if _, _, err = b.CreateToken(ctx, bob, "bob", "", 0, time.Time{}); !errors.Is(err, ErrTooMany) {
		t.Errorf("without a bound: %v", err)
	}
	// Logging in still works: its tokens make room for each other.
	for _, h := range []string{"", "x", "hanok_", "Bearer", "hanok_a_b_c", text + "0", strings.Repeat("x", 9000)} {
		if _, err := b.Authenticate(withToken(h)); err == nil {
			t.Errorf("%.40q is taken", h)
		}
	}
}

// A new password ends every login with the old one, however many there are, and the
// pauses after guesses of it.
func TestANewPasswordEndsWhatRestsOnTheOld(t *testing.T) {
	b, _ := book(t)
	ctx := t.Context()
	add(t, b, "alice", admin)
	var texts []string
	for range maxTokens + 5 {
		_, text, _, err := b.LoginToken(ctx, "alice", good)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
		if _, err := b.Login(ctx, "alice", good); err != nil {
			t.Fatal(err)
		}
	}
	lives := func() (n int) {
		for _, x := range texts {
			if _, err := b.Authenticate(withToken(x)); err == nil {
				n++
			}
		}
		return n
	}
	if n := lives(); n != maxSessions {
		t.Errorf("%d logins at once", n)
	}
	var soon *TooSoon
	for range 50 {
		_, _, _, err := b.LoginToken(ctx, "alice", "wrong wrong wrong")
		if errors.As(err, &soon) {
			break
		}
	}
	if soon == nil {
		t.Fatal("guesses are not slowed down")
	}
	const next = "another horse battery"
	if err := b.SetPassword(ctx, "alice", next, ""); err != nil {
		t.Fatal(err)
	}
	if n := lives(); n != 0 {
		t.Errorf("%d logins outlive the password", n)
	}
	if list, err := b.secrets(ctx, "session/"); len(list) != 0 || err != nil {
		t.Errorf("%d sessions outlive the password, %v", len(list), err)
	}
	if _, _, _, err := b.LoginToken(ctx, "alice", next); err != nil {
		t.Errorf("with the new one: %v", err)
	}
}

func TestThrottle(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")
	var th Throttle
	for i := range perPair.free + 1 {
		if w := th.Begin("alice", here, at); w != 0 {
			t.Fatalf("attempt %d waits %v", i, w)
		}
	}
	if w := th.Begin("alice", here, at); w != time.Second {
		t.Errorf("after %d failures: wait %v", perPair.free+1, w)
	}
	if w := th.Begin("alice", there, at); w != 0 {
		t.Errorf("alice elsewhere waits %v", w)
	}
	if w := th.Begin("bob", here, at); w != 0 {
		t.Errorf("bob beside her waits %v", w)
	}
	// The pauses grow, to a bound; what is long ago is forgotten.
	now, n := at, 0
	for now.Before(at.Add(24 * time.Hour)) {
		w := th.Begin("alice", here, now)
		if w > perPair.most {
			t.Fatalf("waits %v", w)
		}
		if w == 0 {
			n++
			w = time.Millisecond
		}
		now = now.Add(w)
	}
	if n > 130 {
		t.Errorf("%d guesses a day", n)
	}
	if w := th.Begin("alice", here, now.Add(2*time.Hour)); w != 0 {
		t.Errorf("hours later: wait %v", w)
	}
	// Alice's own address is not shut by those who fail in her name elsewhere.
	th = Throttle{}
	th.Begin("alice", here, at)
	th.Succeeded("alice", here, at)
	slowed := false
	for i := range 200 {
		a := netip.AddrFrom4([4]byte{203, 0, byte(i / 100), byte(i)})
		slowed = th.Begin("alice", a, at) > 0 || slowed
	}
	if !slowed {
		t.Error("guesses from many addresses are not slowed down")
	}
	if w := th.Begin("alice", there, at); w > perUser.most {
		t.Errorf("a new address of alice's waits %v", w)
	}
	if w := th.Begin("alice", here, at); w != 0 {
		t.Errorf("alice's own address waits %v", w)
	}
	// Memory is bounded, and an IPv6 network is one.
	for i := range 3 * maxEntries {
		th.Begin(fmt.Sprint("u", i), netip.AddrFrom16([16]byte{1, 2, byte(i), byte(i >> 8), byte(i >> 16)}), at)
	}
	for _, x := range []*table{&th.pairs, &th.addrs, &th.users, &th.known} {
		if len(x.at) > maxEntries || x.order.Len() != len(x.at) {
			t.Errorf("%d entries", len(x.at))
		}
	}
	if network(netip.MustParseAddr("2001:db8::1")) != network(netip.MustParseAddr("2001:db8::ffff:1")) {
		t.Error("addresses of one IPv6 network count apart")
	}
}

func TestLoginsAreSlowedDown(t *testing.T) {
	b, c := book(t)
	add(t, b, "alice", admin)
	var soon *TooSoon
	for i := 0; ; i++ {
		_, err := b.Login(t.Context(), "alice", "wrong wrong wrong")
		if errors.As(err, &soon) {
			break
		}
		if !errors.Is(err, ErrDenied) || i > 10 {
			t.Fatal(i, err)
		}
	}
	if _, err := b.Login(t.Context(), "alice", good); !errors.As(err, &soon) {
		t.Errorf("the right one at once: %v", err)
	}
	c.pass(soon.Wait)
	if _, err := b.Login(t.Context(), "alice", good); err != nil {
		t.Errorf("after the pause: %v", err)
	}
	if _, err := b.Login(t.Context(), "nobody", good); !errors.Is(err, ErrDenied) {
		t.Errorf("an unknown name: %v", err)
	}
}

func FuzzAuthenticate(f *testing.F) {
	for _, s := range []string{"", "Bearer hanok_a_b_c", "Bearer hanok_" + strings.Repeat("0", 16) + "_" + strings.Repeat("/", 16) + "_" + strings.Repeat("0", 64), "Basic eDp5"} {
		f.Add(s, "a.b.c")
	}
	f.Add("", strings.Repeat("0", 16)+"."+strings.Repeat("%", 16)+"."+strings.Repeat("0", 64))
	s, err := store.Open(f.Context(), store.Config{Dir: f.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	b := New(Config{Store: s})
	f.Fuzz(func(t *testing.T, header, cookie string) {
		r := httptest.NewRequest("GET", "/", nil)
		if header != "" {
			r.Header["Authorization"] = []string{header}
		}
		r.Header["Cookie"] = []string{Cookie + "=" + cookie}
		if p, err := b.Authenticate(r); err == nil || p != nil {
			t.Errorf("%q, %q: taken for %v", header, cookie, p)
		}
	})
}

func FuzzParseHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=4294967295,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, s string) {
		if c, salt, sum, err := parseHash(s); err == nil && (c.Memory > 1<<20 || c.Passes > 64 || len(salt) != saltSize || len(sum) != hashSize) {
			t.Errorf("%q gives %v", s, c)
		}
	})
}
