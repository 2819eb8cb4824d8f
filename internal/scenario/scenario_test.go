package scenario

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/model"
)

const head = `A rack loses power.
-- cluster.yaml --
version: 1
name: lab
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}, {name: vm}]
datastores: [{name: ds1}, {name: ds2}]
hosts:
- {name: host1, datastores: [ds1, ds2]}
- {name: host2, datastores: [ds1]}
- {name: host3, datastores: [ds1, ds2]}
vms:
- {name: web, datastore: ds1}
- {name: vm103, datastore: ds1}
-- script --
`

// headLines is the number of lines above the script.
const headLines = 14

// The forms of the specification, in its order.
const script = `at 0s   expect all protected within 60s
at 120s power-off host3
at 120s expect vm103 on host2 within 10s
at 200s cut host1 mgmt in            # network, direction in|out|both
at 230s heal host1

# a comment
at 240s storage host2 ds1 hang       # none | hang | lost | slow | full | readonly
at 300s partition host1,host2 | host3
at 310s freeze host2 for 20s         # also: thaw, reboot, power-on, shutdown
at 320s kill agent host1             # agent | guard | libvirtd; stop/cont too
at 330s vm stop web                  # start, stop, crash, hang, ...
at 340s config ha.isolationResponse=powerOff
at 350s host maintenance host1 on
at 360s expect web down because "no # host"   # on HOST | running
at 400s expect primary host2
at 5s cut host1
at 5s cut host2 both
at 6s stop guard host2
at 6s cont libvirtd host2
at 7s vm migrate web host2
at 7s vm fail-start web 3
at 7s vm set web restart.priority high
at 8s expect host host3 failed within 6s because "slot stale"
at 8s expect all running
at 9s partition host1 | host2, host3
`

