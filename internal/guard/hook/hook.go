package hook

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hanok.dev/hanok/internal/guard"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// libvirt waits for the hook while it holds the domain; 3 s is the promise.
const (
	askLimit      = 2700 * time.Millisecond
	tellLimit     = time.Second
	fallbackLimit = 200 * time.Millisecond
	maxXML        = 4 << 20
	maxDisks      = 1024
)

// Options are where the hook finds the guard and what it left.
type Options struct {
	Socket      string
	ManagedFile string
	// Daemon is the process id of the libvirt daemon that runs the hook.
	Daemon int
}

// Run answers one call of the hook: args are libvirt's (domain, operation,
// sub-operation, extra), in has the domain's XML. A refusal's sentence goes to
// out, where libvirt takes it from. It returns the exit status.
func Run(args []string, in io.Reader, out io.Writer, opts Options) int {
	if len(args) < 2 {
		fmt.Fprintln(out, "hanok: the hook is called by libvirt as: hook DOMAIN OPERATION SUB-OPERATION EXTRA")
		return 1
	}
	r := lease.HookRequest{Name: args[0], Operation: args[1], Daemon: opts.Daemon}
	if len(args) > 2 {
		r.SubOperation = args[2]
	}
	if !lease.FailsClosed(r.Operation) {
		if r.Operation == "stopped" || r.Operation == "release" {
			tell(r, in, opts)
		}
		return 0
	}
	if sentence := decide(r, in, opts); sentence != "" {
		fmt.Fprintln(out, sentence)
		return 1
	}
	return 0
}

// tell lets the guard know; nothing depends on it.
func tell(r lease.HookRequest, in io.Reader, opts Options) {
	if parse(in, &r) != nil {
		return
	}
	_, _ = ask(r, opts, tellLimit)
}

// decide returns why the operation is refused, or "".
func decide(r lease.HookRequest, in io.Reader, opts Options) string {
	err := parse(in, &r)
	if strings.HasPrefix(r.Name, lease.CanaryPrefix) {
		_, _ = ask(r, opts, askLimit) // the guard notes it; the refusal is certain
		return "hanok: " + r.Name + " is refused, as it must be: libvirt asks the hook"
	}
	if err != nil {
		return fmt.Sprintf("hanok: the definition of %s cannot be read, so it is not known whether it is protected: %v", r.Name, err)
	}
	reply, err := ask(r, opts, askLimit)
	switch {
	case err != nil:
		return withoutGuard(r, opts, fmt.Sprintf("the guard does not answer (%v)", err))
	case reply.Code == lease.CodeUnknownVM:
		return withoutGuard(r, opts, reply.Text)
	case reply.Code == lease.CodeOK:
		return ""
	case reply.Text != "":
		return reply.Text
	default:
		return fmt.Sprintf("hanok: %s is refused: %s", r.Name, reply.Code)
	}
}

func ask(r lease.HookRequest, opts Options, limit time.Duration) (lease.Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := ipc.Dial(ctx, opts.Socket)
	if err != nil {
		return lease.Reply{}, err
	}
	defer c.Close()
	return c.Call(ctx, lease.Request{Hook: &r})
}

// withoutGuard decides when the guard does not answer: what is known to be
// managed, or may be, is refused.
func withoutGuard(r lease.HookRequest, opts Options, cause string) string {
	const remedy = "start hanok-guard and hanok agent on this host"
	why := make(chan string, 1) // the goroutine may be lost to a hung disk
	go func() { why <- managedBy(r, opts.ManagedFile) }()
	select {
	case w := <-why:
		if w == "" {
			return ""
		}
		return fmt.Sprintf("hanok: %s, and %s; %s", w, cause, remedy)
	case <-time.After(fallbackLimit):
		return fmt.Sprintf("hanok: it is not known whether %s is protected: %s, and its disks do not answer; %s", r.Name, cause, remedy)
	}
}

// managedBy says why a domain counts as managed, or "".
func managedBy(r lease.HookRequest, file string) string {
	vms, err := guard.ReadManaged(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("the list of protected VMs cannot be read (%v)", err)
	}
	for i := range vms {
		v := &vms[i]
		if v.ID == r.VM {
			return fmt.Sprintf("%s is protected", r.Name)
		}
		for _, d := range v.Disks {
			for _, mine := range r.Disks {
				if d == mine {
					return fmt.Sprintf("disk %s belongs to the protected VM %s", d, v.Name)
				}
			}
		}
	}
	for _, d := range r.Disks {
		for dir := filepath.Dir(d); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if _, err := os.Lstat(filepath.Join(dir, ".hanok")); err == nil {
				return fmt.Sprintf("disk %s is on a datastore of Hanok", d)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Sprintf("disk %s cannot be looked at (%v)", d, err)
			}
		}
	}
	return ""
}

// domain is the part of libvirt's XML that matters here.
type domain struct {
	UUID  string `xml:"uuid"`
	Name  string `xml:"name"`
	Disks []struct {
		Source struct {
			File string `xml:"file,attr"`
			Dev  string `xml:"dev,attr"`
		} `xml:"source"`
	} `xml:"devices>disk"`
}

// parse reads the domain's XML into r.
func parse(in io.Reader, r *lease.HookRequest) error {
	limited := &io.LimitedReader{R: in, N: maxXML}
	var d domain
	if err := xml.NewDecoder(limited).Decode(&d); err != nil {
		return err
	}
	id := model.VMID(strings.ToLower(strings.TrimSpace(d.UUID)))
	if err := id.Validate(); err != nil {
		return err
	}
	if len(d.Disks) > maxDisks {
		return fmt.Errorf("%d disks are more than %d", len(d.Disks), maxDisks)
	}
	r.VM = id
	for _, disk := range d.Disks {
		for _, p := range []string{disk.Source.File, disk.Source.Dev} {
			if p != "" {
				r.Disks = append(r.Disks, filepath.Clean(p))
			}
		}
	}
	return nil
}
