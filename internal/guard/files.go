package guard

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// maxFile bounds the files that the guard reads.
const maxFile = 16 << 20

// identity is who this host is.
type identity struct {
	host        model.HostID
	boot        model.BootID
	machine     string
	incarnation uint64
}

func readIdentity(opts Options) (identity, error) {
	line := func(what, path string) (string, error) {
		data, err := readFile(path)
		s := strings.TrimSpace(string(data))
		if err == nil && s == "" {
			err = errors.New("the file is empty")
		}
		if err != nil {
			return "", fmt.Errorf("%s %s: %w", what, path, err)
		}
		return s, nil
	}
	host, err := line("name of this host in", opts.HostFile)
	if err != nil {
		return identity{}, err
	}
	boot, err := line("boot id in", opts.BootIDFile)
	if err != nil {
		return identity{}, err
	}
	machine, err := line("machine id in", opts.MachineFile)
	if err != nil {
		return identity{}, err
	}
	id := identity{host: model.HostID(host), boot: model.BootID(boot), machine: machine}
	for _, b := range randomBytes(8) {
		id.incarnation = id.incarnation<<8 | uint64(b)
	}
	id.incarnation >>= 11 // exact in every JSON reader
	return id, id.host.Validate()
}

// randomBytes asks the kernel, which never fails to give so few.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	for got := 0; got < n; {
		k, err := unix.Getrandom(b[got:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic("getrandom: " + err.Error())
		}
		got += max(k, 0)
	}
	return b
}

func newNonce() string { return hex.EncodeToString(randomBytes(16)) }

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return data, err
}

// replaceFile writes a file whole, mode 0600.
func replaceFile(path string, data []byte, durable bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// readState reads what a predecessor left; nil if there was none.
func readState(path string) (*lease.Saved, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s lease.Saved
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &s, nil
}

func writeState(path string, s lease.Saved) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replaceFile(path, data, false)
}

// managedFile is the content of the file of managed VMs.
type managedFile struct {
	VMs []lease.ManagedVM `json:"vms"`
}

// ReadManaged reads the managed VMs, for the guard and for the hook when the
// guard does not answer. The error wraps fs.ErrNotExist if there is no file.
func ReadManaged(path string) ([]lease.ManagedVM, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	var f managedFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f.VMs, nil
}

// saver writes the managed VMs beside the loop: the local disk may hang.
type saver struct {
	path string
	log  *slog.Logger
	next chan []lease.ManagedVM // holds the newest
	done chan struct{}
}

func startSaver(path string, log *slog.Logger) *saver {
	s := &saver{path: path, log: log, next: make(chan []lease.ManagedVM, 1), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *saver) run() {
	defer close(s.done)
	for vms := range s.next {
		data, err := json.Marshal(managedFile{VMs: vms})
		if err == nil {
			err = replaceFile(s.path, data, true)
		}
		if err != nil {
			s.log.Error("managed VMs cannot be saved", "error", err)
		}
	}
}

// save replaces what waits to be written; only the loop calls it.
func (s *saver) save(vms []lease.ManagedVM) {
	select {
	case <-s.next:
	default:
	}
	s.next <- vms
}

func (s *saver) stop() {
	close(s.next)
	<-s.done
}

// lockFile takes an exclusive lock, waiting for at most wait.
func lockFile(ctx context.Context, path string, wait time.Duration) (func(), error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	limit := time.Now().Add(wait)
	for {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if time.Now().After(limit) || ctx.Err() != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("lock %s: another guard runs on this host: %w", path, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// openStore makes or replaces the driver of a datastore. It touches no
// storage.
func (g *Guard) openStore(cluster string, d config.Datastore) error {
	s := g.stores[d.Name]
	if s != nil && s.path == d.Path && s.cluster == cluster && s.uuid == d.UUID {
		return nil
	}
	opts := g.opts.Datastore
	opts.Expect = d.UUID
	driver, err := datastore.Open(d.Path, cluster, opts)
	if err != nil {
		return err
	}
	index := -1
	next := &store{path: d.Path, cluster: cluster, uuid: d.UUID, driver: driver, index: &index}
	if s != nil {
		next.pool = s.pool
	} else {
		next.pool = datastore.NewPool(string(d.Name), datastore.PoolOptions{})
	}
	g.stores[d.Name] = next
	return nil
}

// identify is lease.Config.Identify.
func (g *Guard) identify(ds model.DatastoreName, slot model.Slot) string {
	if s := g.stores[ds]; s != nil {
		return s.driver.SlotIdentityOf(slot).Digest
	}
	return ""
}
