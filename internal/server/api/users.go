package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/account"
)

// accountError turns an error of package account into one of the API.
func accountError(err error) error {
	var f *account.Fault
	var soon *account.TooSoon
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return invalid(f.Field, f.Remedy, "%s", f.Text)
	case errors.As(err, &soon):
		return fail(connect.CodeResourceExhausted, "try again then; an administrator who sets a new password ends the pause: hanok user password NAME", "%w", err)
	case errors.Is(err, account.ErrDenied):
		return fail(connect.CodeUnauthenticated, "try again; if it is forgotten an administrator sets another: hanok user password NAME, or as root on the server: hanok server recover-admin NAME", "%w", err)
	case errors.Is(err, account.ErrSetUp):
		return fail(connect.CodePermissionDenied, "on the server, as root: hanok server recover-admin NAME", "%w", err)
	case errors.Is(err, account.ErrNoUser):
		return fail(connect.CodeNotFound, "hanok user list shows all", "%w", err)
	case errors.Is(err, account.ErrUserIs):
		return fail(connect.CodeAlreadyExists, "hanok user role changes what they may", "%w", err)
	case errors.Is(err, account.ErrLastAdmin):
		return fail(connect.CodeFailedPrecondition, "make somebody else administrator first", "%w", err)
	case errors.Is(err, account.ErrTooMany):
		return fail(connect.CodeResourceExhausted, "remove what is not needed any more", "%w", err)
	}
	return unavailable(err)
}

// Auth is AuthService.
type Auth struct{ Book *account.Book }

// setCookie adds a cookie to the answer of ctx.
func setCookie(ctx context.Context, c *http.Cookie) {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		info.ResponseHeader().Set("Set-Cookie", c.String())
	}
}

// SetUp implements the service.
func (a Auth) SetUp(ctx context.Context, r *hanokv1.SetUpRequest) (*hanokv1.SetUpResponse, error) {
	err := a.Book.SetUp(ctx, r.Token, r.User, r.Password)
	var f *account.Fault
	if errors.As(err, &f) && f.Field == "name" {
		f.Field = "user"
	}
	return &hanokv1.SetUpResponse{}, accountError(err)
}

// Login implements the service.
func (a Auth) Login(ctx context.Context, r *hanokv1.LoginRequest) (*hanokv1.LoginResponse, error) {
	if r.WantToken {
		u, token, expires, err := a.Book.LoginToken(ctx, r.User, r.Password)
		if err != nil {
			return nil, accountError(err)
		}
		return &hanokv1.LoginResponse{User: u, Token: token, Expires: timestamppb.New(expires)}, nil
	}
	s, err := a.Book.Login(ctx, r.User, r.Password)
	if err != nil {
		return nil, accountError(err)
	}
	setCookie(ctx, s.Cookie)
	return &hanokv1.LoginResponse{User: s.User, Expires: timestamppb.New(s.Expires), Csrf: s.CSRF}, nil
}

// Logout implements the service.
func (a Auth) Logout(ctx context.Context, _ *hanokv1.LogoutRequest) (*hanokv1.LogoutResponse, error) {
	if err := a.Book.Logout(ctx, access.From(ctx)); err != nil {
		return nil, unavailable(err)
	}
	setCookie(ctx, account.NoCookie())
	return &hanokv1.LogoutResponse{}, nil
}

// WhoAmI implements the service.
func (a Auth) WhoAmI(ctx context.Context, _ *hanokv1.WhoAmIRequest) (*hanokv1.WhoAmIResponse, error) {
	out := &hanokv1.WhoAmIResponse{}
	p := access.From(ctx)
	if p == nil {
		empty, err := a.Book.Empty(ctx)
		if err != nil {
			return nil, unavailable(err)
		}
		out.SetUpNeeded = empty
		return out, nil
	}
	out.Name, out.Role, out.Via, out.Csrf, out.Grants = p.Name, p.Role, p.Via, p.CSRF, account.Grants(p.Clusters)
	return out, nil
}

// ChangePassword implements the service.
func (a Auth) ChangePassword(ctx context.Context, r *hanokv1.ChangePasswordRequest) (*hanokv1.ChangePasswordResponse, error) {
	p := access.From(ctx)
	if p.Via == access.ViaSocket {
		return nil, fail(connect.CodeFailedPrecondition, "hanok user password NAME sets that of a user", "root has no password here")
	}
	return &hanokv1.ChangePasswordResponse{}, accountError(a.Book.ChangePassword(ctx, p, r.OldPassword, r.NewPassword))
}

