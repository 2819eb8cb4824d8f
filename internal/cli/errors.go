package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lab/replay"
	"hanok.dev/hanok/internal/paths"
)

// Exit codes (docs/cli.md).
const (
	ExitOK          = 0
	ExitFailed      = 1 // the command failed
	ExitUsage       = 2 // wrong arguments or flags
	ExitUnreachable = 3 // no agent, guard or libvirt answers here, or no server
	ExitRefused     = 4 // refused, with the reason
	ExitTimeout     = 5 // not in time; it may still happen
	ExitNotFound    = 6 // no such VM, host or failover
)

// Error is an error with what to do about it and the exit code.
type Error struct {
	Err    error
	Remedy string
	Code   int
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Fail makes an Error.
func Fail(code int, remedy, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Remedy: remedy, Code: code}
}

// usage makes an Error of wrong arguments.
func usage(remedy, format string, args ...any) error { return Fail(ExitUsage, remedy, format, args...) }

// explain finds remedy and code for errors that do not carry them.
func explain(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Err: err, Remedy: e.Remedy, Code: e.Code}
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return &Error{Err: err, Code: coded.ExitCode()}
	}
	var refused *local.RequestError
	var answer *connect.Error
	switch {
	case errors.Is(err, replay.ErrLacks):
		return &Error{Err: err, Remedy: "hanok sim run", Code: ExitRefused}
	case errors.As(err, &answer):
		return explainAPI(answer)
	case errors.As(err, &refused):
		code := ExitRefused
		if refused.Status == 504 {
			code = ExitTimeout
		}
		return &Error{Err: errors.New(refused.Failure.Error), Remedy: refused.Remedy, Code: code}
	case errors.Is(err, local.ErrUnreachable):
		return &Error{Err: err, Remedy: "start it: systemctl restart hanok-agent (its log: journalctl -u hanok-agent, or " + paths.LogDir + ")", Code: ExitUnreachable}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Err: err, Code: ExitTimeout}
	}
	return &Error{Err: err, Code: ExitFailed}
}

// report writes an error for people.
func report(w io.Writer, err error) int {
	e := explain(err)
	fmt.Fprintf(w, "hanok: %s\n", tr(strings.TrimRight(e.Err.Error(), "\n")))
	if e.Remedy != "" {
		i18n.Fprintf(w, "  what to do: %s\n", e.Remedy)
	}
	return e.Code
}
