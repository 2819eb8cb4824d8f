package wire

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// counter indexes a counter of the node.
type counter int

// The counters. Names are part of the status output.
const (
	datagramsSent counter = iota
	datagramsReceived
	datagramSendErrors
	refusedShort
	refusedFormat
	refusedUnknownKey
	refusedReplay
	refusedForged
	messagesSent
	messagesReceived
	messagesDropped
	messagesStale
	handshakesDone
	handshakeBusy
	handshakeTimeouts
	handshakeErrors
	refusedNoCertificate
	refusedForeignCA
	refusedExpired
	refusedNotYetValid
	refusedUsage
	refusedNoIdentity
	refusedWrongCluster
	refusedWrongHost
	refusedNotMember
	refusedProtocol
	refusedVersion
	framesTooLarge
	framesBad
	framesUnknown
	dialErrors
	connectionsSilent
	queuesFull
	numCounters
)

var counterNames = [numCounters]string{
	"datagramsSent", "datagramsReceived", "datagramSendErrors",
	"refusedShort", "refusedFormat", "refusedUnknownKey", "refusedReplay", "refusedForged",
	"messagesSent", "messagesReceived", "messagesDropped", "messagesStale",
	"handshakesDone", "handshakeBusy", "handshakeTimeouts", "handshakeErrors",
	"refusedNoCertificate", "refusedForeignCA", "refusedExpired", "refusedNotYetValid", "refusedUsage",
	"refusedNoIdentity", "refusedWrongCluster", "refusedWrongHost", "refusedNotMember", "refusedProtocol", "refusedVersion",
	"framesTooLarge", "framesBad", "framesUnknown", "dialErrors", "connectionsSilent", "queuesFull",
}

type stats [numCounters]atomic.Uint64

func (s *stats) add(c counter) { s[c].Add(1) }

func (s *stats) snapshot() map[string]uint64 {
	out := make(map[string]uint64, numCounters)
	for i := range s {
		out[counterNames[i]] = s[i].Load()
	}
	return out
}

// refusalLog writes refusals to the log without letting strangers fill it.
type refusalLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last [numCounters]time.Time
}

const refusalLogEvery = 10 * time.Second

func (r *refusalLog) note(c counter, from string, err error) {
	if r.log == nil {
		return
	}
	now := time.Now()
	r.mu.Lock()
	quiet := now.Sub(r.last[c]) < refusalLogEvery && !r.last[c].IsZero()
	if !quiet {
		r.last[c] = now
	}
	r.mu.Unlock()
	if !quiet {
		r.log.LogAttrs(context.Background(), slog.LevelWarn, "connection refused",
			slog.String("kind", counterNames[c]), slog.String("from", from), slog.String("cause", err.Error()))
	}
}