// whose is the user that a request about tokens means; others' are for
// administrators of the whole.
func whose(ctx context.Context, user string) (string, error) {
	p := access.From(ctx)
	switch {
	case p.Via == access.ViaSocket && user == "":
		return "", invalid("user", "give a user's name", "root has no tokens")
	case user == "" || user == p.Name:
		return p.Name, nil
	case !p.May(hanokv1.Role_ROLE_ADMINISTRATOR, ""):
		return "", fail(connect.CodePermissionDenied, "", "%s may not see or make tokens of others", p.Name)
	}
	return user, nil
}

// CreateToken implements the service.
func (a Auth) CreateToken(ctx context.Context, r *hanokv1.CreateTokenRequest) (*hanokv1.CreateTokenResponse, error) {
	user, err := whose(ctx, r.User)
	if err != nil {
		return nil, err
	}
	var expires time.Time
	if r.Expires != nil {
		if err := r.Expires.CheckValid(); err != nil {
			return nil, invalid("expires", "", "%v", err)
		}
		expires = r.Expires.AsTime()
	}
	t, text, err := a.Book.CreateToken(ctx, access.From(ctx), user, r.Note, r.Limit, expires)
	if err != nil {
		return nil, accountError(err)
	}
	return &hanokv1.CreateTokenResponse{Token: t, Secret: text}, nil
}

// ListTokens implements the service.
func (a Auth) ListTokens(ctx context.Context, r *hanokv1.ListTokensRequest) (*hanokv1.ListTokensResponse, error) {
	pg, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	user := ""
	if !r.All || !access.From(ctx).May(hanokv1.Role_ROLE_ADMINISTRATOR, "") {
		if user, err = whose(ctx, r.User); err != nil {
			return nil, err
		}
	}
	list, err := a.Book.Tokens(ctx, user)
	if err != nil {
		return nil, accountError(err)
	}
	slices.SortFunc(list, func(x, y *hanokv1.Token) int { return strings.Compare(x.Id, y.Id) })
	out := &hanokv1.ListTokensResponse{}
	out.Tokens, out.NextPageToken = cut(pg, list, (*hanokv1.Token).GetId)
	return out, nil
}

// RevokeToken implements the service.
func (a Auth) RevokeToken(ctx context.Context, r *hanokv1.RevokeTokenRequest) (*hanokv1.RevokeTokenResponse, error) {
	p, user := access.From(ctx), ""
	if !p.May(hanokv1.Role_ROLE_ADMINISTRATOR, "") {
		user = p.Name
	}
	there, err := a.Book.RevokeToken(ctx, user, r.Id)
	if err == nil && !there {
		return nil, fail(connect.CodeNotFound, "hanok token list shows all", "no token %q", r.Id)
	}
	return &hanokv1.RevokeTokenResponse{}, accountError(err)
}

// Users is UserService.
type Users struct{ Book *account.Book }

// AddUser implements the service.
func (a Users) AddUser(ctx context.Context, r *hanokv1.AddUserRequest) (*hanokv1.AddUserResponse, error) {
	u, err := a.Book.Add(ctx, r.Name, r.Password, r.Role, r.Grants)
	return &hanokv1.AddUserResponse{User: u}, accountError(err)
}

// ListUsers implements the service.
func (a Users) ListUsers(ctx context.Context, r *hanokv1.ListUsersRequest) (*hanokv1.ListUsersResponse, error) {
	pg, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	list, err := a.Book.List(ctx)
	if err != nil {
		return nil, accountError(err)
	}
	out := &hanokv1.ListUsersResponse{}
	out.Users, out.NextPageToken = cut(pg, list, (*hanokv1.User).GetName)
	return out, nil
}

// RemoveUser implements the service.
func (a Users) RemoveUser(ctx context.Context, r *hanokv1.RemoveUserRequest) (*hanokv1.RemoveUserResponse, error) {
	return &hanokv1.RemoveUserResponse{}, accountError(a.Book.Remove(ctx, r.Name))
}

// SetPassword implements the service.
func (a Users) SetPassword(ctx context.Context, r *hanokv1.SetPasswordRequest) (*hanokv1.SetPasswordResponse, error) {
	return &hanokv1.SetPasswordResponse{}, accountError(a.Book.SetPassword(ctx, r.Name, r.Password, ""))
}

// SetRoles implements the service.
func (a Users) SetRoles(ctx context.Context, r *hanokv1.SetRolesRequest) (*hanokv1.SetRolesResponse, error) {
	u, err := a.Book.SetRoles(ctx, r.Name, r.Role, r.Grants)
	return &hanokv1.SetRolesResponse{User: u}, accountError(err)
}
