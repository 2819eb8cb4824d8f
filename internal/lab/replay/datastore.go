package replay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"hanok.dev/hanok/internal/scenario"
)

// repairSettle is how long a repair watches that nobody writes; more than the
// lease of the profile fast.
const repairSettle = "6s"

// datastore acts on a datastore from behind, where no host's path is involved.
func (r *run) datastore(ctx context.Context, d scenario.Datastore) error {
	name := string(d.Datastore)
	directory := filepath.Join(r.client.Layout().Backing(name), ".hanok")
	kept := filepath.Join(r.client.Layout().DataDir(), name+"-kept")
	switch d.Op {
	case scenario.DatastoreSnapshot:
		r.undo = append(r.undo, func() error { return os.RemoveAll(kept) })
		if err := os.RemoveAll(kept); err != nil {
			return err
		}
		return copyTree(ctx, directory, kept)
	case scenario.DatastoreRollback:
		fresh, gone := directory+"-old", kept+"-gone"
		if err := copyTree(ctx, kept, fresh); err != nil {
			return err
		}
		if err := os.Rename(directory, gone); err != nil {
			return err
		}
		if err := os.Rename(fresh, directory); err != nil {
			return err
		}
		return os.RemoveAll(gone)
	case scenario.DatastoreDelete:
		aside := kept + "-aside"
		if err := os.Rename(directory, aside); err != nil {
			return err
		}
		r.undo = append(r.undo, func() error {
			if _, err := os.Stat(directory); err == nil {
				return os.RemoveAll(aside) // it was repaired
			}
			return os.Rename(aside, directory)
		})
		return nil
	}
	args := []string{"hanok", "datastore", "repair", name, "--yes", "--settle", repairSettle}
	if _, err := os.Stat(directory); err == nil {
		args = append(args, "--rolled-back")
	}
	r.later.Go(func() {
		if err := r.anywhere(ctx, nil, args...); err != nil && ctx.Err() == nil {
			r.say("repair %s: %v", name, err)
		}
	})
	return nil
}

func copyTree(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// disk takes a VM's data disk away, on the datastore itself, or puts it back.
func (r *run) disk(vm string, away bool) error {
	path := filepath.Join(r.client.Layout().Backing(string(r.cluster.VMByName(vm).Datastore)), vm, "disk0.raw")
	hidden := path + ".hidden"
	if !away {
		return os.Rename(hidden, path)
	}
	r.undo = append(r.undo, func() error {
		if _, err := os.Stat(hidden); err != nil {
			return nil
		}
		return os.Rename(hidden, path)
	})
	return os.Rename(path, hidden)
}
