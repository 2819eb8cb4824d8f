package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab"
)

// DemoOptions say what Demo does.
type DemoOptions struct {
	// Lab is the lab's name, Binary the hanok binary that its hosts run; empty
	// means the defaults of package lab.
	Lab, Binary string
	// Keep leaves the lab up.
	Keep bool
	// Out is where the demo tells its story.
	Out io.Writer
}

// Limits of the demo's steps, generous for a busy machine.
const (
	demoSettle   = 2 * time.Minute
	demoFailover = time.Minute
)

// Demo runs the main job before a person's eyes: a lab of three hosts and six
// VMs, and a server beside them, loses a secondary and then its primary, and
// brings their VMs back. It fails if a VM does not come back, runs twice, or has
// a damaged disk, and if the server does not say what the hosts say. It ends with
// the commands to look around.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	s := story{out: o.Out, began: time.Now()}
	s.chapter("Three hosts, two datastores, six virtual machines")
	client, err := lab.Up(ctx, lab.Options{Name: o.Lab, Binary: o.Binary, Progress: s.line})
	if client == nil {
		return err
	}
	defer func() {
		if !o.Keep {
			s.chapter("Tidying up")
			err = errors.Join(err, lab.Down(context.WithoutCancel(ctx), client.Layout().Name(), s.line))
		}
		if err == nil {
			s.lookAround(client, o)
		}
	}()
	if err != nil {
		return err
	}
	d := Drill{Client: client}
	if err := s.settle(ctx, d); err != nil {
		return err
	}
	if err := s.show(ctx, d); err != nil {
		return err
	}
	if err := s.server(ctx, d); err != nil {
		return err
	}
	secondary, err := d.BusiestSecondary(ctx)
	if err != nil {
		return err
	}
	s.chapter(fmt.Sprintf("%s, a secondary, loses power", secondary))
	if err := s.lose(ctx, d, secondary); err != nil {
		return err
	}
	s.say("%s gets its power back", secondary)
	if err := d.PowerOn(ctx, secondary, false); err != nil {
		return err
	}
	if err := s.settle(ctx, d); err != nil {
		return err
	}
	primary, err := d.Primary(ctx)
	if err != nil {
		return err
	}
	s.chapter(fmt.Sprintf("%s, the primary, loses power", primary))
	if err := s.lose(ctx, d, primary); err != nil {
		return err
	}
	s.chapter("What the cluster says, and what is true")
	if err := s.show(ctx, d); err != nil {
		return err
	}
	if err := s.compare(ctx, d); err != nil {
		return err
	}
	return s.verdict(ctx, d)
}

// server starts a server and has it take the cluster over as it is.
func (s *story) server(ctx context.Context, d Drill) error {
	s.say("a server joins, on a machine of its own; failover does not need it")
	if err := d.StartServer(ctx); err != nil {
		return err
	}
	on, err := d.Primary(ctx)
	if err != nil {
		return err
	}
	if err := d.AdoptHosts(ctx, on); err != nil {
		return err
	}
	return s.compare(ctx, d)
}

// compare checks that the server says what the hosts say.
func (s *story) compare(ctx context.Context, d Drill) error {
	err := Until(ctx, demoSettle, "the server says what the hosts say", func() error { return d.ServerAgrees(ctx) })
	if err == nil {
		s.say("hanok status through the server equals the hosts' own")
	}
	return err
}

// lookAround ends the story with what to type next.
func (s *story) lookAround(c *lab.Client, o DemoOptions) {
	name, flag := c.Layout().Name(), ""
	if name != lab.DefaultName {
		flag = " --lab " + name
	}
	if o.Keep {
		s.chapter("The lab stays up: look around")
	} else {
		s.chapter("Look around: DEMO_KEEP=1 make demo leaves the lab up for these")
	}
	for _, l := range [][2]string{
		{"hanok lab" + flag + " status --disks", "the truth, from outside the hosts"},
		{"hanok lab" + flag + " exec host1 -- hanok status", "what a host says"},
		{"hanok --server " + c.Layout().ServerSocket() + " status", "the same through the server"},
		{"hanok --server " + c.Layout().ServerSocket() + " events --failover last", "how the last failover went"},
		{"hanok --server " + c.Layout().ServerSocket() + " ha status", "the agent status page"},
		{"hanok --server " + c.Layout().ServerSocket() + " sim rehearse", "what if a host failed now?"},
		{"hanok lab" + flag + " power-off host2", "lose a host; power-on brings it back"},
		{"hanok lab" + flag + " down", "remove it all"},
	} {
		fmt.Fprintf(s.out, "  bin/%-66s # %s\n", l[0], l[1])
	}
}

