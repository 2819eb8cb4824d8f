package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Bounds of a password, in bytes.
const (
	minPassword = 12
	maxPassword = 256
)

// Cost is what one check of a password costs. The zero value is [DefaultCost].
type Cost struct {
	// Memory in KiB, Passes over it, by one thread.
	Memory, Passes uint32
}

// DefaultCost is above the least that OWASP names for argon2id (19 MiB, two
// passes), and takes about 0.1 s of one core.
var DefaultCost = Cost{Memory: 32 << 10, Passes: 3}

const (
	saltSize = 16
	hashSize = 32
	// maxChecks bounds the passwords that are checked at one moment, and so
	// the memory for it; maxWaiting those that wait for that.
	maxChecks  = 2
	maxWaiting = 32
)

var errBusy = errors.New("too many logins at this moment; try again in a few seconds")

// hasher checks and makes hashes, few at a time.
type hasher struct {
	cost    Cost
	running chan struct{}
	waiting chan struct{}
}

func newHasher(c Cost) *hasher {
	if c == (Cost{}) {
		c = DefaultCost
	}
	return &hasher{cost: c, running: make(chan struct{}, maxChecks), waiting: make(chan struct{}, maxWaiting)}
}

// turn waits for a place and returns what frees it.
func (h *hasher) turn(ctx context.Context) (func(), error) {
	select {
	case h.waiting <- struct{}{}:
	default:
		return nil, errBusy
	}
	defer func() { <-h.waiting }()
	select {
	case h.running <- struct{}{}:
		return func() { <-h.running }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hash makes the text that is kept of a password (the PHC string format).
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	done, err := h.turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // it never fails
	sum := argon2.IDKey([]byte(password), salt, h.cost.Passes, h.cost.Memory, 1, hashSize)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, h.cost.Memory, h.cost.Passes, b64.EncodeToString(salt), b64.EncodeToString(sum)), nil
}

// matches checks a password. An empty hash is that of nobody: the check takes
// as long and fails, so that the time does not tell which users exist.
func (h *hasher) matches(ctx context.Context, hash, password string) (bool, error) {
	cost, salt, sum := h.cost, make([]byte, saltSize), make([]byte, hashSize)
	if hash != "" {
		var err error
		if cost, salt, sum, err = parseHash(hash); err != nil {
			return false, err
		}
	}
	done, err := h.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	got := argon2.IDKey([]byte(password), salt, cost.Passes, cost.Memory, 1, hashSize)
	return subtle.ConstantTimeCompare(got, sum) == 1 && hash != "", nil
}

func parseHash(s string) (c Cost, salt, sum []byte, err error) {
	bad := func(why string) (Cost, []byte, []byte, error) {
		return Cost{}, nil, nil, fmt.Errorf("the stored hash of a password is damaged: %s; set the password anew", why)
	}
	p := strings.Split(s, "$")
	if len(p) != 6 || p[0] != "" || p[1] != "argon2id" || p[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return bad("its form")
	}
	if n, err := fmt.Sscanf(p[3], "m=%d,t=%d,p=1", &c.Memory, &c.Passes); n != 2 || err != nil ||
		c.Memory < 8 || c.Memory > 1<<20 || c.Passes < 1 || c.Passes > 64 {
		return bad("its cost")
	}
	b64 := base64.RawStdEncoding.Strict()
	if salt, err = b64.DecodeString(p[4]); err != nil || len(salt) != saltSize {
		return bad("its salt")
	}
	if sum, err = b64.DecodeString(p[5]); err != nil || len(sum) != hashSize {
		return bad("its value")
	}
	return c, salt, sum, nil
}

// Fault is something wrong with what a person gave.
type Fault struct {
	// Field of the request.
	Field, Text, Remedy string
}

func (f *Fault) Error() string { return f.Field + ": " + f.Text }

// checkPassword refuses passwords that are easily guessed. Length is what
// counts; rules about kinds of characters only make people write them down.
func checkPassword(field, user, password string) error {
	bad := func(text string) error {
		return &Fault{field, text, fmt.Sprintf("take at least %d characters that nobody guesses, such as four random words", minPassword)}
	}
	first, _ := utf8.DecodeRuneInString(password)
	switch {
	case utf8.RuneCountInString(password) < minPassword:
		return bad(fmt.Sprintf("has fewer than %d characters", minPassword))
	case len(password) > maxPassword:
		return bad(fmt.Sprintf("has more than %d bytes", maxPassword))
	case strings.Trim(password, string(first)) == "":
		return bad("is one character repeated")
	case user != "" && strings.Contains(strings.ToLower(password), strings.ToLower(user)) && len(password) < len(user)+minPassword:
		return bad("is little more than the user's name")
	}
	return nil
}
