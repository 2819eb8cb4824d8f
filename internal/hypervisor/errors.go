package hypervisor

import (
	"errors"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// Kind classifies a driver's errors for those who decide on them.
type Kind string

// The kinds of errors.
const (
	// KindHook: a hook script refused. Text is what it said.
	KindHook Kind = "refusedByHook"
	// KindImageLocked: another process holds a lock on a disk image. It is
	// transient: locks of a dead host expire on their own or are recovered
	// by the datastore's driver. Not a failed attempt.
	KindImageLocked Kind = "imageLocked"
	// KindNoDisk: a disk or other file of the VM does not exist here.
	KindNoDisk Kind = "diskMissing"
	// KindNoMemory: the host has not enough memory.
	KindNoMemory Kind = "notEnoughMemory"
	// KindRunning: the domain is active already.
	KindRunning Kind = "alreadyRunning"
	// KindNotRunning: the domain is not active.
	KindNotRunning Kind = "notRunning"
	// KindNoDomain: there is no such domain.
	KindNoDomain Kind = "noSuchDomain"
	// KindExists: another domain has this name or UUID.
	KindExists Kind = "alreadyExists"
	// KindInvalid: the definition is not one that this host can run.
	KindInvalid Kind = "invalidDefinition"
	// KindNoAgent: the guest agent is not configured, not connected or does
	// not answer.
	KindNoAgent Kind = "noGuestAgent"
	// KindBusy: another operation holds the domain; try again.
	KindBusy Kind = "busy"
	// KindTimeout: no answer by the deadline. The outcome is not known.
	KindTimeout Kind = "timeout"
	// KindUnavailable: no connection to the daemon. If it was lost during
	// the call the outcome is not known.
	KindUnavailable Kind = "unavailable"
	// KindOther: none of the above; Text has the daemon's message.
	KindOther Kind = "other"
)

// Error is the error of every call of a driver.
type Error struct {
	// Op is what was being done ("start").
	Op string
	// VM is the domain concerned, empty if none.
	VM   model.VMID
	Kind Kind
	// Text is the hypervisor's or hook's own message, for people.
	Text string
	// Err is the cause below, may be nil.
	Err error
}

// Error says operation, domain, kind and cause in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.VM != "" {
		b.WriteString(" " + string(e.VM))
	}
	b.WriteString(": " + kindText[e.Kind])
	if t := strings.Join(strings.Fields(e.Text), " "); t != "" {
		b.WriteString(": " + t)
	}
	return b.String()
}

// Unwrap returns the cause below.
func (e *Error) Unwrap() error { return e.Err }

var kindText = map[Kind]string{
	KindHook:        "refused by a hook",
	KindImageLocked: "a disk image is locked by another process",
	KindNoDisk:      "a disk is missing",
	KindNoMemory:    "not enough memory",
	KindRunning:     "already running",
	KindNotRunning:  "not running",
	KindNoDomain:    "no such domain on this host",
	KindExists:      "name or UUID is taken",
	KindInvalid:     "invalid definition",
	KindNoAgent:     "guest agent does not answer",
	KindBusy:        "domain is busy",
	KindTimeout:     "no answer in time, outcome unknown",
	KindUnavailable: "hypervisor daemon unavailable",
	KindOther:       "failed",
}

// KindOf returns the kind of err: "" for nil, KindOther for an error that is
// not a driver's.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindOther
}
