package datastoretest

import (
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// This file damages a datastore behind its hosts' backs and checks that every
// damage is told apart, that nothing damaged counts as free, and that nothing
// is created again. It knows the format on disk by itself, from
// docs/protocol-datastore.md.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// envelope is the text form of all files but the heartbeats.
func envelope(what string, version int, json string) []byte {
	s := fmt.Sprintf("hanok %s %d %d\n%s\n", what, version, len(json), json)
	return fmt.Appendf([]byte(s), "crc32c %08x\n", crc32.Checksum([]byte(s), castagnoli))
}

// damaged is a world with one of everything, and a driver that has seen it.
type damaged struct {
	*World
	t      *testing.T
	d      datastore.Driver
	index  int
	known  []string
	header datastore.Header
}

const (
	lockDir = "locks/" + string(vm1)
	epoch1  = lockDir + "/00000000000000000001"
	epoch2  = lockDir + "/00000000000000000002"
	term1   = "protected/00000000000000000001"
	listAt1 = term1 + "/list"
	term2   = "protected/00000000000000000002"
	listAt2 = term2 + "/list"
	note1   = "poweredoff/" + string(vm1)
	claim0  = "slots/0000"
)

func furnish(t *testing.T, w *World) *damaged {
	x := &damaged{World: w, t: t, d: w.Open()}
	x.header = must[datastore.Header](t)(x.d.Check())
	x.index = must[int](t)(x.d.ClaimSlot("host1", "m1"))
	second := must[int](t)(x.d.ClaimSlot("host2", "m2"))
	id := must[model.SlotIdentity](t)(x.d.WriteSlot(x.index, nil, slotOf("host1", 1)))
	must[model.SlotIdentity](t)(x.d.WriteSlot(second, nil, slotOf("host2", 8)))
	x.known = []string{id.Digest}
	for _, vm := range []model.VMID{vm1, vm2} {
		ok(t, x.d.CreateLock(model.VMLock(vm), record("", 0, "host1")))
		ok(t, x.d.Link(record(model.VMLock(vm), 2, "host1")))
	}
	ok(t, x.d.WriteList(listOf(1, 1, 1)))
	ok(t, x.d.WriteList(listOf(2, 1, 2)))
	ok(t, x.d.WritePoweredOff(model.PoweredOffNote{VM: vm1, LockEpoch: 2, Host: "host1"}))
	return x
}

func (x *damaged) path(name string) string { return filepath.Join(x.Dir, name) }

func (x *damaged) edit(name string, f func(data []byte) []byte) {
	x.t.Helper()
	data := must[[]byte](x.t)(os.ReadFile(x.path(name)))
	ok(x.t, os.WriteFile(x.path(name), f(data), 0o600))
}

func (x *damaged) set(name string, data []byte) {
	x.t.Helper()
	ok(x.t, os.WriteFile(x.path(name), data, 0o600))
}

func (x *damaged) remove(name string) {
	x.t.Helper()
	ok(x.t, os.RemoveAll(x.path(name)))
}

func (x *damaged) block(index int, f func(b []byte)) {
	x.t.Helper()
	x.edit("heartbeats", func(data []byte) []byte {
		b := data[index*datastore.SlotSize : (index+1)*datastore.SlotSize]
		f(b)
		return data
	})
}

// sealBlock corrects the checksum of a block after a change.
func sealBlock(b []byte) {
	sum := crc32.Checksum(b[:4092], castagnoli)
	b[4092], b[4093], b[4094], b[4095] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
}

// names lists everything in the cluster's directory but the ballast.
func (x *damaged) names() []string {
	var out []string
	_ = filepath.WalkDir(x.Dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && !strings.Contains(path, "ballast") {
			out = append(out, path)
		}
		return nil
	})
	return out
}

