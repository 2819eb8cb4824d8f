package server

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
)

// rehearse collects the answers of a whole rehearsal, by the number of the loss.
func (r *rig) rehearse(req *hanokv1.RehearseRequest) ([]*hanokv1.RehearseResponse, error) {
	r.t.Helper()
	s, err := r.ha.Rehearse(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	var out []*hanokv1.RehearseResponse
	for s.Receive() {
		m := s.Msg()
		for len(out) < int(m.Losses) {
			out = append(out, nil)
		}
		out[m.Loss] = m
	}
	return out, s.Err()
}

func TestRehearsal(t *testing.T) {
	r := newRig(t)
	r.until("the VMs", func() bool { return r.cache.VM("seoul", "db") != nil })
	all, err := r.rehearse(&hanokv1.RehearseRequest{Cluster: "seoul", Two: true})
	if err != nil || len(all) != 6 {
		t.Fatalf("%d answers, %v", len(all), err)
	}
	for _, m := range all {
		if m == nil || m.Down != 0 || m.Failed[0] == "host1" && (len(m.Vms) == 0 || m.Vms[0].To == "" || m.Vms[0].Seconds <= 0) {
			t.Errorf("%v", m)
		}
	}
	// VMs are where they run, and a plan is played with them.
	r.hosts.SetVM(0, func(v *local.VM) { v.Host = "host3" })
	r.until("web on host3", func() bool { return r.cache.VM("seoul", "web").Host == "host3" })
	all, err = r.rehearse(&hanokv1.RehearseRequest{Cluster: "seoul", Hosts: []string{"host3"}, Yaml: strings.ReplaceAll(clusterFile, "memory: 16GiB", "memory: 1GiB")})
	if err != nil || len(all) != 1 || len(all[0].Vms) != 1 || all[0].Vms[0].Name != "web" || all[0].Vms[0].From != "host3" {
		t.Errorf("%v, %v", all, err)
	}
	for code, req := range map[connect.Code]*hanokv1.RehearseRequest{
		connect.CodeNotFound:        {Cluster: "busan"},
		connect.CodeInvalidArgument: {Cluster: "seoul", Hosts: []string{"host9"}},
	} {
		if _, err := r.rehearse(req); connect.CodeOf(err) != code {
			t.Errorf("%v: %v, want %v", req, err, code)
		}
	}
	if _, err := r.rehearse(&hanokv1.RehearseRequest{Cluster: "seoul", Yaml: "nmae: x"}); detailOf[hanokv1.FieldErrors](err) == nil {
		t.Errorf("a bad file: %v", err)
	}
	// One at a time: whoever asks meanwhile is told. With twelve hosts it takes
	// 78 losses.
	more := clusterFile
	for i := 4; i <= 12; i++ {
		more = strings.Replace(more, "vms:", fmt.Sprintf("- {name: host%d, address: {mgmt: 10.0.0.%d}, memory: 16GiB, datastores: [ds1]}\nvms:", i, i), 1)
	}
	first, err := r.ha.Rehearse(t.Context(), &hanokv1.RehearseRequest{Cluster: "seoul", Two: true, Yaml: more})
	if err != nil || !first.Receive() {
		t.Fatal("no answer to the first", err)
	}
	if _, err := r.rehearse(&hanokv1.RehearseRequest{Cluster: "seoul"}); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("two at once: %v", err)
	}
	_ = first.Close()
}
