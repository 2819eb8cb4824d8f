package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/pki"
)

// untilInterrupt returns what read reads from a terminal, or the error of ctx,
// when that ends first. The process then ends soon, and with it the reading.
func untilInterrupt(ctx context.Context, read func() (string, error)) (string, error) {
	type line struct {
		text string
		err  error
	}
	lines := make(chan line, 1)
	go func() {
		text, err := read()
		lines <- line{text, err}
	}()
	select {
	case l := <-lines:
		return l.text, l.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// readHidden reads a line of a terminal without echo. An interrupt ends it and
// gives the terminal its echo back.
func readHidden(ctx context.Context, fd int) (string, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	text, err := untilInterrupt(ctx, func() (string, error) {
		b, err := term.ReadPassword(fd)
		return string(b), err
	})
	if ctx.Err() != nil {
		err = errors.Join(err, term.Restore(fd, before))
	}
	return text, err
}

// secret asks for a password on the terminal, without showing it, or reads one
// line of standard input.
func (a *app) secret(c *cobra.Command, prompt string) (string, error) {
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(c.ErrOrStderr(), tr(prompt)+": ")
		defer fmt.Fprintln(c.ErrOrStderr())
		return readHidden(c.Context(), int(f.Fd()))
	}
	var line []byte
	for one := make([]byte, 1); len(line) < 4096; line = append(line, one[0]) { // no byte of the next line
		if _, err := io.ReadFull(a.in, one); errors.Is(err, io.EOF) || err == nil && one[0] == '\n' {
			break
		} else if err != nil {
			return "", err
		}
	}
	s := strings.TrimSuffix(string(line), "\r")
	if s == "" {
		return "", usage("give it as a line of standard input", "no %s", strings.ToLower(prompt))
	}
	return s, nil
}

// pinned fetches the certificate with a fingerprint from a server, which must
// prove itself by it.
func pinned(ctx context.Context, address, fingerprint string) (string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host, address = address, net.JoinHostPort(address, "443")
	}
	var found *x509.Certificate
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host,
		InsecureSkipVerify: true, // verified below, by the fingerprint
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, cert := range cs.PeerCertificates {
				if pki.Fingerprint(cert) == fingerprint {
					found = cert
				}
			}
			if found == nil {
				return Fail(ExitRefused, "compare with `hanok server fingerprint` on the server; if it differs somebody is in between", "%s shows another certificate than %s", address, fingerprint)
			}
			roots := x509.NewCertPool()
			roots.AddCert(found)
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host})
			return err
		}}
	d := tls.Dialer{Config: conf}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	return string(pki.EncodeCerts(found)), conn.Close()
}

func newLogin(a *app) *cobra.Command {
	var token, cluster, user, ca, fingerprint string
	cmd := &cobra.Command{Use: "login SERVER", Short: "Log in to a server for the next commands: https://HOST:PORT, a set-up link, or the path of its socket", Args: cobra.ExactArgs(1),
		Long: "Log in to a server for the next commands.\n\nThe server's certificate must be of a CA that this machine trusts, or be named:\n--fingerprint with what `hanok server fingerprint` says on the server, or --ca.\nNothing is trusted only because it was seen first. The password is asked for, or\nread from standard input."}
	f := cmd.Flags()
	f.StringVar(&token, "token", "", "an API token instead of a password; - reads it from standard input")
	f.StringVar(&user, "user", "", "who logs in")
	f.StringVar(&ca, "ca", "", "file with the CA certificate of the server")
	f.StringVar(&fingerprint, "fingerprint", "", "sha256:... of the server's certificate or its CA")
	f.StringVar(&cluster, "default-cluster", "", "the cluster that is meant when --cluster is not given")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		server, fragment, _ := strings.Cut(args[0], "#")
		link, err := url.ParseQuery(fragment)
		if err != nil {
			return usage("give the whole link, in quotes", "the link %q", args[0])
		}
		setup := link.Get("setup")
		if setup != "" {
			server = strings.TrimSuffix(server, "/setup")
		}
		if fingerprint == "" {
			fingerprint = link.Get("fingerprint")
		}
		if token == "-" {
			if token, err = a.secret(c, "Token"); err != nil {
				return err
			}
		}
		l := &login{Server: strings.TrimSuffix(server, "/"), Token: token, Cluster: cluster}
		ctx, cancel := context.WithTimeout(c.Context(), 2*time.Minute)
		defer cancel()
		if address, ok := strings.CutPrefix(l.Server, "https://"); ok {
			switch {
			case ca != "":
				b, err := os.ReadFile(ca)
				if err != nil {
					return err
				}
				l.CA = string(b)
			case fingerprint != "":
				if l.CA, err = pinned(ctx, address, fingerprint); err != nil {
					return err
				}
			}
		}
		s, err := dialServer(l)
		if err != nil {
			return err
		}
		if token == "" && !strings.HasPrefix(l.Server, "/") {
			if s, err = a.withPassword(ctx, c, s, l, user, setup); err != nil {
				return unknownCA(err)
			}
		}
		r, err := s.system.GetServer(ctx, &hanokv1.GetServerRequest{})
		if err != nil {
			return unknownCA(err)
		}
		if err := l.save(); err != nil {
			return err
		}
		i18n.Fprintf(c.OutOrStdout(), "commands go to %s (%s, version %s) now; hanok logout ends that\n", l.Server, r.Name, r.Version)
		return nil
	}
	return cmd
}

