package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"hanok.dev/hanok/internal/lab"
)

// benchLab is the lab of the benchmarks.
const benchLab = "bench"

// Say prints a line of progress.
func Say(line string) { fmt.Fprintln(os.Stderr, line) }

// Bench runs the body of a benchmark in a lab of its own and returns the exit
// status for main. The lab runs bin/hanok of the working directory; it is made
// from cluster, or is three hosts with six VMs if that is empty, and has
// settled when do is called. An interrupt ends do and takes the lab down.
func Bench(name string, cluster []byte, do func(context.Context, Drill) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, cluster, do); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		return 1
	}
	return 0
}

func bench(ctx context.Context, cluster []byte, do func(context.Context, Drill) error) (err error) {
	binary, err := filepath.Abs("bin/hanok")
	if err != nil {
		return err
	}
	if err := lab.Down(ctx, benchLab, nil); err != nil { // of a run that was killed
		return err
	}
	client, err := lab.Up(ctx, lab.Options{Name: benchLab, Binary: binary, Cluster: cluster, Progress: Say})
	if client == nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Down(context.WithoutCancel(ctx), benchLab, Say)) }()
	if err != nil {
		return err
	}
	d := Drill{Client: client}
	if err := d.Settle(ctx, 3*time.Minute); err != nil {
		return err
	}
	return do(ctx, d)
}
