package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/hypervisor/domainxml"
	"hanok.dev/hanok/internal/model"
)

// Workers of libvirt's lane: libvirtd has twenty of its own by default.
const (
	hypervisorWorkers = 16
	hypervisorBacklog = 512
)

// Limits of calls, above those of the driver: a start waits for hooks, storage
// and QEMU's monitor, a kill for a process in the kernel.
const (
	callLimit  = 15 * time.Second
	startLimit = 70 * time.Second
	killLimit  = 40 * time.Second
)

var faults = map[hypervisor.Kind]fdm.HypervisorFault{
	hypervisor.KindHook:        fdm.FaultHook,
	hypervisor.KindImageLocked: fdm.FaultImageLocked,
	hypervisor.KindNoDisk:      fdm.FaultMissingDisk,
	hypervisor.KindNoMemory:    fdm.FaultNoMemory,
	hypervisor.KindRunning:     fdm.FaultRunning,
	hypervisor.KindInvalid:     fdm.FaultNoConfig,
	hypervisor.KindUnavailable: fdm.FaultUnavailable,
	hypervisor.KindTimeout:     fdm.FaultTimeout,
}

func (a *Agent) callHypervisor(ctx context.Context, e fdm.Hypervise) fdm.Event {
	limit := callLimit
	switch e.Call {
	case fdm.CallStartPaused:
		limit = startLimit
	case fdm.CallKill:
		limit = killLimit
	}
	err, out := call(ctx, a.hypervise, limit+time.Second, func() error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return a.hypervisorCall(ctx, e)
	})
	done := fdm.HypervisorDone{Op: e.Op}
	var bad *badConfig
	switch {
	case out == late:
		done.Fault, done.Text = fdm.FaultTimeout, fmt.Sprintf("libvirt did not answer within %v", limit)
	case out == full:
		done.Fault, done.Text = fdm.FaultUnavailable, "too many calls wait for libvirt"
	case errors.As(err, &bad):
		done.Fault, done.Text = bad.fault, err.Error()
	case err != nil:
		done.Fault, done.Text = fdm.FaultOther, err.Error()
		if f, ok := faults[hypervisor.KindOf(err)]; ok {
			done.Fault = f
		}
	}
	return done
}

func (a *Agent) hypervisorCall(ctx context.Context, e fdm.Hypervise) error {
	hv := a.cfg.Hypervisor
	switch e.Call {
	case fdm.CallDefine:
		return a.define(ctx, e)
	case fdm.CallStartPaused:
		return hv.StartPaused(ctx, e.VM)
	case fdm.CallResume:
		return hv.Resume(ctx, e.VM)
	case fdm.CallShutdown:
		_, err := hv.Shutdown(ctx, e.VM)
		if hypervisor.KindOf(err) == hypervisor.KindNotRunning {
			return nil
		}
		return err
	case fdm.CallReset:
		return hv.Reset(ctx, e.VM)
	case fdm.CallKill:
		return hv.Kill(ctx, e.VM)
	case fdm.CallList:
		return a.hv.list(ctx)
	case fdm.CallUndefine:
		err := hv.Undefine(ctx, e.VM)
		if hypervisor.KindOf(err) == hypervisor.KindNoDomain {
			return nil
		}
		return err
	case fdm.CallNoAutostart:
		return hv.SetAutostart(ctx, e.VM, false)
	default:
		return fmt.Errorf("unknown call %q", e.Call)
	}
}

// badConfig is a definition on a datastore that cannot be used.
type badConfig struct {
	fault fdm.HypervisorFault
	err   error
}

func (b *badConfig) Error() string { return b.err.Error() }

// define gives libvirt the definition that lies beside the VM's disks. It is
// read by a worker of that datastore.
func (a *Agent) define(ctx context.Context, e fdm.Hypervise) error {
	name := a.datastoreOf(e.Config)
	xml, kind, text := storeCall(ctx, a, name, datastore.LaneLock, a.readLimit(), func(Store) ([]byte, error) { return readBounded(e.Config, domainxml.MaxSize) })
	switch kind {
	case "":
	case KindHung:
		return &badConfig{fdm.FaultTimeout, fmt.Errorf("read %s: %s", e.Config, text)}
	default:
		return &badConfig{fdm.FaultNoConfig, fmt.Errorf("the VM's definition: %s", text)}
	}
	d, err := domainxml.Parse(xml)
	if err == nil && d.VM != e.VM {
		err = fmt.Errorf("it has uuid %s, the protected VM %s", d.VM, e.VM)
	}
	if err != nil {
		return &badConfig{fdm.FaultNoConfig, fmt.Errorf("%s: %w; `hanok vm protect` on a host that has the VM writes it anew", e.Config, err)}
	}
	_, err = a.cfg.Hypervisor.Define(ctx, string(xml))
	return err
}

// datastoreOf is the datastore that a path lies on, "" for none.
func (a *Agent) datastoreOf(path string) model.DatastoreName {
	var best model.DatastoreName
	longest := 0
	for name, st := range a.setup.Load().stores {
		if p := strings.TrimSuffix(st.conf.Path, "/") + "/"; strings.HasPrefix(path, p) && len(p) > longest {
			best, longest = name, len(p)
		}
	}
	return best
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}
