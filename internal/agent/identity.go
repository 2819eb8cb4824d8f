package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// readHost reads this host's name in the cluster.
func readHost(path string) (model.HostID, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("this host's name: %w", err)
	}
	h := model.HostID(strings.TrimSpace(string(b)))
	if err := h.Validate(); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

func (a *Agent) bootID() model.BootID {
	b, err := os.ReadFile(a.cfg.BootIDFile)
	if err != nil {
		return "" // the guard's status has it
	}
	return model.BootID(strings.TrimSpace(string(b)))
}

// nextLife numbers this life of the agent: above every earlier one, also when
// the wall clock went back meanwhile.
func nextLife(dir string, wall time.Time) (uint64, error) {
	path := filepath.Join(dir, "agent-life")
	n := uint64(max(1, wall.UnixNano()))
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("number of the agent's life: %w", err)
	}
	if last, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && last >= n && last < 1<<63 {
		n = last + 1
	}
	if err := os.WriteFile(path+".new", []byte(strconv.FormatUint(n, 10)+"\n"), 0o600); err != nil {
		return 0, fmt.Errorf("number of the agent's life: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return 0, fmt.Errorf("number of the agent's life: %w", err)
	}
	return n, nil
}

// takeInstance makes sure that one agent runs on this host.
func takeInstance(socket string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	f, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("agent: another agent runs on this host (it holds %s.lock); stop it first", socket)
	}
	return func() { f.Close() }, nil
}
