package datastorecmd

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
)

// repairFlags are the flags of `datastore repair` beside those of source.
type repairFlags struct {
	rolledBack bool
	plain      bool
	yes        bool
	slots      int
	vms        []string
	forget     string
	settle     time.Duration
}

func newRepair() *cobra.Command {
	var s source
	var f repairFlags
	cmd := &cobra.Command{Use: "repair PATH|NAME", Short: "Repair a deleted, damaged or rolled-back datastore", Args: cobra.ExactArgs(1),
		Long: `Repair a datastore on which no host can work any more, because its directory was
deleted or damaged, or because it went back to an older copy (--rolled-back).

The VMs that depend on it are frozen then. Repair watches long enough to be sure of
that, numbers every lock anew and lets the hosts go on: each takes the locks of the
VMs that it has frozen and continues them. Locks are made for the VMs whose
definitions lie at PATH/*/*.xml and for those given with --vm.

With the wrong file system mounted there is nothing to repair: mount the right one.
With --forget-host it only frees the slot of a host that is gone for good or that was
installed anew.`,
		RunE: func(c *cobra.Command, args []string) error {
			p, err := s.find(args[0])
			if err != nil {
				return err
			}
			if f.forget != "" {
				return forgetHost(c, p, f)
			}
			return repair(c, p, f)
		}}
	s.flags(cmd)
	cmd.Flags().BoolVar(&f.rolledBack, "rolled-back", false, "the datastore went back to an older copy, though it looks healthy")
	cmd.Flags().StringSliceVar(&f.vms, "vm", nil, "UUID of a VM whose lock must exist afterwards; may be repeated")
	cmd.Flags().IntVar(&f.slots, "slots", datastore.DefaultSlots, "number of slots, when the header is gone")
	cmd.Flags().StringVar(&f.forget, "forget-host", "", "free the slot of this host instead")
	cmd.Flags().DurationVar(&f.settle, "settle", datastore.DefaultSettle, "how long to watch that nobody writes; never below the longest lease of the cluster")
	cmd.Flags().BoolVar(&f.plain, "plain-directory", false, "allow a PATH where nothing is mounted")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask for confirmation")
	return cmd
}

func repair(c *cobra.Command, p place, f repairFlags) error {
	locks, err := vmLocks(p.path, f.vms)
	if err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), `about to repair datastore %s of cluster %s
- make sure that this is the right file system: %s
- a host without an armed watchdog that answers to nobody may still run VMs: switch it off first
- locks will be free for %d VMs found at %s/*/*.xml or given with --vm, and for all locks that are there
`, p, p.cluster, p.path, len(locks), p.path)
	if err := confirm(c, f.yes, p.cluster); err != nil {
		return err
	}
	by, boot := hostHere()
	done, err := datastore.Repair(c.Context(), p.path, p.cluster, datastore.RepairOptions{
		ID: p.id, Slots: f.slots, Locks: locks, RolledBack: f.rolledBack, PlainDirectory: f.plain,
		By: by, Boot: boot, Settle: f.settle,
		Progress: func(text string) { i18n.Fprintln(c.OutOrStdout(), text) },
	})
	for _, action := range done.Actions {
		i18n.Fprintln(c.OutOrStdout(), action)
	}
	if err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), "repaired: %s\nnext: `hanok status` shows each host's datastores and VMs as they come back\n", done.Header)
	return nil
}

func forgetHost(c *cobra.Command, p place, f repairFlags) error {
	i18n.Fprintf(c.OutOrStdout(), "about to free the slot of host %s on datastore %s of cluster %s\n", f.forget, p, p.cluster)
	if err := confirm(c, f.yes, f.forget); err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), "watching for %v that it does not write\n", f.settle)
	if err := datastore.ForgetHost(c.Context(), p.path, p.cluster, p.id, model.HostID(f.forget), f.settle); err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), "host %s has no slot any more; it may claim one again\n", f.forget)
	return nil
}

// confirm demands that word is typed.
func confirm(c *cobra.Command, yes bool, word string) error {
	if yes {
		return nil
	}
	i18n.Fprintf(c.OutOrStdout(), "type %s to go on: ", word)
	line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 1024)).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != word {
		return errDeclined
	}
	return nil
}

// hostHere names this host for the records.
func hostHere() (model.HostID, model.BootID) {
	boot, _ := os.ReadFile(paths.BootID)
	for _, read := range []func() (string, error){
		func() (string, error) { b, err := os.ReadFile(paths.HostFile); return string(b), err },
		os.Hostname,
	} {
		name, err := read()
		if host := model.HostID(strings.TrimSpace(name)); err == nil && host.Validate() == nil {
			return host, model.BootID(strings.TrimSpace(string(boot)))
		}
	}
	return "administrator", model.BootID(strings.TrimSpace(string(boot)))
}

// Bounds of the search for definitions of VMs.
const (
	maxDefinitions = 10_000
	maxDefinition  = 1 << 20
)

// vmLocks names the locks of the VMs whose definitions lie on the datastore,
// and of the given ones.
func vmLocks(path string, vms []string) ([]model.LockID, error) {
	var out []model.LockID
	for _, s := range vms {
		vm := model.VMID(strings.ToLower(s))
		if err := vm.Validate(); err != nil {
			return nil, fmt.Errorf("--vm: %w", err)
		}
		out = append(out, model.VMLock(vm))
	}
	files, err := filepath.Glob(filepath.Join(path, "*", "*.xml"))
	if err != nil {
		return nil, err
	}
	if len(files) > maxDefinitions {
		return nil, fmt.Errorf("%s has %d XML files, more than %d: name the VMs with --vm", path, len(files), maxDefinitions)
	}
	for _, file := range files {
		if vm, ok := definedVM(file); ok {
			out = append(out, model.VMLock(vm))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// definedVM reads the UUID of a domain XML; false for anything else.
func definedVM(file string) (model.VMID, bool) {
	f, err := os.Open(file)
	if err != nil {
		return "", false
	}
	defer f.Close()
	var domain struct {
		XMLName xml.Name `xml:"domain"`
		UUID    string   `xml:"uuid"`
	}
	if err := xml.NewDecoder(io.LimitReader(f, maxDefinition)).Decode(&domain); err != nil {
		return "", false
	}
	vm := model.VMID(strings.ToLower(strings.TrimSpace(domain.UUID)))
	return vm, vm.Validate() == nil
}