// unknownCA says what to do about a server that this machine does not trust.
func unknownCA(err error) error {
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return Fail(ExitRefused, "run `hanok server fingerprint` on the server and give what it says as --fingerprint", "the server's certificate is of a CA that this machine does not know")
	}
	return err
}

// withPassword makes the first administrator, with a set-up link, and logs in.
func (a *app) withPassword(ctx context.Context, c *cobra.Command, s *apiClient, l *login, user, setup string) (*apiClient, error) {
	if user == "" {
		return nil, usage("give --user NAME, or --token", "who logs in?")
	}
	password, err := a.secret(c, "Password")
	if err != nil {
		return nil, err
	}
	if setup != "" {
		if _, err := s.auth.SetUp(ctx, &hanokv1.SetUpRequest{Token: setup, User: user, Password: password}); err != nil {
			return nil, err
		}
		i18n.Fprintf(c.OutOrStdout(), "%s is administrator now\n", user)
	}
	r, err := s.auth.Login(ctx, &hanokv1.LoginRequest{User: user, Password: password, WantToken: true})
	if err != nil {
		return nil, err
	}
	l.Token, l.Issued = r.Token, true
	return dialServer(l)
}

func (l *login) save() error {
	path, err := loginFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writeWhole(path, func(w io.Writer) error { return writeJSON(w, l) })
}

func newLogout(a *app) *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "Forget the server, revoke the login's token; commands ask this host again", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var failed error
			if l, err := a.readLogin(); err == nil && l != nil && l.Issued {
				s, err := dialServer(l)
				if err == nil {
					ctx, cancel := context.WithTimeout(c.Context(), askLimit)
					defer cancel()
					_, err = s.auth.Logout(ctx, &hanokv1.LogoutRequest{})
				}
				if err != nil && connect.CodeOf(err) != connect.CodeUnauthenticated {
					failed = fmt.Errorf("the server is forgotten, but the token could not be revoked and lasts until its end: %w", err)
				}
			}
			path, err := loginFile()
			if err == nil {
				if err = os.Remove(path); os.IsNotExist(err) {
					err = nil
				}
			}
			return errors.Join(failed, err)
		}}
}

// roleOf reads a role's name.
func roleOf(s string) (hanokv1.Role, error) {
	switch s {
	case "", "none":
		return hanokv1.Role_ROLE_UNSPECIFIED, nil
	case "viewer":
		return hanokv1.Role_ROLE_VIEWER, nil
	case "operator":
		return hanokv1.Role_ROLE_OPERATOR, nil
	case "administrator":
		return hanokv1.Role_ROLE_ADMINISTRATOR, nil
	}
	return 0, usage("viewer, operator or administrator", "%q is no role", s)
}

func roleName(r hanokv1.Role) string {
	if r == hanokv1.Role_ROLE_UNSPECIFIED {
		return "-"
	}
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

func grantsText(list []*hanokv1.Grant) string {
	var out []string
	for _, g := range list {
		out = append(out, g.Cluster+"="+roleName(g.Role))
	}
	return dash(strings.Join(out, ","))
}

// roleFlags are a user's roles.
type roleFlags struct {
	role string
	on   []string
}

func (f *roleFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.role, "role", "", "role on the whole: viewer, operator or administrator")
	c.Flags().StringSliceVar(&f.on, "on", nil, "role on one cluster, as CLUSTER=ROLE; may be repeated")
}

func (f *roleFlags) roles() (hanokv1.Role, []*hanokv1.Grant, error) {
	role, err := roleOf(f.role)
	if err != nil {
		return 0, nil, err
	}
	var grants []*hanokv1.Grant
	for _, s := range f.on {
		cluster, name, _ := strings.Cut(s, "=")
		r, err := roleOf(name)
		if err != nil {
			return 0, nil, err
		}
		grants = append(grants, &hanokv1.Grant{Cluster: cluster, Role: r})
	}
	return role, grants, nil
}

// asking is a command that asks the server once and prints a sentence.
func asking(a *app, cmd *cobra.Command, ask func(c *cobra.Command, s *apiClient, args []string) (string, error)) *cobra.Command {
	cmd.RunE = func(c *cobra.Command, args []string) error {
		s, err := a.api()
		if err != nil {
			return err
		}
		text, err := ask(c, s, args)
		if err == nil {
			i18n.Fprintln(c.OutOrStdout(), text)
		}
		return err
	}
	return cmd
}

