package account

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// user is what is kept of a user.
type user struct {
	// ID tells a user from a later one of the same name.
	ID              string                  `json:"id"`
	Name            string                  `json:"name"`
	Hash            string                  `json:"hash"`
	Role            hanokv1.Role            `json:"role,omitempty"`
	Clusters        map[string]hanokv1.Role `json:"clusters,omitempty"`
	Created         time.Time               `json:"created"`
	PasswordChanged time.Time               `json:"passwordChanged"`

	modified int64
}

func (u *user) public() *hanokv1.User {
	return &hanokv1.User{Name: u.Name, Role: u.Role, Grants: Grants(u.Clusters), Created: timestamppb.New(u.Created), PasswordChanged: timestamppb.New(u.PasswordChanged)}
}

// secret is what is kept of a token or a session: both end, and are proven by a
// secret whose digest is here.
type secret struct {
	ID      string    `json:"id"`
	UserID  string    `json:"userId"`
	User    string    `json:"user"`
	Digest  string    `json:"digest"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`

	// Of a token. Login: it was made by logging in, and ends with the password.
	Note  string       `json:"note,omitempty"`
	Limit hanokv1.Role `json:"limit,omitempty"`
	Login bool         `json:"login,omitempty"`

	// Of a session: the digest before the last rotation counts until OldUntil.
	Old      string    `json:"old,omitempty"`
	OldUntil time.Time `json:"oldUntil,omitzero"`
	Rotated  time.Time `json:"rotated,omitzero"`
	CSRF     string    `json:"csrf,omitempty"`

	modified int64
}

func (s *secret) public() *hanokv1.Token {
	return &hanokv1.Token{Id: s.ID, User: s.User, Note: s.Note, Limit: s.Limit, Created: timestamppb.New(s.Created), Expires: timestamppb.New(s.Expires)}
}

// Ended reports whether a stored session or token is over at now; a damaged one
// is.
func Ended(value []byte, now time.Time) bool {
	var s secret
	return json.Unmarshal(value, &s) != nil || s.over(now)
}

// over reports whether it does not count any more.
func (s *secret) over(now time.Time) bool {
	return !now.Before(s.Expires) || !s.Rotated.IsZero() && now.Sub(s.Rotated) > sessionIdle
}

// oneTime is a secret that works once and belongs to nobody yet.
type oneTime struct {
	Digest  string    `json:"digest"`
	Expires time.Time `json:"expires"`
}

func decode[T any](it store.Item) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(it.Value, v); err != nil {
		return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", it.Key, err)
	}
	return v, nil
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a record that cannot be written: %v", err)) // plain fields only
	}
	return b
}

// random is n random bytes as text.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}

// digest is what is kept of a random secret.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// Grants and Clusters translate roles on clusters.
func Grants(m map[string]hanokv1.Role) []*hanokv1.Grant {
	var out []*hanokv1.Grant
	for _, name := range sorted(m) {
		out = append(out, &hanokv1.Grant{Cluster: name, Role: m[name]})
	}
	return out
}

// maxGrants bounds the clusters that a user has a role on.
const maxGrants = 200

func clustersOf(list []*hanokv1.Grant) (map[string]hanokv1.Role, error) {
	if len(list) > maxGrants {
		return nil, &Fault{"grants", fmt.Sprintf("has %d clusters; at most %d", len(list), maxGrants), "give a role on the whole"}
	}
	out := map[string]hanokv1.Role{}
	for i, g := range list {
		field := fmt.Sprintf("grants[%d]", i)
		if err := model.ValidateName(g.Cluster); err != nil {
			return nil, &Fault{field + ".cluster", err.Error(), ""}
		}
		if err := checkRole(field+".role", g.Role, false); err != nil {
			return nil, err
		}
		if _, twice := out[g.Cluster]; twice {
			return nil, &Fault{field + ".cluster", fmt.Sprintf("%q is there twice", g.Cluster), ""}
		}
		out[g.Cluster] = g.Role
	}
	return out, nil
}

func checkRole(field string, r hanokv1.Role, mayBeNone bool) error {
	if r == hanokv1.Role_ROLE_VIEWER || r == hanokv1.Role_ROLE_OPERATOR || r == hanokv1.Role_ROLE_ADMINISTRATOR || mayBeNone && r == hanokv1.Role_ROLE_UNSPECIFIED {
		return nil
	}
	return &Fault{field, fmt.Sprintf("%v is no role of a user", r), "viewer, operator or administrator"}
}

// keys
func (s *secret) tokenKey() string   { return state.TokenKey(s.UserID, s.ID) }
func (s *secret) sessionKey() string { return state.SessionKey(s.UserID, s.ID) }
