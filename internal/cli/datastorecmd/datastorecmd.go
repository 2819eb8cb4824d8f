// Package datastorecmd is the command `hanok datastore`: initialise, show,
// check and repair what Hanok keeps on shared datastores.
package datastorecmd

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
)

// New returns the command.
func New(more ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: "datastore", Short: "Prepare, show, check and repair datastores", Args: cobra.NoArgs,
		Long: "Prepare, show, check and repair what Hanok keeps on shared datastores:\nheartbeats, locks and lists below PATH/.hanok/CLUSTER-ID/.",
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(newInit(), newShow(), newCheck(), newRepair())
	cmd.AddCommand(more...)
	return cmd
}

// source finds datastores by path or, through the cluster file, by name.
type source struct {
	file    string // cluster file
	cluster string // cluster id, overrides the file's
	id      string // expected UUID, overrides the file's
}

// flags adds the flags that say where and whose a datastore is.
func (s *source) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.file, "file", "f", paths.ClusterFile, "cluster file to look names and the cluster's id up in")
	cmd.Flags().StringVar(&s.cluster, "cluster", "", "id of the cluster (default: that of the cluster file)")
	cmd.Flags().StringVar(&s.id, "uuid", "", "UUID that the datastore must have")
}

// place is where one datastore is and what it must be.
type place struct {
	name    model.DatastoreName // "" when given by path
	path    string
	cluster string
	id      model.DatastoreID // "" for any
}

func (p place) String() string {
	if p.name == "" {
		return p.path
	}
	return string(p.name)
}

// find resolves a path or a name.
func (s *source) find(arg string) (place, error) {
	out := place{path: arg, cluster: s.cluster, id: model.DatastoreID(s.id)}
	byPath := strings.ContainsRune(arg, '/')
	if byPath {
		abs, err := filepath.Abs(arg)
		if err != nil {
			return place{}, err
		}
		out.path = abs
		if s.cluster != "" {
			return out, nil
		}
	}
	c, err := config.ReadFile(s.file)
	if err != nil {
		if byPath {
			return place{}, fmt.Errorf("whose datastore is it? give --cluster: %w", err)
		}
		return place{}, fmt.Errorf("datastore %q is not a path (with a slash), and names are looked up in the cluster file: %w", arg, err)
	}
	var names []string
	for _, d := range c.Datastores {
		names = append(names, string(d.Name))
		if (byPath && filepath.Clean(d.Path) == out.path) || (!byPath && string(d.Name) == arg) {
			return s.known(c, d), nil
		}
	}
	if !byPath {
		return place{}, fmt.Errorf("datastore %q: the cluster file has %s", arg, strings.Join(names, ", "))
	}
	out.cluster = c.ID
	return out, nil
}

// known is the place of a datastore of the cluster file.
func (s *source) known(c *config.Cluster, d config.Datastore) place {
	p := place{name: d.Name, path: filepath.Clean(d.Path), cluster: c.ID, id: d.UUID}
	if s.cluster != "" {
		p.cluster = s.cluster
	}
	if s.id != "" {
		p.id = model.DatastoreID(s.id)
	}
	return p
}