// newUserRemove asks before it removes: tokens do not come back.
func newUserRemove(a *app) *cobra.Command {
	var yes bool
	cmd := asking(a, &cobra.Command{Use: "remove NAME", Short: "Remove a user with their sessions and tokens", Args: cobra.ExactArgs(1)},
		func(c *cobra.Command, s *apiClient, args []string) (string, error) {
			if !yes {
				if err := a.confirm(c, fmt.Sprintf("Remove %s, with all sessions and tokens? [y/N] ", args[0]), "y", "yes"); err != nil {
					return "", err
				}
			}
			_, err := s.user.RemoveUser(c.Context(), &hanokv1.RemoveUserRequest{Name: args[0]})
			return args[0] + " is removed", err
		})
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func newUser(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "user", Short: "Manage who may log in to the server"}
	var give, set roleFlags
	one := cobra.ExactArgs(1)
	add := asking(a, &cobra.Command{Use: "add NAME", Short: "Add a user; the password is asked for, or read from standard input", Args: one}, func(c *cobra.Command, s *apiClient, args []string) (string, error) {
		role, grants, err := give.roles()
		if err != nil {
			return "", err
		}
		password, err := a.secret(c, "Password")
		if err != nil {
			return "", err
		}
		_, err = s.user.AddUser(c.Context(), &hanokv1.AddUserRequest{Name: args[0], Password: password, Role: role, Grants: grants})
		return args[0] + " may log in", err
	})
	give.add(add)
	role := asking(a, &cobra.Command{Use: "role NAME", Short: "Set all roles of a user", Args: one}, func(c *cobra.Command, s *apiClient, args []string) (string, error) {
		role, grants, err := set.roles()
		if err != nil {
			return "", err
		}
		_, err = s.user.SetRoles(c.Context(), &hanokv1.SetRolesRequest{Name: args[0], Role: role, Grants: grants})
		return "the roles of " + args[0] + " are set", err
	})
	set.add(role)
	cmd.AddCommand(add, role,
		listing(a, "list", "List the users", []string{"NAME", "ROLE", "ON CLUSTERS", "CREATED"}, func(ctx context.Context, s *apiClient, _ string) ([]*hanokv1.User, error) {
			return pages(func(token string) ([]*hanokv1.User, string, error) {
				r, err := s.user.ListUsers(ctx, &hanokv1.ListUsersRequest{PageToken: token})
				return r.GetUsers(), r.GetNextPageToken(), err
			})
		}, func(u *hanokv1.User) []string {
			return []string{u.Name, roleName(u.Role), grantsText(u.Grants), when(u.Created)}
		}),
		newUserRemove(a),
		asking(a, &cobra.Command{Use: "password [NAME]", Short: "Set another's password, or change one's own", Args: cobra.MaximumNArgs(1)}, func(c *cobra.Command, s *apiClient, args []string) (string, error) {
			if len(args) == 1 {
				password, err := a.secret(c, "New password")
				if err == nil {
					_, err = s.user.SetPassword(c.Context(), &hanokv1.SetPasswordRequest{Name: args[0], Password: password})
				}
				return "the password of " + args[0] + " is set; their sessions have ended", err
			}
			old, err := a.secret(c, "Old password")
			if err != nil {
				return "", err
			}
			next, err := a.secret(c, "New password")
			if err != nil {
				return "", err
			}
			_, err = s.auth.ChangePassword(c.Context(), &hanokv1.ChangePasswordRequest{OldPassword: old, NewPassword: next})
			return "your password is changed; your other sessions have ended", err
		}))
	return cmd
}

func when(t *timestamppb.Timestamp) string { return t.AsTime().UTC().Format(time.RFC3339) }

