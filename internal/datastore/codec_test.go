package datastore

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
)

const testVM = "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55"

func fullSlot() model.Slot {
	return model.Slot{Host: "host-1.example", Boot: "5d1b9f6e-0000-4000-8000-000000000001", Incarnation: 1<<64 - 1, Sequence: 3,
		AgentSequence: 4, Flags: model.SlotArmed | model.SlotIsolated, Running: 5, Lease: 20 * time.Second}
}

func fullRecord() model.LockRecord {
	return model.LockRecord{Lock: testVM, Epoch: 7, Owner: "host1", Boot: "b", Incarnation: 9, Nonce: "n",
		State: model.LockReleased, Reason: model.ReasonHAOff, MoveID: "m", Target: "t"}
}

func TestSlotRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := model.Slot{
			Host:        model.HostID(rapid.StringMatching(`[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`).Draw(t, "host")),
			Boot:        model.BootID(rapid.StringMatching(`[a-f0-9-]{1,64}`).Draw(t, "boot")),
			Incarnation: rapid.Uint64().Draw(t, "incarnation"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			AgentSequence: rapid.Uint64().Draw(t, "agent"), Flags: model.SlotFlags(rapid.Uint32().Draw(t, "flags")),
			Running: rapid.Uint64().Draw(t, "running"),
			Lease:   time.Duration(rapid.Uint32().Draw(t, "lease")) * time.Millisecond,
		}
		b, err := encodeSlot(want)
		if err != nil {
			t.Fatal(err)
		}
		got := decodeSlot(want.Host, b)
		if !got.Valid || got.Slot != want || got.Identity != identityOf(want, b) {
			t.Fatalf("%+v became %+v", want, got)
		}
		// Any single change is noticed.
		i := rapid.IntRange(0, SlotSize-1).Draw(t, "byte")
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "change"))
		if bad := decodeSlot(want.Host, b); bad.Valid || bad.Identity.Digest == got.Identity.Digest {
			t.Fatalf("a change of byte %d went unnoticed: %+v", i, bad)
		}
	})
}

// A write that was cut anywhere, in either order, never reads as a heartbeat.
func TestTornSlotIsNeverValid(t *testing.T) {
	older, newer := fullSlot(), fullSlot()
	newer.Sequence, newer.AgentSequence = older.Sequence+1, older.AgentSequence+1
	a, err := encodeSlot(older)
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodeSlot(newer)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 512; cut < SlotSize; cut += 512 {
		for name, torn := range map[string][]byte{
			"front": append(bytes.Clone(b[:cut]), a[cut:]...),
			"back":  append(bytes.Clone(a[:cut]), b[cut:]...),
		} {
			if r := decodeSlot(older.Host, torn); r.Valid || r.Damage != model.SlotTorn {
				t.Errorf("%s written up to %d reads %+v", name, cut, r)
			}
		}
	}
}

func TestSlotLayout(t *testing.T) {
	b, err := encodeSlot(fullSlot())
	if err != nil {
		t.Fatal(err)
	}
	// As documented in docs/protocol-datastore.md; changing it breaks hosts of
	// other versions.
	const want = "HANOKHB\x00\x01\x00\x0e\x24\x03\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00\x00\x00\x00\x00" +
		"\x04\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x20\x4e\x00\x00"
	if got := string(b[:len(want)]); got != want {
		t.Errorf("slot begins with %q, want %q", got, want)
	}
	if string(b[64:78]) != "host-1.example" || string(b[128:164]) != "5d1b9f6e-0000-4000-8000-000000000001" {
		t.Errorf("texts %q", b[64:192])
	}
	if !bytes.Equal(b[4072:4088], b[16:32]) {
		t.Error("the tail does not repeat incarnation and sequence")
	}
}

func TestEnvelopeText(t *testing.T) {
	data, err := seal(whatNote, model.PoweredOffNote{VM: testVM, LockEpoch: 4, Host: "host1"}, maxRecord)
	if err != nil {
		t.Fatal(err)
	}
	const want = "hanok poweredoff 1 74\n{\"vm\":\"6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55\",\"lockEpoch\":4,\"host\":\"host1\"}\ncrc32c "
	if !bytes.HasPrefix(data, []byte(want)) {
		t.Errorf("%q, want prefix %q", data, want)
	}
	var n model.PoweredOffNote
	for cut := range len(data) {
		if err := unseal(whatNote, data[:cut], &n); err == nil {
			t.Errorf("accepted when cut to %d bytes", cut)
		}
	}
	for i := range data {
		for bit := range 8 {
			bad := bytes.Clone(data)
			bad[i] ^= 1 << bit
			if err := unseal(whatNote, bad, &n); err == nil {
				t.Errorf("accepted with bit %d of byte %d flipped", bit, i)
			}
		}
	}
}

