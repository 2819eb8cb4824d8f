package datastore

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind classifies an Error for callers; its text appears in status output.
type Kind string

// The kinds of errors.
const (
	// KindNotMounted: the path is missing or nothing is mounted there.
	KindNotMounted Kind = "not-mounted"
	// KindNotInitialised: mounted, but without this cluster's directory.
	KindNotInitialised Kind = "not-initialised"
	// KindMissing: the slot, lock, list or note does not exist: unknown, never
	// free.
	KindMissing Kind = "missing"
	// KindForeign: it belongs to another datastore, cluster, host or lock.
	KindForeign Kind = "foreign"
	// KindFuture: written in a newer format than this program knows.
	KindFuture Kind = "future"
	// KindCorrupt: its checksum or content is wrong.
	KindCorrupt Kind = "corrupt"
	// KindTorn: only part of it reached the storage.
	KindTorn Kind = "torn"
	// KindShort: the file is shorter than it must be.
	KindShort Kind = "short"
	// KindChanged: it is not what was last seen or written here; the datastore
	// was rolled back, replaced or cloned.
	KindChanged Kind = "changed"
	// KindFull: no space, inode, quota or free slot is left.
	KindFull Kind = "full"
	// KindReadOnly: the file system refuses writes.
	KindReadOnly Kind = "read-only"
	// KindLost: the device or server is gone (EIO, ENXIO, ENODEV, ESTALE,
	// EREMOTEIO, ESHUTDOWN, ENOTCONN); permanent device loss.
	KindLost Kind = "lost"
	// KindUnreachable: the path to it gave up and may come back (ETIMEDOUT,
	// ENOLINK, EHOSTDOWN, EHOSTUNREACH, ENETUNREACH, ECONNABORTED, ECONNRESET);
	// all paths down.
	KindUnreachable Kind = "unreachable"
	// KindPermission: wrong owner or mode, or access denied.
	KindPermission Kind = "permission"
	// KindConflict: another installation uses this host's name.
	KindConflict Kind = "conflict"
	// KindExists: the record, or the whole directory, exists already.
	KindExists Kind = "exists"
	// KindBusy: too many operations are outstanding; nothing was done.
	KindBusy Kind = "busy"
	// KindUnsupported: the file system or its mount options cannot carry locks.
	KindUnsupported Kind = "unsupported"
	// KindInvalid: the caller's values cannot be written; nothing was done.
	KindInvalid Kind = "invalid"
	// KindOther: anything else.
	KindOther Kind = "other"
)

// Error is what every method of this package fails with.
type Error struct {
	// Op is what was attempted, Object what it was done to.
	Op     string
	Object string
	Kind   Kind
	// Cause says what was found, for people; Err is the underlying error if
	// there is one.
	Cause string
	Err   error
	// Remedy says what to do about it; may be empty.
	Remedy string
}

// Error is one line: operation, object, kind and cause, remedy.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s", e.Op, e.Object, e.Kind)
	if e.Cause != "" {
		b.WriteString(": " + e.Cause)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of err: "" for nil, KindOther for an error that does
// not come from this package.
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

// fault is a finding before it is known for which operation it matters.
type fault struct {
	kind   Kind
	cause  string
	remedy string
	err    error
}

func (f *fault) Error() string {
	return (&Error{Op: "datastore", Kind: f.kind, Cause: f.cause, Err: f.err}).Error()
}

func (f *fault) Unwrap() error { return f.err }

func faultf(kind Kind, format string, args ...any) *fault {
	return &fault{kind: kind, cause: fmt.Sprintf(format, args...)}
}

func (f *fault) advise(remedy string) *fault {
	f.remedy = remedy
	return f
}

// sysFault classifies an error of a system call.
func sysFault(what string, err error) *fault {
	f := &fault{kind: kindOf(err), cause: what, err: err}
	switch f.kind {
	case KindLost, KindUnreachable:
		f.remedy = "check the storage path and its mount"
	case KindFull:
		f.remedy = "free space or inodes on the datastore"
	case KindReadOnly:
		f.remedy = "mount it read-write (a file system goes read-only after errors: check it first)"
	case KindPermission:
		f.remedy = "the directory must belong to root and be writable by it (no root squashing on NFS)"
	}
	return f
}

// kindOf classifies what a step returned: a fault or the error of a system
// call; KindOther for nil.
func kindOf(err error) Kind {
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return KindOther
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return KindFull
	case unix.EROFS:
		return KindReadOnly
	case unix.EIO, unix.ENXIO, unix.ENODEV, unix.ESTALE, unix.EREMOTEIO, unix.ESHUTDOWN, unix.ENOTCONN:
		return KindLost
	case unix.ETIMEDOUT, unix.ENOLINK, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETUNREACH,
		unix.ECONNABORTED, unix.ECONNRESET, unix.ECONNREFUSED:
		return KindUnreachable
	case unix.EACCES, unix.EPERM:
		return KindPermission
	case unix.EEXIST:
		return KindExists
	case unix.ENOENT:
		return KindMissing
	case unix.ELOOP, unix.ENOTDIR, unix.EISDIR:
		return KindCorrupt // something else was put in its place
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return KindUnsupported
	default:
		return KindOther
	}
}

// wrap turns whatever a step returned into an *Error of one operation.
func wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var f *fault
	if errors.As(err, &f) {
		return &Error{Op: op, Object: object, Kind: f.kind, Cause: f.cause, Err: f.err, Remedy: f.remedy}
	}
	f = sysFault("", err)
	return &Error{Op: op, Object: object, Kind: f.kind, Err: err, Remedy: f.remedy}
}
