// Mutants proves that random disasters find deliberate bugs: it compiles itself with
// all of them in, and lets that program run seeds with one of them on until an
// invariant breaks. With none on it must pass the same seeds.
//
//	go run ./test/mutants [-seeds 2000] [-search] [-disasters KIND] [NAME…]
//
// A bug is sought among the disasters that its entry of the table names: first with
// the seed that the entry says it was found with, and if that finds nothing, or with
// -search, from seed 1 on.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
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

const (
	foundStatus = 3
	// limit is the longest that the seeds of one program may take: a bug that
	// lets virtual time stand still is not found by an invariant.
	limit = 20 * time.Minute
)

func main() {
	var o options
	flag.Uint64Var(&o.seeds, "seeds", mutant.Seeds, "seeds, from 1 on, in which each bug must be found")
	flag.Uint64Var(&o.clean, "clean", 100, "seeds of each kind of disasters that the code without a bug must pass, besides those of the table")
	flag.BoolVar(&o.search, "search", false, "search from seed 1 on, whatever the table says")
	flag.StringVar(&o.disasters, "disasters", "", "search among these disasters instead of the table's; all: all kinds")
	child := flag.Bool("child", false, "run seeds in this program: exit status 3 if an invariant breaks")
	start := flag.Uint64("start", 1, "with -child: the first seed")
	flag.Parse()
	if *child {
		os.Exit(hunt(*start, o.seeds, o.disasters))
	}
	if err := o.prove(".", flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func hunt(start, seeds uint64, disasters string) int {
	debug.SetGCPercent(fuzz.GCPercent)
	clusters := mutant.Clusters
	clusters.Theme = disasters
	sum, err := fuzz.RunMany(context.Background(), start, seeds, clusters, nil)
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

type options struct {
	seeds, clean uint64
	search       bool
	disasters    string
}

func (o *options) prove(root string, only []string) error {
	for _, name := range only {
		if !slices.ContainsFunc(mutant.All, func(m mutant.Mutant) bool { return m.Name == name }) {
			return fmt.Errorf("there is no mutant %q", name)
		}
	}
	var list []mutant.Mutant
	for _, m := range mutant.All {
		switch {
		case len(only) > 0 && !slices.Contains(only, m.Name) || len(only) == 0 && m.Covered != "":
			continue
		case o.disasters == "all":
			m.Disasters, m.Seed = "", 0
		case o.disasters != "":
			m.Disasters, m.Seed = o.disasters, 0
		}
		list = append(list, m)
	}
	dir, err := os.MkdirTemp("", "hanok-mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	began := time.Now()
	p, err := compile(root, dir)
	if err != nil {
		return err
	}
	fmt.Printf("%d mutants compiled in %.0f s\n", len(mutant.All), time.Since(began).Seconds())
	if o.clean > 0 {
		if err := o.proveClean(p, list); err != nil {
			return err
		}
	}
	fmt.Printf("%-24s %-9s %6s  %-9s %5s  %s\n", "mutant", "disasters", "seed", "invariant", "time", "rule")
	survived := 0
	for _, m := range list {
		began := time.Now()
		f, err := o.find(p, &m)
		seed, what := strconv.FormatUint(f.seed, 10), m.Rule
		switch {
		case err != nil: // the rest of the table is worth knowing
			seed, f.invariant, what = "NONE", "FAILED", err.Error()
			survived++
		case f.seed == 0:
			seed, f.invariant = "NONE", "SURVIVED"
			survived++
		}
		fmt.Printf("%-24s %-9s %6s  %-9s %3.0f s  %s\n", m.Name, nameOf(m.Disasters), seed, f.invariant, time.Since(began).Seconds(), what)
	}
	if survived > 0 {
		return fmt.Errorf("%d of %d mutants were not found in %d seeds", survived, len(list), o.seeds)
	}
	fmt.Printf("%d mutants, all found\n", len(list))
	return nil
}

// proveClean lets the code without a bug run the seeds that the bugs were found
// with, and the first ones of each kind of disasters.
func (o *options) proveClean(p program, list []mutant.Mutant) error {
	began, done, passed := time.Now(), map[string]bool{}, uint64(0)
	pass := func(disasters string, start, seeds uint64) error {
		f, err := p.run("", disasters, start, seeds)
		switch {
		case err != nil:
			return fmt.Errorf("without a bug: %w", err)
		case f.seed != 0:
			return fmt.Errorf("the code without a bug breaks %s with seed %d of disasters %q: %s", f.invariant, f.seed, nameOf(disasters), f.detail)
		}
		passed += seeds
		return nil
	}
	for _, m := range list {
		if m.Seed > o.clean {
			if err := pass(m.Disasters, m.Seed, 1); err != nil {
				return err
			}
		}
		if done[m.Disasters] {
			continue
		}
		done[m.Disasters] = true
		if err := pass(m.Disasters, 1, o.clean); err != nil {
			return err
		}
	}
	fmt.Printf("no bug: %d seeds of %d kinds of disasters pass in %.0f s\n", passed, len(done), time.Since(began).Seconds())
	return nil
}

// find lets a mutant run: where it was found before, then from seed 1 on.
func (o *options) find(p program, m *mutant.Mutant) (finding, error) {
	if m.Seed > 0 && m.Seed <= o.seeds && !o.search {
		if f, err := p.run(m.Name, m.Disasters, m.Seed, 1); err != nil || f.seed != 0 {
			return f, err
		}
	}
	return p.run(m.Name, m.Disasters, 1, o.seeds)
}

func nameOf(theme string) string {
	if theme == "" {
		return "all"
	}
	return theme
}

// program is this program, compiled with the bugs.
type program struct{ bin string }

// compile makes the program with all mutants in dir. root is the repository's.
func compile(root, dir string) (program, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return program{}, err
	}
	overlay, err := mutant.Overlay(root, dir, mutant.All)
	if err != nil {
		return program{}, err
	}
	p := program{filepath.Join(dir, "mutants")}
	cmd := exec.Command("go", "build", "-o", p.bin, "-overlay", overlay, "./test/mutants")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return program{}, fmt.Errorf("it does not compile: %w: %s", err, out)
	}
	return p, nil
}

// run lets the program run seeds with a mutant on, until an invariant breaks.
func (p program) run(name, disasters string, start, seeds uint64) (finding, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, p.bin, "-child", "-start", strconv.FormatUint(start, 10), "-seeds", strconv.FormatUint(seeds, 10), "-disasters", disasters)
	cmd.Env = append(os.Environ(), mutant.Env+"="+name)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
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
