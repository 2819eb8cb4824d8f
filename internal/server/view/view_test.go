package view

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/model"
)

// own are figures that change by themselves, or that only the answering host
// has: they are left to the hosts.
var own = cmp.Options{
	cmpopts.IgnoreFields(local.Status{}, "AgeSeconds", "Local", "Problems"),
	cmpopts.IgnoreFields(local.Host{}, "SilenceSeconds", "SlotAgeSeconds"),
	cmpopts.IgnoreFields(local.Lease{}, "LeftSeconds", "ListTerm"),
	cmpopts.IgnoreFields(admission.Report{}, "Verdict"),
}

// What a host says of its cluster is what the server shows, every field of it.
func TestNothingIsLostOnTheWay(t *testing.T) {
	var s local.Status
	fill(reflect.ValueOf(&s).Elem(), "f")
	now := time.Unix(1_700_000_000, 0)
	s.Hosts[0].Name, s.VMs[0].RetryInSeconds = s.Host, 10
	s.Hosts[0].State, s.Hosts[0].Role = s.State, s.Role
	r := &hanokv1.GetStatusResponse{Cluster: Cluster(s.Cluster, &s)}
	for i := range s.Hosts {
		r.Hosts = append(r.Hosts, Host(s.Cluster, &s.Hosts[i], 0))
	}
	for i := range s.VMs {
		r.Vms = append(r.Vms, VM(s.Cluster, &s.VMs[i], now))
	}
	for i := range s.Datastores {
		r.Datastores = append(r.Datastores, Datastore(s.Cluster, &s.Datastores[i]))
	}
	if d := cmp.Diff(s, *Status(r, now), own); d != "" {
		t.Errorf("what the host said (-) is not what the server shows (+):\n%s", d)
	}
}

// fill gives every field a value other than zero.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint64, reflect.Uint32:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(7)
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text+"0")
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), text+"."+v.Type().Field(i).Name)
		}
	default:
		panic("a field of kind " + v.Kind().String())
	}
}

// Its age is that of the last report: a server without news does not pretend.
func TestAge(t *testing.T) {
	s := local.Status{Host: "host1", Cluster: "seoul", Primary: "host1", HA: true, HostMonitoring: true}
	r := &hanokv1.GetStatusResponse{Cluster: Cluster("seoul", &s)}
	if got := Status(r, time.Now()); got.AgeSeconds != 0 {
		t.Errorf("never reported: %v", got.AgeSeconds)
	}
	now := time.Now()
	r.Cluster.Reported = timestamppb.New(now.Add(-40 * time.Second))
	got := Status(r, now)
	if got.AgeSeconds != 40 {
		t.Errorf("age %v, want 40", got.AgeSeconds)
	}
	got.FindProblems()
	if len(got.Problems) != 1 || got.Host != model.HostID("host1") {
		t.Errorf("an old account is no problem: %v", got.Problems)
	}
}