// Ways in which a file of text form is damaged, and how each must be told.
var fileDamages = []struct {
	name string
	edit func(data []byte) []byte
	want datastore.Kind
}{
	{"empty", func([]byte) []byte { return nil }, datastore.KindShort},
	{"cut in its first line", func(d []byte) []byte { return d[:9] }, datastore.KindShort},
	{"cut in its content", func(d []byte) []byte { return d[:len(d)/2] }, datastore.KindShort},
	{"without its last byte", func(d []byte) []byte { return d[:len(d)-1] }, datastore.KindShort},
	{"never written blocks", func(d []byte) []byte { clear(d[len(d)/2:]); return d }, datastore.KindTorn},
	{"all zero", func(d []byte) []byte { clear(d); return d }, datastore.KindTorn},
	{"one bit flipped", func(d []byte) []byte { d[len(d)/2] ^= 1; return d }, datastore.KindCorrupt},
	{"checksum flipped", func(d []byte) []byte { d[len(d)-3] ^= 1; return d }, datastore.KindCorrupt},
	{"more than its end", func(d []byte) []byte { return append(d, '\n') }, datastore.KindCorrupt},
	{"some other text", func([]byte) []byte { return []byte(strings.Repeat("hello ", 20)) }, datastore.KindCorrupt},
	{"far too long", func([]byte) []byte { return []byte(strings.Repeat("x", 17<<20)) }, datastore.KindCorrupt},
	{"valid, not JSON", func([]byte) []byte { return nil }, datastore.KindCorrupt}, // content set per file
	{"another kind of file", func([]byte) []byte { return envelope("other", 1, "{}") }, datastore.KindForeign},
	{"a newer format", func([]byte) []byte { return nil }, datastore.KindFuture}, // content set per file
}

func runDamage(t *testing.T, makeWorld func(t *testing.T) *World) {
	if w := makeWorld(t); w.Dir == "" {
		return // a driver without files
	}
	t.Run("files", func(t *testing.T) { testFileDamage(t, makeWorld) })
	for _, test := range damages {
		t.Run(test.name, func(t *testing.T) {
			x := furnish(t, makeWorld(t))
			test.damage(x)
			before := x.names()
			test.check(x)
			if after := x.names(); !slices.Equal(before, after) {
				t.Errorf("files appeared or vanished:\nbefore %q\nafter  %q", before, after)
			}
		})
	}
	t.Run("rolled back", func(t *testing.T) { testRolledBack(t, furnish(t, makeWorld(t))) })
}

// testFileDamage applies all file damages to each kind of file.
func testFileDamage(t *testing.T, makeWorld func(t *testing.T) *World) {
	x := furnish(t, makeWorld(t))
	files := []struct {
		name, what string
		read       func(d datastore.Driver) error
	}{
		{"header", "header", func(d datastore.Driver) error { _, err := d.Check(); return err }},
		{epoch2, "lock", func(d datastore.Driver) error { _, err := d.Highest(model.VMLock(vm1)); return err }},
		{listAt2, "protected", func(d datastore.Driver) error { _, err := d.ReadList(); return err }},
		{note1, "poweredoff", func(d datastore.Driver) error { _, err := d.ReadPoweredOff(vm1); return err }},
		{claim0, "slot", func(d datastore.Driver) error { _, err := d.ClaimSlot("host3", "m3"); return err }},
	}
	for _, file := range files {
		original := must[[]byte](t)(os.ReadFile(x.path(file.name)))
		for _, damage := range fileDamages {
			data := damage.edit(slices.Clone(original))
			switch damage.name {
			case "valid, not JSON":
				data = envelope(file.what, 1, "nonsense")
			case "a newer format":
				data = envelope(file.what, 2, "{}")
			}
			x.set(file.name, data)
			before := x.names()
			wantKind(t, file.name+" "+damage.name, file.read(x.d), damage.want)
			wantKind(t, file.name+" "+damage.name+", seen by a new driver", file.read(x.Open()), damage.want)
			if after := x.names(); !slices.Equal(before, after) {
				t.Errorf("%s %s: files appeared or vanished", file.name, damage.name)
			}
		}
		x.set(file.name, original)
		if err := file.read(x.d); err != nil {
			t.Errorf("%s repaired: %v", file.name, err)
		}
	}
}

// gone checks that every method fails with one of the kinds.
func (x *damaged) gone(kinds ...datastore.Kind) {
	x.t.Helper()
	for name, err := range x.everything() {
		wantKind(x.t, name, err, kinds...)
	}
}