// findAll resolves all arguments; all datastores of the cluster file if none.
func (s *source) findAll(args []string) ([]place, error) {
	var out []place
	for _, arg := range args {
		p, err := s.find(arg)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	if len(args) > 0 {
		return out, nil
	}
	c, err := config.ReadFile(s.file)
	if err != nil {
		return nil, fmt.Errorf("without a path or name all datastores of the cluster file are meant: %w", err)
	}
	for _, d := range c.Datastores {
		out = append(out, s.known(c, d))
	}
	return out, nil
}

func (p place) inspect() (datastore.Report, error) {
	// Looking is allowed where locking is not; the report says so.
	d, err := datastore.Open(p.path, p.cluster, datastore.Options{Expect: p.id})
	if err != nil {
		return datastore.Report{}, err
	}
	return d.Inspect(), nil
}

func newInit() *cobra.Command {
	var s source
	var slots int
	var plain bool
	cmd := &cobra.Command{Use: "init PATH|NAME", Short: "Prepare a datastore for a cluster, once", Args: cobra.ExactArgs(1),
		Long: "Prepare the datastore mounted at PATH, or called NAME in the cluster file, once\nand from any one host. Nothing else ever makes this directory: where it is missing, VMs are frozen rather\nthan started twice.",
		RunE: func(c *cobra.Command, args []string) error {
			p, err := s.find(args[0])
			if err != nil {
				return err
			}
			h, err := datastore.Initialise(p.path, p.cluster, datastore.InitOptions{ID: p.id, Slots: slots, MountPointOnly: !plain})
			if datastore.KindOf(err) == datastore.KindNotMounted {
				return fmt.Errorf("%w; for a directory that is no mount point, on one machine only, add --plain-directory", err)
			}
			if err != nil {
				return err
			}
			if err := p.createListLock(h.ID); err != nil {
				return fmt.Errorf("%w; `hanok datastore repair` makes it", err)
			}
			i18n.Fprintf(c.OutOrStdout(), "prepared %s: %s\nnext: put `uuid: %s` to the datastore in the cluster file, so that no other one is taken for it\n", p, h, h.ID)
			return nil
		}}
	s.flags(cmd)
	cmd.Flags().IntVar(&slots, "slots", datastore.DefaultSlots, fmt.Sprintf("how many hosts can ever use it, up to %d", datastore.MaxSlots))
	cmd.Flags().BoolVar(&plain, "plain-directory", false, "allow a PATH where nothing is mounted")
	return cmd
}

// createListLock makes the lock of the protected list: a primary that does not
// find it takes the datastore for damaged, and never makes it.
func (p place) createListLock(id model.DatastoreID) error {
	d, err := datastore.Open(p.path, p.cluster, datastore.Options{Expect: id, AllowBuffered: true})
	if err != nil {
		return err
	}
	owner, boot := hostHere()
	return d.CreateLock(model.ListLock, model.LockRecord{Owner: owner, Boot: boot, Nonce: rand.Text()})
}

func newShow() *cobra.Command {
	var s source
	var output string
	cmd := &cobra.Command{Use: "show PATH|NAME", Short: "Show what is on a datastore", Args: cobra.ExactArgs(1),
		Long: "Show what is on a datastore: its identity, the hosts' heartbeat slots, who holds\nwhich lock, the protected list. Nothing is changed.",
		RunE: func(c *cobra.Command, args []string) error {
			p, err := s.find(args[0])
			if err != nil {
				return err
			}
			report, err := p.inspect()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return printJSON(c.OutOrStdout(), report)
			case "":
				return printReport(c.OutOrStdout(), report)
			default:
				return fmt.Errorf("-o %q: only json is known", output)
			}
		}}
	s.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	return cmd
}

func newCheck() *cobra.Command {
	var s source
	var output string
	cmd := &cobra.Command{Use: "check [PATH|NAME]...", Short: "Check datastores for damage; fails when there is any",
		Long: "Check datastores for damage, those of the cluster file when none is named. Nothing\nis changed. A datastore that was rolled back looks healthy by itself: what tells is\nthe hosts' own memory (`hanok status`).",
		RunE: func(c *cobra.Command, args []string) error {
			places, err := s.findAll(args)
			if err != nil {
				return err
			}
			var reports []datastore.Report
			bad := 0
			for _, p := range places {
				report, err := p.inspect()
				if err != nil {
					return err
				}
				reports = append(reports, report)
				if len(report.Faults) > 0 {
					bad++
				}
			}
			switch output {
			case "json":
				err = printJSON(c.OutOrStdout(), reports)
			case "":
				for i, p := range places {
					printFaults(c.OutOrStdout(), p.String(), reports[i])
				}
			default:
				return fmt.Errorf("-o %q: only json is known", output)
			}
			if err == nil && bad > 0 {
				err = fmt.Errorf("%d of %d datastores have faults", bad, len(places))
			}
			return err
		}}
	s.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// errDeclined is the answer to a confirmation that was not typed.
var errDeclined = errors.New("not confirmed, nothing was changed")
