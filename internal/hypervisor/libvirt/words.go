package libvirt

import (
	"fmt"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
)

// libvirt's numbers in words; the numbers are the index (libvirt-domain.h).
var (
	runningReasons = []string{"unknown", "booted", "migrated", "restored", "fromSnapshot", "unpaused",
		"migrationCanceled", "saveCanceled", "wakeup", "crashed", "postcopy", "postcopyFailed"}
	pausedReasons = []string{"unknown", "user", "migration", "save", "dump", "ioError", "watchdog",
		"fromSnapshot", "shuttingDown", "snapshot", "crashed", "startingUp", "postcopy", "postcopyFailed"}
	shutoffReasons = []string{"unknown", "shutdown", "destroyed", "crashed", "migrated", "saved",
		"failed", "fromSnapshot", "daemon"}
	crashedReasons  = []string{"unknown", "panicked"}
	ioActions       = []string{"nothing done", "paused", "reported to the guest"}
	watchdogActions = []string{"none", "pause", "reset", "poweroff", "shutdown", "debug", "injectNMI"}
)

var lifecycleKinds = map[lv.DomainEventType]hypervisor.EventKind{
	lv.DomainEventDefined:     hypervisor.EventDefined,
	lv.DomainEventUndefined:   hypervisor.EventUndefined,
	lv.DomainEventStarted:     hypervisor.EventStarted,
	lv.DomainEventSuspended:   hypervisor.EventSuspended,
	lv.DomainEventPmsuspended: hypervisor.EventSuspended,
	lv.DomainEventResumed:     hypervisor.EventResumed,
	lv.DomainEventShutdown:    hypervisor.EventShuttingDown,
	lv.DomainEventStopped:     hypervisor.EventStopped,
	lv.DomainEventCrashed:     hypervisor.EventPanicked,
}

var lifecycleDetails = map[hypervisor.EventKind][]string{
	hypervisor.EventDefined:   {"added", "updated", "renamed", "fromSnapshot"},
	hypervisor.EventUndefined: {"removed", "renamed"},
	hypervisor.EventStarted:   {"booted", "migrated", "restored", "fromSnapshot", "wakeup"},
	hypervisor.EventSuspended: {"paused", "migrated", "ioError", "watchdog", "restored", "fromSnapshot",
		"apiError", "postcopy", "postcopyFailed"},
	hypervisor.EventResumed:      {"unpaused", "migrated", "fromSnapshot", "postcopy"},
	hypervisor.EventStopped:      {"shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "fromSnapshot"},
	hypervisor.EventShuttingDown: {"finished", "guest", "signal"},
	hypervisor.EventPanicked:     {"panicked", "crashloaded"},
}

func word(words []string, n int32) string {
	if n >= 0 && int(n) < len(words) {
		return words[n]
	}
	return fmt.Sprintf("code %d", n)
}

// stopCauseOfEvent says why a domain stopped, by its event. "Failed" is what
// libvirt says when the monitor of a running QEMU breaks off: its process
// died. The state's reason is then "crashed".
func stopCauseOfEvent(detail lv.DomainEventStoppedDetailType) hypervisor.StopCause {
	switch detail {
	case lv.DomainEventStoppedShutdown:
		return hypervisor.StopGuestShutdown
	case lv.DomainEventStoppedDestroyed:
		return hypervisor.StopDestroyed
	case lv.DomainEventStoppedCrashed, lv.DomainEventStoppedFailed:
		return hypervisor.StopCrashed
	case lv.DomainEventStoppedMigrated:
		return hypervisor.StopMigrated
	case lv.DomainEventStoppedSaved:
		return hypervisor.StopSaved
	case lv.DomainEventStoppedFromSnapshot:
		return hypervisor.StopSnapshot
	}
	return hypervisor.StopUnknown
}

// stopCauseOfState says why a domain is off, by its state's reason.
func stopCauseOfState(reason lv.DomainShutoffReason) hypervisor.StopCause {
	switch reason {
	case lv.DomainShutoffShutdown:
		return hypervisor.StopGuestShutdown
	case lv.DomainShutoffDestroyed:
		return hypervisor.StopDestroyed
	case lv.DomainShutoffCrashed:
		return hypervisor.StopCrashed
	case lv.DomainShutoffMigrated:
		return hypervisor.StopMigrated
	case lv.DomainShutoffSaved:
		return hypervisor.StopSaved
	case lv.DomainShutoffFailed:
		return hypervisor.StopFailed
	case lv.DomainShutoffFromSnapshot:
		return hypervisor.StopSnapshot
	case lv.DomainShutoffDaemon:
		return hypervisor.StopDaemonLost
	}
	return hypervisor.StopUnknown
}

// stateOf translates a domain's state and its reason.
func stateOf(state, reason int32) (hypervisor.State, string, hypervisor.StopCause) {
	switch lv.DomainState(state) {
	case lv.DomainRunning, lv.DomainBlocked:
		return hypervisor.StateRunning, word(runningReasons, reason), hypervisor.StopNone
	case lv.DomainPaused:
		return hypervisor.StatePaused, word(pausedReasons, reason), hypervisor.StopNone
	case lv.DomainShutdown:
		return hypervisor.StateShuttingDown, "", hypervisor.StopNone
	case lv.DomainShutoff:
		return hypervisor.StateShutOff, word(shutoffReasons, reason), stopCauseOfState(lv.DomainShutoffReason(reason))
	case lv.DomainCrashed:
		return hypervisor.StateCrashed, word(crashedReasons, reason), hypervisor.StopCrashed
	case lv.DomainPmsuspended:
		return hypervisor.StateSuspended, "", hypervisor.StopNone
	}
	return hypervisor.StateUnknown, "", hypervisor.StopNone
}