func FuzzDecodeSlot(f *testing.F) {
	valid, err := encodeSlot(fullSlot())
	if err != nil {
		f.Fatal(err)
	}
	h := Header{ID: "11111111-2222-4333-8444-555555555555", Cluster: "c1", Format: 1, Slots: 8, Generation: 2}
	f.Add(valid)
	f.Add(zeroBlock)
	f.Add(encodeRepairBlock(h))
	f.Add(encodeFileBlock(h))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, SlotSize)
		copy(b, in)
		for range 2 { // as it is, and with a correct checksum
			_ = checkFileBlock(b, h)
			r := decodeSlot("", b)
			if r.Valid == (r.Damage != "") {
				t.Fatalf("neither or both valid and damaged: %+v", r)
			}
			if r.Valid {
				again, err := encodeSlot(r.Slot)
				if err != nil {
					t.Fatalf("%+v cannot be written: %v", r.Slot, err)
				}
				if back := decodeSlot(r.Host, again); back.Slot != r.Slot {
					t.Fatalf("%+v became %+v", r.Slot, back.Slot)
				}
			}
			putCRC(b)
		}
	})
}

// fuzzEnvelope feeds a decoder raw bytes, and the same bytes as the content of
// a correct envelope.
func fuzzEnvelope(f *testing.F, what string, seed any, decode func(t *testing.T, data []byte) error) {
	valid, err := seal(what, seed, maxRecord)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid)
	f.Add([]byte("hanok " + what + " 1 0\n\ncrc32c 00000000\n"))
	f.Add([]byte("hanok " + what + " 99999999999999999999 -1\n"))
	f.Add([]byte(`{"epoch":18446744073709551616}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := decode(t, data); err != nil {
			var fault *fault
			if !errors.As(err, &fault) || fault.kind == "" || fault.kind == KindOther {
				t.Fatalf("unclassified: %v", err)
			}
		}
		if sealed, err := seal(what, rawJSON(data), maxRecord); err == nil {
			_ = decode(t, sealed)
		}
	})
}

// rawJSON is JSON text that is taken as it is when it is valid.
type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

// again checks that what was accepted survives being written again.
func again[T any](t *testing.T, what string, v T) {
	data, err := seal(what, v, maxList)
	if err != nil {
		t.Fatalf("%+v cannot be written: %v", v, err)
	}
	var back T
	if err := unseal(what, data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(v, back, cmp.AllowUnexported(slotClaim{})); diff != "" {
		t.Fatal(diff)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	fuzzEnvelope(f, whatLock, fullRecord(), func(t *testing.T, data []byte) error {
		rec, err := decodeRecord(testVM, 7, data)
		if err == nil {
			if err := validateRecord(rec); err != nil || rec.Epoch != 7 || rec.Lock != testVM {
				t.Fatalf("accepted %+v: %v", rec, err)
			}
			again(t, whatLock, rec)
		}
		return err
	})
}

func FuzzDecodeList(f *testing.F) {
	list := model.ProtectedList{Term: 3, Version: 1, VMs: []model.ProtectedVM{{ID: testVM, Name: "web", Down: &model.DownState{Attempts: 1}}}}
	fuzzEnvelope(f, whatList, list, func(t *testing.T, data []byte) error {
		l, err := decodeList(3, data)
		if err == nil && l.Term != 3 {
			t.Fatalf("accepted %+v", l)
		}
		return err
	})
}

func FuzzDecodeHeader(f *testing.F) {
	h := Header{ID: "11111111-2222-4333-8444-555555555555", Cluster: "c1", Format: 1, Slots: 8, Generation: 1}
	fuzzEnvelope(f, whatHeader, h, func(t *testing.T, data []byte) error {
		h, err := decodeHeader(data)
		if err == nil {
			if err := h.validate(); err != nil {
				t.Fatalf("accepted %+v: %v", h, err)
			}
			again(t, whatHeader, h)
		}
		return err
	})
}

func FuzzDecodeClaim(f *testing.F) {
	fuzzEnvelope(f, whatClaim, slotClaim{Slot: 3, Host: "host1", Machine: "m"}, func(t *testing.T, data []byte) error {
		c, err := decodeClaim(3, data)
		if err == nil && (c.index != 3 || c.Host.Validate() != nil) {
			t.Fatalf("accepted %+v", c)
		}
		return err
	})
}

func FuzzDecodeNote(f *testing.F) {
	fuzzEnvelope(f, whatNote, model.PoweredOffNote{VM: testVM, LockEpoch: 4, Host: "host1"}, func(t *testing.T, data []byte) error {
		n, err := decodeNote(testVM, data)
		if err == nil {
			if err := validateNote(n); err != nil || n.VM != testVM {
				t.Fatalf("accepted %+v: %v", n, err)
			}
			again(t, whatNote, n)
		}
		return err
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("36 35 0:42 / /srv/ds1 rw,relatime - nfs4 server:/x rw,lookupcache=none,actimeo=0\n"))
	f.Add([]byte("36 35 0:42 -"))
	f.Fuzz(func(_ *testing.T, data []byte) { _ = checkNFSOptions(data, "0:42") })
}

func TestNFSOptions(t *testing.T) {
	const before = "35 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
	line := func(options string) string {
		return before + "36 35 0:42 / /srv/ds1 rw,relatime shared:2 master:1 - nfs4 server:/x " + options + "\n"
	}
	for info, want := range map[string]Kind{
		line("rw,vers=4.2,lookupcache=none,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0"): "",
		line("rw,lookupcache=none,actimeo=0"):                                            "",
		line("rw,lookupcache=none,noac"):                                                 "",
		line("rw,lookupcache=none"):                                                      KindUnsupported,
		line("rw,actimeo=0"):                                                             KindUnsupported,
		line("rw,lookupcache=positive,actimeo=0"):                                        KindUnsupported,
		line("rw,lookupcache=none,acregmin=0,acregmax=0,acdirmin=0,acdirmax=60"):         KindUnsupported,
		before: KindUnsupported,
		"":     KindUnsupported,
	} {
		if got := KindOf(wrap("check", "mount", checkNFSOptions([]byte(info), "0:42"))); got != want {
			t.Errorf("kind %q, want %q for:\n%s", got, want, info)
		}
	}
}

func TestErrorsAreOneLineAndClassified(t *testing.T) {
	for errno, want := range map[unix.Errno]Kind{
		unix.EIO: KindLost, unix.ENXIO: KindLost, unix.ENODEV: KindLost, unix.ESTALE: KindLost, unix.EREMOTEIO: KindLost,
		unix.ESHUTDOWN: KindLost, unix.ENOTCONN: KindLost, unix.ETIMEDOUT: KindUnreachable, unix.EHOSTUNREACH: KindUnreachable, unix.ENOLINK: KindUnreachable, unix.ENOSPC: KindFull, unix.EDQUOT: KindFull, unix.EROFS: KindReadOnly,
		unix.EACCES: KindPermission, unix.EPERM: KindPermission, unix.ENOENT: KindMissing, unix.EINVAL: KindOther,
	} {
		err := wrap("write heartbeat", "slot 3 of /srv/ds1", within("heartbeats", errno))
		if got := KindOf(err); got != want {
			t.Errorf("%v is %q, want %q", errno, got, want)
		}
		if !errors.Is(err, errno) {
			t.Errorf("%v is not kept in %v", errno, err)
		}
		if bytes.ContainsAny([]byte(err.Error()), "\n") {
			t.Errorf("more than one line: %q", err)
		}
	}
	const want = "write heartbeat slot 3 of /srv/ds1: lost: heartbeats: input/output error; check the storage path and its mount"
	if got := wrap("write heartbeat", "slot 3 of /srv/ds1", within("heartbeats", unix.EIO)).Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if KindOf(nil) != "" || KindOf(errors.New("x")) != KindOther {
		t.Error("kinds of foreign errors")
	}
}

func TestFirstEpochGrowsWithEachRepair(t *testing.T) {
	last := model.Epoch(0)
	for _, generation := range []uint64{1, 2, 3, 1_800_000_000, 1_800_000_001, maxGeneration} {
		e := Header{Generation: generation}.FirstEpoch()
		if e <= last || e > 1<<53+1 {
			t.Errorf("generation %d begins with epoch %d after %d", generation, e, last)
		}
		last = e
	}
}