// everything calls every method and returns what each answered.
func (x *damaged) everything() map[string]error {
	out := make(map[string]error)
	var err error
	_, err = x.d.Check()
	out["Check"] = err
	_, err = x.d.ClaimSlot("host1", "m1")
	out["ClaimSlot"] = err
	_, err = x.d.WriteSlot(x.index, x.known, slotOf("host1", 2))
	out["WriteSlot"] = err
	_, err = x.d.ReadSlots()
	out["ReadSlots"] = err
	_, err = x.d.ReadSlot("host1")
	out["ReadSlot"] = err
	out["CreateLock"] = x.d.CreateLock(model.VMLock(vm1), record("", 0, "host1"))
	_, err = x.d.Highest(model.VMLock(vm1))
	out["Highest"] = err
	out["Link"] = x.d.Link(record(model.VMLock(vm1), 3, "host1"))
	out["Prune"] = x.d.Prune(model.VMLock(vm1))
	out["WriteList"] = x.d.WriteList(listOf(2, 2, 1))
	_, err = x.d.ReadList()
	out["ReadList"] = err
	out["WritePoweredOff"] = x.d.WritePoweredOff(model.PoweredOffNote{VM: vm1, LockEpoch: 2, Host: "host1"})
	_, err = x.d.ReadPoweredOff(vm1)
	out["ReadPoweredOff"] = err
	return out
}

// slotDamage checks what a reader sees in host1's slot, and that its writer
// does not write over it.
func (x *damaged) slotDamage(want model.SlotDamage) {
	x.t.Helper()
	r := must[model.SlotReading](x.t)(x.d.ReadSlot("host1"))
	if r.Valid || r.Damage != want || r.Host != "host1" || r.Identity.Digest == "" {
		x.t.Errorf("the slot reads %+v, want damage %q", r, want)
	}
	_, err := x.d.WriteSlot(x.index, x.known, slotOf("host1", 2))
	wantKind(x.t, "write over it", err, datastore.KindChanged)
	if again := must[model.SlotReading](x.t)(x.d.ReadSlot("host1")); again != r {
		x.t.Errorf("the refused write left %+v, before %+v", again, r)
	}
	other := must[model.SlotReading](x.t)(x.d.ReadSlot("host2"))
	if !other.Valid {
		x.t.Errorf("the neighbour reads %+v", other)
	}
}

func (x *damaged) lockKind(want datastore.Kind) {
	x.t.Helper()
	_, err := x.d.Highest(model.VMLock(vm1))
	wantKind(x.t, "read the lock", err, want)
	_, _, err = datastore.Claim(x.d, record(model.VMLock(vm1), 3, "host2"))
	wantKind(x.t, "claim the lock", err, want)
	if rec, err := x.d.Highest(model.VMLock(vm2)); err != nil || rec.Epoch != 2 {
		x.t.Errorf("another lock: %v, %v", rec, err)
	}
}

