package libvirt

import (
	"context"
	"errors"
	"regexp"
	"strings"

	lv "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

func vmID(u lv.UUID) model.VMID { return model.VMID(uuid.UUID(u).String()) }

func parseUUID(vm model.VMID) (lv.UUID, error) {
	if err := vm.Validate(); err != nil {
		return lv.UUID{}, err
	}
	u, err := uuid.Parse(string(vm))
	return lv.UUID(u), err
}

// failure makes err, of a call of the RPC library, a *hypervisor.Error.
func failure(op string, vm model.VMID, err error) error {
	if err == nil {
		return nil
	}
	e := &hypervisor.Error{Op: op, VM: vm, Err: err, Text: err.Error()}
	var known *hypervisor.Error
	var answer lv.Error
	switch {
	case errors.As(err, &known):
		e.Kind, e.Text = known.Kind, known.Text
	case errors.As(err, &answer):
		e.Kind, e.Text = classify(answer)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e.Kind = hypervisor.KindTimeout
	case errors.Is(err, lv.ErrUnsupported):
		e.Kind = hypervisor.KindOther
	default: // the connection broke
		e.Kind = hypervisor.KindUnavailable
	}
	return e
}

// What libvirt and QEMU write; both run with LC_ALL=C, and their texts have
// no translation of their own below libvirtd's locale.
var (
	hookSaid = regexp.MustCompile(`(?s)unexpected exit status \d+: (.*)$`)
	noFile   = regexp.MustCompile(`(?is)(storage file|backing file|could not open|failed to open|can't open|cannot open|unable to open).*no such file or directory`)
	noMemory = regexp.MustCompile(`(?i)cannot allocate memory|cannot set up guest memory|out of memory|unable to map backing store`)
)

// classify says what an answer of libvirtd means.
func classify(e lv.Error) (hypervisor.Kind, string) {
	text := strings.TrimSpace(e.Message)
	low := strings.ToLower(text)
	switch lv.ErrorNumber(e.Code) {
	case lv.ErrHookScriptFailed:
		if m := hookSaid.FindStringSubmatch(text); m != nil {
			text = strings.TrimSpace(m[1])
		}
		return hypervisor.KindHook, text
	case lv.ErrNoDomain:
		return hypervisor.KindNoDomain, text
	case lv.ErrDomExist:
		return hypervisor.KindExists, text
	case lv.ErrNoMemory:
		return hypervisor.KindNoMemory, text
	case lv.ErrXMLError, lv.ErrXMLDetail, lv.ErrXMLInvalidSchema,
		lv.ErrNoName, lv.ErrNoOs, lv.ErrOsType, lv.ErrNoDevice, lv.ErrConfigUnsupported, lv.ErrCPUIncompatible:
		return hypervisor.KindInvalid, text
	case lv.ErrOperationTimeout, lv.ErrResourceBusy:
		return hypervisor.KindBusy, text
	case lv.ErrAgentUnresponsive, lv.ErrAgentUnsynced:
		return hypervisor.KindNoAgent, text
	}
	switch {
	case strings.Contains(low, "already running"), strings.Contains(low, "already active"):
		return hypervisor.KindRunning, text
	case strings.Contains(low, "domain is not running"):
		return hypervisor.KindNotRunning, text
	case strings.Contains(low, "already exists with uuid"), strings.Contains(low, "already defined with uuid"):
		return hypervisor.KindExists, text
	case strings.Contains(low, "guest agent"), strings.Contains(low, "agent command"):
		return hypervisor.KindNoAgent, text
	case strings.Contains(text, `Failed to get "write" lock`), strings.Contains(text, `Failed to get "consistent read" lock`),
		strings.Contains(text, `Failed to get shared "write" lock`):
		return hypervisor.KindImageLocked, text
	case noFile.MatchString(text):
		return hypervisor.KindNoDisk, text
	case noMemory.MatchString(text):
		return hypervisor.KindNoMemory, text
	}
	return hypervisor.KindOther, text
}
