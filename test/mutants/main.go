// Mutants proves that random disasters find deliberate bugs: it compiles itself
// once for each mutant, with the bug in, and lets that program run seeds until an
// invariant breaks. The code without a bug must pass all the same seeds.
//
//	go run ./test/mutants [-seeds 2000] [NAME…]
//
// A bug is sought among the disasters that its entry of the table names, from seed
// 1 on.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"hanok.dev/hanok/internal/sim/fuzz"
	"hanok.dev/hanok/internal/sim/mutant"
)

// The clusters are those of `hanok sim fuzz --hosts 3 --vms 6 --duration 6m`, with
// `--disasters` of the mutant.
var clusters = fuzz.Config{Hosts: 3, VMs: 6, Duration: 6 * time.Minute}

const (
	foundStatus = 3
	// limit is the longest that the seeds of one program may take: a bug that
	// lets virtual time stand still is not found by an invariant.
	limit = 10 * time.Minute
)

func main() {
	seeds := flag.Uint64("seeds", 2000, "seeds in which each bug must be found")
	child := flag.Bool("child", false, "run the seeds in this program: exit status 3 if an invariant breaks")
	flag.StringVar(&clusters.Theme, "disasters", "", "with -child: the disasters of its seeds")
	flag.Parse()
	if *child {
		os.Exit(hunt(*seeds))
	}
	if err := prove(*seeds, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func hunt(seeds uint64) int {
	debug.SetGCPercent(fuzz.GCPercent)
	sum, err := fuzz.RunMany(context.Background(), 1, seeds, clusters, nil)
	switch {
	case err != nil:
		fmt.Print(err)
		return 1
	case sum.Failed != nil:
		v := sum.Failed.Violation
		fmt.Printf("%d|%s|%s", sum.Failed.Seed, v.Invariant, v.Detail)
		return foundStatus
	}
	return 0
}

// finding is what a program with a bug broke first; seed 0: nothing.
type finding struct {
	seed              uint64
	invariant, detail string
}

func prove(seeds uint64, only []string) error {
	for _, name := range only {
		if !slices.ContainsFunc(mutant.All, func(m mutant.Mutant) bool { return m.Name == name }) {
			return fmt.Errorf("there is no mutant %q", name)
		}
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	var list []mutant.Mutant
	themes := map[string]bool{}
	for _, m := range mutant.All {
		if len(only) == 0 || slices.Contains(only, m.Name) {
			list = append(list, m)
			themes[m.Disasters] = true
		}
	}
	for _, theme := range slices.Sorted(maps.Keys(themes)) {
		began := time.Now()
		clean, err := try(root, &mutant.Mutant{Disasters: theme}, seeds)
		if err != nil {
			return fmt.Errorf("without a bug: %w", err)
		}
		if clean.seed != 0 {
			return fmt.Errorf("the code without a bug breaks %s with seed %d of disasters %q: %s", clean.invariant, clean.seed, nameOf(theme), clean.detail)
		}
		fmt.Printf("no bug, %-8s %d seeds pass in %.0f s\n", nameOf(theme)+":", seeds, time.Since(began).Seconds())
	}
	fmt.Printf("%-24s %-9s %6s  %-9s %5s  %s\n", "mutant", "disasters", "seed", "invariant", "time", "rule")
	survived := 0
	for _, m := range list {
		began := time.Now()
		f, err := try(root, &m, seeds)
		if err != nil { // the rest of the table is worth knowing
			fmt.Printf("%-24s %-9s %6s  %-9s %3.0f s  %v\n", m.Name, nameOf(m.Disasters), "NONE", "FAILED", time.Since(began).Seconds(), err)
			survived++
			continue
		}
		seed := strconv.FormatUint(f.seed, 10)
		if f.seed == 0 {
			seed, f.invariant = "NONE", "SURVIVED"
			survived++
		}
		fmt.Printf("%-24s %-9s %6s  %-9s %3.0f s  %s\n", m.Name, nameOf(m.Disasters), seed, f.invariant, time.Since(began).Seconds(), m.Rule)
	}
	if survived > 0 {
		return fmt.Errorf("%d mutants were not found in %d seeds", survived, seeds)
	}
	return nil
}

func nameOf(theme string) string {
	if theme == "" {
		return "all"
	}
	return theme
}

// try compiles a mutant, or the code as it is if that has no name, and lets it run.
func try(root string, m *mutant.Mutant, seeds uint64) (finding, error) {
	dir, err := os.MkdirTemp("", "hanok-mutant-")
	if err != nil {
		return finding{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin := filepath.Join(dir, "mutant")
	args := []string{"build", "-o", bin}
	if m.Name != "" {
		overlay, err := m.Overlay(root, dir)
		if err != nil {
			return finding{}, err
		}
		args = append(args, "-overlay", overlay)
	}
	if out, err := exec.Command("go", append(args, "./test/mutants")...).CombinedOutput(); err != nil {
		return finding{}, fmt.Errorf("it does not compile: %w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, bin, "-child", "-seeds", strconv.FormatUint(seeds, 10), "-disasters", m.Disasters)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return finding{}, nil
	case ctx.Err() != nil:
		return finding{}, fmt.Errorf("its seeds took longer than %v", limit)
	case !errors.As(err, &exit) || exit.ExitCode() != foundStatus:
		return finding{}, fmt.Errorf("%w: %.2000s", err, out.String())
	}
	parts := strings.SplitN(out.String(), "|", 3)
	seed, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil || len(parts) != 3 {
		return finding{}, fmt.Errorf("not a finding: %s", out.String())
	}
	return finding{seed, parts[1], parts[2]}, nil
}
