package datastorecmd

import (
	"fmt"
	"io"
	"text/tabwriter"

	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
)

// printReport writes a report for people.
func printReport(w io.Writer, r datastore.Report) error {
	if r.Header.ID != "" {
		access := "direct I/O"
		if !r.Direct {
			access = "page cache: not usable for locks"
		}
		i18n.Fprintf(w, "%s: %s\n%d MiB free, %s\n", r.Path, r.Header, r.Free, access)
		if r.List != nil {
			i18n.Fprintf(w, "protected list: term %d, version %d, %d VMs\n", r.List.Term, r.List.Version, r.List.VMs)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Slots) > 0 {
		i18n.Fprintf(t, "\nSLOT\tHOST\tHEARTBEAT\tARMED\tBOOT\n")
		for _, s := range r.Slots {
			i18n.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", s.Index, s.Host, heartbeat(s), screen.YesNo(s.Armed), s.Boot)
		}
	}
	if len(r.Locks) > 0 {
		i18n.Fprintf(t, "\nLOCK\tEPOCH\tSTATE\tOWNER\tREASON\n")
		for _, l := range r.Locks {
			fmt.Fprint(t, lockLine(l))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.PoweredOff) > 0 {
		i18n.Fprintf(w, "\npowered off for HA: %v\n", r.PoweredOff)
	}
	fmt.Fprintln(w)
	printFaults(w, r.Path, r)
	return nil
}

func heartbeat(s datastore.SlotInfo) string {
	if s.Damage != "" {
		return string(s.Damage)
	}
	return fmt.Sprint(s.Sequence)
}

func lockLine(l datastore.LockInfo) string {
	if l.Record == nil {
		return fmt.Sprintf("%s\t?\tunknown\t?\t%s\n", l.Lock, l.Problem)
	}
	reason := l.Record.Reason
	if l.Record.State == model.LockMoving || l.Record.State == model.LockMovedTo {
		reason = "to " + l.Record.Target
	}
	return fmt.Sprintf("%s\t%d\t%s\t%s\t%s\n", l.Lock, l.Record.Epoch, l.Record.State, l.Record.Owner, reason)
}

func printFaults(w io.Writer, name string, r datastore.Report) {
	for _, note := range r.Notes {
		i18n.Fprintf(w, "%s: note: %s\n", name, note)
	}
	if len(r.Faults) == 0 {
		i18n.Fprintf(w, "%s: no faults found\n", name)
		return
	}
	for _, f := range r.Faults {
		i18n.Fprintf(w, "%s: FAULT: %s\n", name, f.Text)
	}
}