var damages = []struct {
	name   string
	damage func(x *damaged)
	check  func(x *damaged)
}{
	{"directory deleted", func(x *damaged) { x.remove("") },
		func(x *damaged) { x.gone(datastore.KindNotInitialised, datastore.KindNotMounted) }},
	{"all directories deleted", func(x *damaged) { ok(x.t, os.RemoveAll(filepath.Dir(x.Dir))) },
		func(x *damaged) { x.gone(datastore.KindNotInitialised, datastore.KindNotMounted) }},
	{"directory replaced by a file", func(x *damaged) { x.remove(""); x.set("", []byte("x")) },
		func(x *damaged) { x.gone(datastore.KindCorrupt) }},
	{"directory emptied", func(x *damaged) { x.remove(""); ok(x.t, os.Mkdir(x.Dir, 0o700)) },
		func(x *damaged) { x.gone(datastore.KindNotInitialised) }},
	{"header deleted", func(x *damaged) { x.remove("header") },
		func(x *damaged) { x.gone(datastore.KindNotInitialised) }},
	{"open to others", func(x *damaged) { ok(x.t, os.Chmod(x.Dir, 0o755)) },
		func(x *damaged) { x.gone(datastore.KindPermission) }},
	{"owned by somebody", func(x *damaged) { ok(x.t, os.Chown(x.Dir, 12345, 0)) },
		func(x *damaged) { x.gone(datastore.KindPermission) }},
	{"another datastore", func(x *damaged) {
		x.set("header", envelope("header", 1, `{"id":"11111111-2222-4333-8444-555555555555","cluster":"`+x.header.Cluster+`","format":1,"slots":8,"generation":1}`))
	}, func(x *damaged) { x.gone(datastore.KindForeign) }},
	{"another cluster", func(x *damaged) {
		x.set("header", envelope("header", 1, `{"id":"`+string(x.header.ID)+`","cluster":"elsewhere","format":1,"slots":8,"generation":1}`))
	}, func(x *damaged) { x.gone(datastore.KindForeign) }},
	{"impossible header", func(x *damaged) {
		x.set("header", envelope("header", 1, `{"id":"`+string(x.header.ID)+`","cluster":"`+x.header.Cluster+`","format":1,"slots":9999999,"generation":1}`))
	}, func(x *damaged) { x.gone(datastore.KindCorrupt) }},
	{"newer datastore format", func(x *damaged) {
		x.set("header", envelope("header", 1, `{"id":"`+string(x.header.ID)+`","cluster":"`+x.header.Cluster+`","format":2,"slots":8,"generation":1}`))
	}, func(x *damaged) { x.gone(datastore.KindFuture) }},

	{"heartbeats deleted", func(x *damaged) { x.remove("heartbeats") }, func(x *damaged) { x.heartbeats(datastore.KindCorrupt) }},
	{"heartbeats a link", func(x *damaged) {
		ok(x.t, os.Rename(x.path("heartbeats"), x.path("hb2")))
		ok(x.t, os.Symlink("hb2", x.path("heartbeats")))
	}, func(x *damaged) { x.heartbeats(datastore.KindCorrupt) }},
	{"heartbeats empty", func(x *damaged) { x.set("heartbeats", nil) }, func(x *damaged) { x.heartbeats(datastore.KindShort) }},
	{"heartbeats short", func(x *damaged) { ok(x.t, os.Truncate(x.path("heartbeats"), 4096+100)) },
		func(x *damaged) { x.heartbeats(datastore.KindShort) }},
	{"heartbeats of another datastore", func(x *damaged) { x.block(0, func(b []byte) { b[64] ^= 1; sealBlock(b) }) },
		func(x *damaged) { x.heartbeats(datastore.KindForeign) }},
	{"heartbeats of another size", func(x *damaged) { x.block(0, func(b []byte) { b[24]++; sealBlock(b) }) },
		func(x *damaged) { x.heartbeats(datastore.KindCorrupt) }},
	{"heartbeats of a newer format", func(x *damaged) { x.block(0, func(b []byte) { b[8] = 2; sealBlock(b) }) },
		func(x *damaged) { x.heartbeats(datastore.KindFuture) }},
	{"heartbeats corrupt", func(x *damaged) { x.block(0, func(b []byte) { b[64] ^= 1 }) },
		func(x *damaged) { x.heartbeats(datastore.KindCorrupt) }},

	{"slot zero", func(x *damaged) { x.block(1, func(b []byte) { clear(b) }) }, func(x *damaged) { x.slotDamage(model.SlotEmpty) }},
	{"slot torn", func(x *damaged) { x.block(1, func(b []byte) { b[24]++ }) }, func(x *damaged) { x.slotDamage(model.SlotTorn) }},
	{"slot corrupt", func(x *damaged) { x.block(1, func(b []byte) { b[1000] ^= 1 }) }, func(x *damaged) { x.slotDamage(model.SlotCorrupt) }},
	{"slot of a newer format", func(x *damaged) { x.block(1, func(b []byte) { b[8] = 2; sealBlock(b) }) }, func(x *damaged) { x.slotDamage(model.SlotFuture) }},
	{"slot of another host", func(x *damaged) {
		var other []byte
		x.block(2, func(b []byte) { other = slices.Clone(b) })
		x.block(1, func(b []byte) { copy(b, other) })
	}, func(x *damaged) { x.slotDamage(model.SlotForeign) }},
	{"slot with an impossible host", func(x *damaged) { x.block(1, func(b []byte) { b[64] = '/'; sealBlock(b) }) }, func(x *damaged) { x.slotDamage(model.SlotCorrupt) }},

	{"claim corrupt", func(x *damaged) { x.edit(claim0, func(d []byte) []byte { d[20] ^= 1; return d }) }, func(x *damaged) {
		if all := must[[]model.SlotReading](x.t)(x.Open().ReadSlots()); len(all) != 2 || all[0].Host != "host1" {
			x.t.Errorf("slots: %+v", all)
		}
		_, err := x.d.ClaimSlot("host1", "m1")
		wantKind(x.t, "claim it again", err, datastore.KindCorrupt)
		if got := must[int](x.t)(x.d.ClaimSlot("host2", "m2")); got != 1 {
			x.t.Errorf("host2 has slot %d", got)
		}
	}},
	{"claims deleted", func(x *damaged) { x.remove("slots") }, func(x *damaged) {
		_, err := x.d.ReadSlots()
		wantKind(x.t, "read", err, datastore.KindCorrupt)
		_, err = x.d.ClaimSlot("host1", "m1")
		wantKind(x.t, "claim", err, datastore.KindCorrupt)
		_, err = x.d.Check()
		wantKind(x.t, "check", err, datastore.KindCorrupt)
	}},

	{"lock deleted", func(x *damaged) { x.remove(lockDir) }, func(x *damaged) { x.lockKind(datastore.KindMissing) }},
	{"records deleted", func(x *damaged) { x.remove(epoch1); x.remove(epoch2) }, func(x *damaged) {
		x.lockKind(datastore.KindCorrupt)
		ok(x.t, x.d.CreateLock(model.VMLock(vm1), record("", 0, "host2"))) // leaves it alone
		x.lockKind(datastore.KindCorrupt)
	}},
	{"all locks deleted", func(x *damaged) { x.remove("locks") }, func(x *damaged) {
		for name, err := range x.everything() {
			switch name {
			case "Check", "CreateLock", "Highest", "Link", "Prune":
				wantKind(x.t, name, err, datastore.KindCorrupt)
			default:
				wantKind(x.t, name, err, "")
			}
		}
	}},
	{"record of another lock", func(x *damaged) {
		other := must[[]byte](x.t)(os.ReadFile(x.path(strings.Replace(epoch2, string(vm1), string(vm2), 1))))
		x.set(epoch2, other)
	}, func(x *damaged) { x.lockKind(datastore.KindForeign) }},
	{"record under a higher number", func(x *damaged) {
		x.set(lockDir+"/00000000000000000009", must[[]byte](x.t)(os.ReadFile(x.path(epoch2))))
	}, func(x *damaged) { x.lockKind(datastore.KindCorrupt) }},
	{"record a pipe", func(x *damaged) {
		x.remove(epoch2)
		ok(x.t, exec.Command("mkfifo", x.path(epoch2)).Run())
	}, func(x *damaged) { x.lockKind(datastore.KindCorrupt) }},
	{"impossible record", func(x *damaged) {
		x.set(epoch2, envelope("lock", 1, `{"lock":"`+string(vm1)+`","epoch":2,"owner":"host1","boot":"b","incarnation":7,"nonce":"n","state":"mine"}`))
	}, func(x *damaged) { x.lockKind(datastore.KindCorrupt) }},
	{"other names beside records", func(x *damaged) {
		for _, name := range []string{"3", "000000000000000000003", "0000000000000000000x", "00000000000000000000", ".tmp.00000000000000000099.host1.0", "99999999999999999999", "lost+found", "00000000000000000003~"} {
			x.set(lockDir+"/"+name, []byte("x"))
		}
		x.set("locks/.tmp.x", []byte("x"))
		x.set("slots/junk", []byte("x"))
		x.set("slots/99999", []byte("x"))
		x.set("protected/junk", []byte("x"))
	}, func(x *damaged) {
		if rec := must[model.LockRecord](x.t)(x.d.Highest(model.VMLock(vm1))); rec.Epoch != 2 {
			x.t.Errorf("highest %v", rec)
		}
		if list := must[model.ProtectedList](x.t)(x.d.ReadList()); list.Term != 2 {
			x.t.Errorf("list of term %d", list.Term)
		}
		if all := must[[]model.SlotReading](x.t)(x.Open().ReadSlots()); len(all) != 2 {
			x.t.Errorf("slots: %+v", all)
		}
	}},
	{"older record corrupt", func(x *damaged) { x.edit(epoch1, func(d []byte) []byte { return d[:5] }) }, func(x *damaged) {
		if rec := must[model.LockRecord](x.t)(x.d.Highest(model.VMLock(vm1))); rec.Epoch != 2 {
			x.t.Errorf("highest %v", rec)
		}
	}},

	{"newest term without its list", func(x *damaged) { ok(x.t, os.Mkdir(x.path("protected/00000000000000000007"), 0o700)) }, func(x *damaged) {
		if list := must[model.ProtectedList](x.t)(x.d.ReadList()); list.Term != 2 {
			x.t.Errorf("list of term %d", list.Term)
		}
	}},
	{"list of another term", func(x *damaged) { x.set(listAt2, must[[]byte](x.t)(os.ReadFile(x.path(listAt1)))) }, func(x *damaged) {
		_, err := x.d.ReadList()
		wantKind(x.t, "read", err, datastore.KindForeign)
	}},
	{"note of another VM", func(x *damaged) {
		x.set("poweredoff/"+string(vm2), must[[]byte](x.t)(os.ReadFile(x.path(note1))))
	}, func(x *damaged) {
		_, err := x.d.ReadPoweredOff(vm2)
		wantKind(x.t, "read", err, datastore.KindForeign)
	}},
}