// BusiestSecondary is the secondary with the most VMs.
func (d Drill) BusiestSecondary(ctx context.Context) (string, error) {
	primary, err := d.Primary(ctx)
	if err != nil {
		return "", err
	}
	st, err := d.State(ctx)
	if err != nil {
		return "", err
	}
	best := ""
	for _, h := range st.Hosts {
		if h.Name != primary && h.Power == "on" && (best == "" || len(On(st, h.Name)) > len(On(st, best))) {
			best = h.Name
		}
	}
	if best == "" {
		return "", errors.New("the lab has no secondary")
	}
	return best, nil
}

// story is what a person reads.
type story struct {
	out   io.Writer
	began time.Time
}

func (s *story) chapter(title string) {
	fmt.Fprintf(s.out, "\n== %s\n", title)
}

func (s *story) say(format string, args ...any) { s.line(fmt.Sprintf(format, args...)) }

func (s *story) line(text string) {
	fmt.Fprintf(s.out, "%6.1fs  %s\n", time.Since(s.began).Seconds(), text)
}

func (s *story) settle(ctx context.Context, d Drill) error {
	s.say("waiting until every host is connected and every VM runs, protected, with a guest that answers")
	return d.Settle(ctx, demoSettle)
}

// show prints `hanok status` of the primary.
func (s *story) show(ctx context.Context, d Drill) error {
	on, err := d.Primary(ctx)
	if err != nil {
		return err
	}
	// A cluster that lacks a host is not well, which the exit status says.
	out, err := d.Exec(ctx, on, "hanok", "status")
	if len(out) == 0 && err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\n%s# hanok status\n%s\n", on, out)
	return nil
}

// lose cuts a host's power and tells how its VMs came back.
func (s *story) lose(ctx context.Context, d Drill, host string) error {
	before, err := d.State(ctx)
	if err != nil {
		return err
	}
	lost := On(before, host)
	s.say("it runs %s", strings.Join(lost, ", "))
	cut := time.Now()
	if err := d.PowerOff(ctx, host); err != nil {
		return err
	}
	s.say("power cut")
	back := map[string]bool{}
	err = Until(ctx, demoFailover, "the VMs of "+host+" run elsewhere", func() error {
		st, err := d.State(ctx)
		if err != nil {
			return err
		}
		var missing error
		for _, vm := range lost {
			if err := Once(st, vm); err != nil {
				missing = err
			} else if !back[vm] {
				back[vm] = true
				s.say("%s runs on %s, %.1f s after the power was cut", vm, Instances(st, vm)[0].Host, time.Since(cut).Seconds())
			}
		}
		return missing
	})
	if err != nil {
		return err
	}
	s.say("waiting until their guests answer")
	var on string
	err = Until(ctx, demoSettle, "the guests answer", func() error {
		t, err := d.Timeline(ctx, host)
		if err != nil {
			return err
		}
		if t.LastAlive == nil {
			return errors.New("not all guests answered")
		}
		on = string(t.By)
		return s.evidence(t)
	})
	if err != nil {
		return err
	}
	out, err := d.Exec(ctx, on, "hanok", "events", "--failover", "last")
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\n%s# hanok events --failover last\n%s\n", on, out)
	return nil
}

// evidence fails for a timeline without a verdict: then it is not of a host
// that died.
func (s *story) evidence(t event.Timeline) error {
	for _, step := range t.Steps {
		if step.Kind == event.Verdict {
			return nil
		}
	}
	return fmt.Errorf("failover %s has no verdict yet", t.Failover)
}

// verdict checks that every VM runs exactly once with its disk intact.
func (s *story) verdict(ctx context.Context, d Drill) error {
	st, err := d.Client.Status(ctx, true)
	if err != nil {
		return err
	}
	for _, v := range st.VMs {
		if len(v.RunningOn) != 1 {
			return fmt.Errorf("%s runs on %v, want exactly one host", v.Name, v.RunningOn)
		}
		if v.Disk == nil {
			return fmt.Errorf("%s: no verdict on its disk: %s", v.Name, v.DiskError)
		}
		s.say("%s runs once, on %s; its disk has %d records of %d boots, none lost, one writer at a time",
			v.Name, v.RunningOn[0], v.Disk.Records, v.Disk.Epoch)
	}
	if len(st.Violations) > 0 {
		return fmt.Errorf("the observer saw: %v", st.Violations)
	}
	s.say("the observer saw no VM run twice at any time")
	return nil
}