func TestEveryForm(t *testing.T) {
	s, err := Parse([]byte(head + script + "-- extra.txt --\nhello\n"))
	if err != nil {
		t.Fatal(err)
	}
	h := func(ids ...model.HostID) []model.HostID { return ids }
	sec := time.Second
	want := []Step{
		{1, 0, "expect all protected within 60s", Expect{All: true, Condition: Protected, Within: 60 * sec}},
		{17, 5 * sec, "cut host1", Cut{Host: "host1", Direction: Both}},
		{18, 5 * sec, "cut host2 both", Cut{Host: "host2", Direction: Both}},
		{19, 6 * sec, "stop guard host2", Process{Stop, "guard", "host2"}},
		{20, 6 * sec, "cont libvirtd host2", Process{Cont, "libvirtd", "host2"}},
		{21, 7 * sec, "vm migrate web host2", VM{Op: VMMigrate, VM: "web", Host: "host2"}},
		{22, 7 * sec, "vm fail-start web 3", VM{Op: VMFailStart, VM: "web", Count: 3}},
		{23, 7 * sec, "vm set web restart.priority high", VM{Op: VMSet, VM: "web", Field: "restart.priority", Value: "high"}},
		{24, 8 * sec, `expect host host3 failed within 6s because "slot stale"`, Expect{Condition: HostState, Host: "host3", State: model.HostFailed, Within: 6 * sec, Because: "slot stale"}},
		{25, 8 * sec, "expect all running", Expect{All: true, Condition: Running}},
		{26, 9 * sec, "partition host1 | host2, host3", Partition{[][]model.HostID{h("host1"), h("host2", "host3")}}},
		{2, 120 * sec, "power-off host3", Power{Op: PowerOff, Host: "host3"}},
		{3, 120 * sec, "expect vm103 on host2 within 10s", Expect{VM: "vm103", Condition: OnHost, Host: "host2", Within: 10 * sec}},
		{4, 200 * sec, "cut host1 mgmt in", Cut{"host1", "mgmt", In}},
		{5, 230 * sec, "heal host1", Heal{"host1"}},
		{8, 240 * sec, "storage host2 ds1 hang", StorageFault{"host2", "ds1", FaultHang}},
		{9, 300 * sec, "partition host1,host2 | host3", Partition{[][]model.HostID{h("host1", "host2"), h("host3")}}},
		{10, 310 * sec, "freeze host2 for 20s", Power{Freeze, "host2", 20 * sec}},
		{11, 320 * sec, "kill agent host1", Process{Kill, "agent", "host1"}},
		{12, 330 * sec, "vm stop web", VM{Op: VMStop, VM: "web"}},
		{13, 340 * sec, "config ha.isolationResponse=powerOff", Configure{"ha.isolationResponse", "powerOff", false}},
		{14, 350 * sec, "host maintenance host1 on", Maintenance{"host1", true, false}},
		{15, 360 * sec, `expect web down because "no # host"`, Expect{VM: "web", Condition: Down, Because: "no # host"}},
		{16, 400 * sec, "expect primary host2", Expect{Condition: Primary, Host: "host2"}},
	}
	for i := range want {
		want[i].Line += headLines
	}
	if diff := cmp.Diff(want, s.Steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.Cluster.Name != "lab" || string(s.Files["extra.txt"]) != "hello\n" || s.Comment != "A rack loses power.\n" {
		t.Errorf("rest: %+v", s)
	}
	if s.End() != 400*sec {
		t.Errorf("ends at %v", s.End())
	}
}

func TestProblemsNameTheLine(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"at 1s power-of host1", `unknown verb "power-of"; did you mean "power-off"`},
		{"power-off host1", "a step is `at TIME VERB"},
		{"at 1s", "a step is `at TIME VERB"},
		{"at 1 power-off host1", "no unit"},
		{"at -1s power-off host1", "out of range"},
		{"at 1s power-off host9", `unknown host "host9"; did you mean`},
		{"at 1s power-off", "the host is missing; the form is: power-off HOST"},
		{"at 1s power-off host1 now", `"now" is too much`},
		{"at 1s freeze host1 for 0s", "more than 0"},
		{"at 1s cut host1 mgnt", `unknown network "mgnt"; did you mean "mgmt"`},
		{"at 1s cut host1 mgmt inn", `unknown direction "inn"; did you mean "in"`},
		{"at 1s storage host2 ds2 hang", `unknown datastore of host2 "ds2"`},
		{"at 1s storage host2 ds1 broken", "known here: none, hang, lost"},
		{"at 1s partition host1", "needs two groups"},
		{"at 1s partition host1 | host1", "named twice"},
		{"at 1s partition host1 | ", "a group has no host"},
		{"at 1s kill agnet host1", `did you mean "agent"`},
		{"at 1s vm stop wbe", `unknown VM "wbe"; did you mean "web"`},
		{"at 1s vm fail-start web 0", "must be 1 or more"},
		{"at 1s vm set web priority high", `line 16: set vms[web].priority to "high": priority: unknown field`},
		{"at 1s config ha.isolationResponse", "FIELD=VALUE"},
		{"at 1s config ha.isolationResponse=poweroff", "use one of none, powerOff, shutdown"},
		{"at 1s host maintenance host1 maybe", "known here: on, off"},
		{"at 1s expect web up", "known here: on, not-on, running, down, protected, unprotected, frozen"},
		{"at 1s expect web down because no", `"within"`},
		{`at 1s expect web down because "no`, "quote is not closed"},
		{`at 1s expect web down because ""`, "the reason is empty"},
		{"at 1s expect web down within soon", "is no duration"},
	} {
		_, err := Parse([]byte(head + "at 0s heal host1\n" + tt.line + "\n"))
		if tt.line == "at 1s expect web down because no" {
			if err != nil { // one unquoted word is a reason too
				t.Errorf("%s: %v", tt.line, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "line 16: ") {
			t.Errorf("%s: %v\nwant line 16 and %q", tt.line, err, tt.want)
		}
	}
	_, err := Parse([]byte(head + "at 1s x\n\nat 2s y\n"))
	if err == nil || !strings.Contains(err.Error(), "line 15: ") || !strings.Contains(err.Error(), "line 17: ") {
		t.Errorf("all problems at once: %v", err)
	}
}

func TestChangesBuildOnEachOther(t *testing.T) {
	// By time, not by line.
	ok := "at 3s vm set web restart.priority high\nat 1s vm set vm103 restart.priority high\nat 2s vm set web dependsOn [vm103]\n"
	if _, err := Parse([]byte(head + ok)); err != nil {
		t.Error(err)
	}
	// web may get priority high only after vm103, which it waits for.
	bad := "at 1s vm set web dependsOn [vm103]\nat 2s vm set web restart.priority high\nat 3s vm set vm103 restart.priority high\n"
	if _, err := Parse([]byte(head + bad)); err == nil || !strings.Contains(err.Error(), "line 16: ") {
		t.Errorf("got %v", err)
	}
}

func TestArchive(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", `no file "cluster.yaml"`},
		{strings.Split(head, "-- script")[0], `no file "script"`},
		{head + "-- script --\n", "twice"},
		{strings.Replace(head, "memory", "memroy", 1) + "-- x --\n", ""},
		{strings.Replace(head, "datastores: [ds1]}", "datastore: [ds1]}", 1), "cluster.yaml (begins after line 2): hosts[1].datastore: unknown field"},
	} {
		_, err := Parse([]byte(tt.in))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	path := filepath.Join(t.TempDir(), "s.txtar")
	if err := os.WriteFile(path, []byte(head+script), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(path); err != nil || len(s.Steps) != 24 {
		t.Errorf("Load: %v", err)
	}
	if _, err := Load(path + "x"); err == nil {
		t.Error("a missing file loads")
	}
}

func TestResultForm(t *testing.T) {
	r := Result{Seed: 1, VirtualSeconds: 720, VMs: []VMResult{{Name: "web"}}, Expectations: []ExpectationResult{{Line: 3, OK: true}}}
	r.Finish()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"result":"pass","seed":1,"virtualSeconds":720,"hosts":[],"vms":[{"name":"web","state":"","host":"","runningOn":[],"protected":false,"reason":""}],"recoveries":[],"violations":[],"expectations":[{"line":3,"ok":true,"detail":""}]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	r.Violations = []Violation{{Invariant: "x"}}
	if r.Finish(); r.Result != Fail {
		t.Error("a violation fails the run")
	}
	r.Violations, r.Expectations[0].OK = nil, false
	if r.Finish(); r.Result != Fail {
		t.Error("an unmet expectation fails the run")
	}
}

func FuzzParse(f *testing.F) {
	for line := range strings.Lines(script) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := Parse([]byte(head + line))
		if err != nil {
			return
		}
		for _, st := range s.Steps {
			if st.Action == nil || st.Line <= headLines || st.At < 0 {
				t.Errorf("%q: %+v", line, st)
			}
		}
	})
}