func newToken(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make, list and revoke API tokens"}
	var user, note, limit string
	var life time.Duration
	create := asking(a, &cobra.Command{Use: "create", Short: "Make an API token; its secret is shown this once", Args: cobra.NoArgs}, func(c *cobra.Command, s *apiClient, _ []string) (string, error) {
		r, err := roleOf(limit)
		if err != nil {
			return "", err
		}
		t, err := s.auth.CreateToken(c.Context(), &hanokv1.CreateTokenRequest{User: user, Note: note, Limit: r, Expires: timestamppb.New(time.Now().Add(life))})
		if err == nil {
			i18n.Fprintf(c.ErrOrStderr(), "token %s of %s, until %s; it is shown this once:\n", t.Token.Id, t.Token.User, when(t.Token.Expires))
		}
		return t.GetSecret(), err
	})
	create.Flags().StringVar(&user, "user", "", "whose (administrators; default: one's own)")
	create.Flags().StringVar(&note, "note", "", "what it is for")
	create.Flags().StringVar(&limit, "role", "", "the most that it may: viewer, operator or administrator")
	create.Flags().DurationVar(&life, "expires", 90*24*time.Hour, "how long it lasts, at most two years")
	var of string
	var all bool
	list := listing(a, "list", "List API tokens", []string{"ID", "USER", "LIMIT", "EXPIRES", "NOTE"}, func(ctx context.Context, s *apiClient, _ string) ([]*hanokv1.Token, error) {
		return pages(func(token string) ([]*hanokv1.Token, string, error) {
			r, err := s.auth.ListTokens(ctx, &hanokv1.ListTokensRequest{User: of, All: all, PageToken: token})
			return r.GetTokens(), r.GetNextPageToken(), err
		})
	}, func(t *hanokv1.Token) []string {
		return []string{t.Id, t.User, roleName(t.Limit), when(t.Expires), dash(t.Note)}
	})
	list.Flags().StringVar(&of, "user", "", "whose (administrators)")
	list.Flags().BoolVar(&all, "all", false, "everybody's (administrators)")
	cmd.AddCommand(create, list, asking(a, &cobra.Command{Use: "revoke ID", Short: "End a token at once", Args: cobra.ExactArgs(1)}, func(c *cobra.Command, s *apiClient, args []string) (string, error) {
		_, err := s.auth.RevokeToken(c.Context(), &hanokv1.RevokeTokenRequest{Id: args[0]})
		return "the token " + args[0] + " is revoked", err
	}))
	return cmd
}

func newAudit(a *app) *cobra.Command {
	var q hanokv1.ListAuditRequest
	number := int32(50)
	cmd := listing(a, "audit", "Show who changed what, and who was refused (through a server)", []string{"TIME", "WHO", "VIA", "FROM", "METHOD", "CLUSTER", "TARGET", "RESULT", "TEXT"},
		func(ctx context.Context, s *apiClient, _ string) ([]*hanokv1.AuditEntry, error) {
			return newest(number, func(size int32, token string) ([]*hanokv1.AuditEntry, string, error) {
				q.PageSize, q.PageToken = size, token
				r, err := s.audit.ListAudit(ctx, &q)
				return r.GetEntries(), r.GetNextPageToken(), err
			})
		}, func(e *hanokv1.AuditEntry) []string {
			return []string{when(e.Time), dash(e.Principal), e.Via, dash(e.Address), e.Method, dash(e.Cluster), dash(e.Target), e.Result, dash(e.Text)}
		})
	f := cmd.Flags()
	f.StringVar(&q.Principal, "user", "", "only of this user")
	f.StringVar(&q.Method, "method", "", "only of this method, such as OperationService/StartVM")
	f.StringVar(&q.OnCluster, "on", "", "only about this cluster")
	f.BoolVar(&q.Failed, "failed", false, "only what was refused or failed")
	f.Int32VarP(&number, "number", "n", number, "how many of the newest")
	return cmd
}

// beside is the server on this machine, asked through its socket as root.
func (a *app) beside() (*apiClient, error) { return dialServer(&login{Server: a.serverSocket}) }

func newRecoverAdmin(a *app) *cobra.Command {
	return &cobra.Command{Use: "recover-admin NAME", Short: "As root beside the server: make a user administrator with a new password", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.beside()
			if err != nil {
				return err
			}
			password, err := a.secret(c, "New password")
			if err != nil {
				return err
			}
			ctx, admin := c.Context(), hanokv1.Role_ROLE_ADMINISTRATOR
			_, err = s.user.SetPassword(ctx, &hanokv1.SetPasswordRequest{Name: args[0], Password: password})
			switch {
			case connect.CodeOf(err) == connect.CodeNotFound:
				_, err = s.user.AddUser(ctx, &hanokv1.AddUserRequest{Name: args[0], Password: password, Role: admin})
			case err == nil:
				_, err = s.user.SetRoles(ctx, &hanokv1.SetRolesRequest{Name: args[0], Role: admin})
			}
			if err == nil {
				i18n.Fprintf(c.OutOrStdout(), "%s is administrator and has the new password\n", args[0])
			}
			return err
		}}
}

func newFingerprint(a *app) *cobra.Command {
	return &cobra.Command{Use: "fingerprint", Short: "As root beside the server: what hanok login --fingerprint takes", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.beside()
			if err != nil {
				return err
			}
			r, err := s.system.GetServer(c.Context(), &hanokv1.GetServerRequest{})
			if err == nil && r.Fingerprint == "" {
				err = Fail(ExitRefused, "start it with --listen ADDRESS", "the server has no address for users")
			}
			if err == nil {
				fmt.Fprintln(c.OutOrStdout(), r.Fingerprint)
			}
			return err
		}}
}
