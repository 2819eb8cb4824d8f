package drill

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
)

// moving are figures that change from one moment to the next, and those that
// only the answering host has.
var moving = cmp.Options{
	cmpopts.IgnoreFields(local.Status{}, "AgeSeconds", "Local"),
	cmpopts.IgnoreFields(local.Host{}, "SilenceSeconds", "SlotAgeSeconds"),
	cmpopts.IgnoreFields(local.Lease{}, "LeftSeconds", "ListTerm"),
	cmpopts.IgnoreFields(local.VM{}, "RetryInSeconds"),
	cmpopts.IgnoreFields(admission.Report{}, "Verdict"),
	cmpopts.EquateEmpty(),
}

// ServerStatus is `hanok status` through the lab's server.
func (d Drill) ServerStatus(ctx context.Context) (local.Status, error) {
	var st local.Status
	out, err := d.AskServer(ctx, "status", "-o", "json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(out, &st)
}

// ServerAgrees returns nil when the server says what the primary says, but for
// figures that change from one moment to the next, and what more is to be ignored.
func (d Drill) ServerAgrees(ctx context.Context, more ...cmp.Option) error {
	own, err := d.Status(ctx)
	if err != nil {
		return err
	}
	there, err := d.ServerStatus(ctx)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(own, there, append(more, moving)...); diff != "" {
		return fmt.Errorf("the primary says (-), and the server (+):\n%s", diff)
	}
	return nil
}
