// Package access decides who may call what: a request is given a [Principal]
// by an [Authenticator], and each method of the API says which role it needs.
//
// An HTTP request passes [Identify], which finds out who makes it; the
// Connect interceptor of [Interceptor] then holds the method's role (option
// hanok.v1.role) against the principal's role on the request's cluster (its
// field `cluster`), or on the whole when it names none. Requests that list over
// all clusters are let in for whoever may view any; handlers leave out what
// [Principal.May] does not allow.
package access