// heartbeats checks that everything about slots fails so, and that locks, once
// the way of access is known, do not depend on it.
func (x *damaged) heartbeats(want datastore.Kind) {
	x.t.Helper()
	_, err := x.d.ReadSlots()
	wantKind(x.t, "read slots", err, want)
	_, err = x.d.WriteSlot(x.index, x.known, slotOf("host1", 2))
	wantKind(x.t, "write the slot", err, want)
	_, err = x.d.WriteSlot(x.index, nil, slotOf("host1", 2))
	wantKind(x.t, "write the slot without memory", err, want)
	_, err = x.d.Check()
	wantKind(x.t, "check", err, want)
}

// testRolledBack puts an older copy of the directory in place.
func testRolledBack(t *testing.T, x *damaged) {
	aside := filepath.Join(t.TempDir(), "copy")
	copyTree := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	copyTree(x.Dir, aside)
	id := must[model.SlotIdentity](t)(x.d.WriteSlot(x.index, x.known, slotOf("host1", 2)))
	for epoch := model.Epoch(3); epoch < 6; epoch++ {
		ok(t, x.d.Link(record(model.VMLock(vm1), epoch, "host1")))
		must[model.LockRecord](t)(x.d.Highest(model.VMLock(vm1)))
	}
	x.remove("")
	copyTree(aside, x.Dir)

	must[datastore.Header](t)(x.d.Check())
	_, err := x.d.WriteSlot(x.index, []string{id.Digest}, slotOf("host1", 3))
	wantKind(t, "write", err, datastore.KindChanged)
	if r := must[model.SlotReading](t)(x.d.ReadSlot("host1")); r.Slot.Sequence != 1 {
		t.Errorf("the refused write left %+v", r)
	}
	_, err = x.d.Highest(model.VMLock(vm1))
	wantKind(t, "read the lock", err, datastore.KindChanged)
	_, _, err = datastore.Claim(x.d, record(model.VMLock(vm1), 3, "host1"))
	wantKind(t, "claim the lock", err, datastore.KindChanged)
	if rec := must[model.LockRecord](t)(x.d.Highest(model.VMLock(vm2))); rec.Epoch != 2 {
		t.Errorf("a lock that did not go back: %v", rec)
	}
}
