package server

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
)

// inMaintenance refuses files that take host2 away: at the question, at the file, or
// at both.
func inMaintenance(atQuestion, atFile bool) func(*config.Cluster, bool) string {
	return func(c *config.Cluster, asked bool) string {
		if c.HostByName("host2").Maintenance && (asked && atQuestion || !asked && atFile) {
			return "no room without host2"
		}
		return ""
	}
}

// What admission control refuses is not stored, and the answer names the fields.
func TestARefusedVersionIsNotStored(t *testing.T) {
	r := newRig(t)
	r.hosts.SetRefuse(inMaintenance(true, true))
	on := &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host2", On: true}
	_, err := r.ops.SetMaintenance(t.Context(), on)
	f, help := detailOf[hanokv1.FieldErrors](err), detailOf[hanokv1.Remedy](err)
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || f == nil || f.Errors[0].Field != "hosts[host2].maintenance" ||
		help == nil || !strings.Contains(help.Text, "add a host; or do it all the same by force") {
		t.Fatalf("%v, fields %v, remedy %v", err, f, help)
	}
	if w := r.cache.Wanted("seoul"); w.Cluster.Version != 1 || r.hosts.Version() != 1 {
		t.Fatalf("version %d is wanted, the hosts have %d", w.Cluster.Version, r.hosts.Version())
	}
	yaml := strings.Replace(r.cache.Wanted("seoul").Version.Yaml, "name: host2", "name: host2\n  maintenance: true", 1)
	check, err := r.conf.CheckConfig(t.Context(), &hanokv1.CheckConfigRequest{Yaml: yaml})
	if err != nil || !check.Admission.Refused || !check.Admission.Live || check.Admission.Verdict != "no" || len(check.Admission.Fields) != 1 {
		t.Fatalf("%v, %v", check, err)
	}
	on.Force = true
	out, err := r.ops.SetMaintenance(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if who := r.hosts.Forced(); len(who) != 1 || who[0] == "" || r.hosts.Version() != 2 {
		t.Fatalf("forced by %q, the hosts have version %d", who, r.hosts.Version())
	}
}

// A version that the primary refuses only when it gets it is wanted no longer; its
// number is used up.
func TestAVersionRefusedLaterIsTakenBack(t *testing.T) {
	r := newRig(t)
	r.hosts.SetRefuse(inMaintenance(false, true))
	out, err := r.ops.SetMaintenance(t.Context(), &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host2", On: true})
	if err != nil {
		t.Fatal(err)
	}
	end := r.ends(out.Task, hanokv1.TaskState_TASK_STATE_FAILED)
	if !strings.Contains(end.Message, "refused: no room without host2; what would help: add a host") {
		t.Errorf("the task says %q", end.Message)
	}
	w := r.cache.Wanted("seoul")
	if w.Cluster.Version != 1 || w.Cluster.HostByName("host2").Maintenance || r.hosts.Version() != 1 {
		t.Fatalf("version %d is wanted, the hosts have %d", w.Cluster.Version, r.hosts.Version())
	}
	old, err := r.conf.GetConfig(t.Context(), &hanokv1.GetConfigRequest{Cluster: "seoul", Version: 2})
	if err != nil || !strings.Contains(old.Config.Refused, "no room without host2") {
		t.Errorf("the refused version: %v, %v", old, err)
	}
	next, err := r.conf.SetFields(t.Context(), &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: 1,
		Fields: []*hanokv1.FieldValue{{Field: "ha.isolationResponse", Value: "powerOff"}}})
	if err != nil || next.Version != 3 {
		t.Fatalf("%v, %v", next, err)
	}
	r.ends(next.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if r.hosts.Version() != 3 {
		t.Errorf("the hosts have version %d", r.hosts.Version())
	}
}
