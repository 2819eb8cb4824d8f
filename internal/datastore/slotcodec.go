package datastore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"

	"hanok.dev/hanok/internal/model"
)

// SlotSize is the size of a heartbeat slot in bytes: the largest unit that
// O_DIRECT needs on common devices, so that no two hosts share a sector.
const SlotSize = 4096

// Layout of a block of the heartbeats file, little endian. The sequence and
// the incarnation are repeated at the end: where they differ from the start, a
// write was cut in two.
const (
	slotMagic   = "HANOKHB\x00" // a host's heartbeat
	fileMagic   = "HANOKHF\x00" // block 0: which datastore the file belongs to
	repairMagic = "HANOKRP\x00" // a slot that Repair reset

	offMagic       = 0
	offVersion     = 8  // u16
	offHostLen     = 10 // u8
	offBootLen     = 11 // u8
	offFlags       = 12 // u32
	offIncarnation = 16 // u64
	offSequence    = 24 // u64
	offAgentSeq    = 32 // u64
	offRunning     = 40 // u64
	offLease       = 48 // u32, milliseconds
	offHost        = 64 // 64 bytes, zero padded
	offBoot        = 128
	offTailInc     = 4072 // u64
	offTailSeq     = 4080 // u64
	offCRC         = 4092 // u32, CRC32C of bytes 0 to 4091

	maxText = 64
)

// encodeSlot fills a block of SlotSize bytes.
func encodeSlot(s model.Slot) ([]byte, error) {
	if err := s.Host.Validate(); err != nil {
		return nil, &fault{kind: KindInvalid, cause: "slot", err: err}
	}
	if len(s.Boot) == 0 || len(s.Boot) > maxText {
		return nil, faultf(KindInvalid, "slot: boot id of %d bytes, must be 1 to %d", len(s.Boot), maxText)
	}
	if s.Lease < 0 || s.Lease%time.Millisecond != 0 || s.Lease/time.Millisecond > 1<<32-1 {
		return nil, faultf(KindInvalid, "slot: lease %v must be whole milliseconds", s.Lease)
	}
	b := make([]byte, SlotSize)
	le := binary.LittleEndian
	copy(b[offMagic:], slotMagic)
	le.PutUint16(b[offVersion:], formatVersion)
	b[offHostLen] = byte(len(s.Host))
	b[offBootLen] = byte(len(s.Boot))
	le.PutUint32(b[offFlags:], uint32(s.Flags))
	le.PutUint64(b[offIncarnation:], s.Incarnation)
	le.PutUint64(b[offSequence:], s.Sequence)
	le.PutUint64(b[offAgentSeq:], s.AgentSequence)
	le.PutUint64(b[offRunning:], s.Running)
	le.PutUint32(b[offLease:], uint32(s.Lease/time.Millisecond))
	copy(b[offHost:], s.Host)
	copy(b[offBoot:], s.Boot)
	le.PutUint64(b[offTailInc:], s.Incarnation)
	le.PutUint64(b[offTailSeq:], s.Sequence)
	putCRC(b)
	return b, nil
}

func putCRC(b []byte) {
	binary.LittleEndian.PutUint32(b[offCRC:], crc32.Checksum(b[:offCRC], castagnoli))
}

func crcOK(b []byte) bool {
	return binary.LittleEndian.Uint32(b[offCRC:]) == crc32.Checksum(b[:offCRC], castagnoli)
}

var zeroBlock = make([]byte, SlotSize)

// decodeSlot reads a block of SlotSize bytes as the slot of host; with host ""
// any host is accepted.
func decodeSlot(host model.HostID, b []byte) model.SlotReading {
	r := model.SlotReading{Host: host, Identity: model.SlotIdentity{Digest: digestOf(b)}}
	le := binary.LittleEndian
	magic := string(b[offMagic : offMagic+8])
	switch {
	case bytes.Equal(b, zeroBlock):
		r.Damage = model.SlotEmpty
		return r
	case magic == repairMagic && crcOK(b):
		r.Damage = model.SlotRepaired
		return r
	case !crcOK(b):
		r.Damage = model.SlotCorrupt
		sameTail := bytes.Equal(b[offIncarnation:offIncarnation+16], b[offTailInc:offTailInc+16])
		if magic == slotMagic && !sameTail {
			r.Damage = model.SlotTorn
		}
		return r
	case magic != slotMagic:
		r.Damage = model.SlotForeign
		return r
	case le.Uint16(b[offVersion:]) > formatVersion:
		r.Damage = model.SlotFuture
		return r
	}
	hostLen, bootLen := int(b[offHostLen]), int(b[offBootLen])
	if le.Uint16(b[offVersion:]) == 0 || hostLen >= maxText || bootLen == 0 || bootLen > maxText {
		r.Damage = model.SlotCorrupt
		return r
	}
	s := model.Slot{
		Host:          model.HostID(b[offHost : offHost+hostLen]),
		Boot:          model.BootID(b[offBoot : offBoot+bootLen]),
		Incarnation:   le.Uint64(b[offIncarnation:]),
		Sequence:      le.Uint64(b[offSequence:]),
		AgentSequence: le.Uint64(b[offAgentSeq:]),
		Flags:         model.SlotFlags(le.Uint32(b[offFlags:])),
		Running:       le.Uint64(b[offRunning:]),
		Lease:         time.Duration(le.Uint32(b[offLease:])) * time.Millisecond,
	}
	if s.Host.Validate() != nil {
		r.Damage = model.SlotCorrupt
		return r
	}
	if host != "" && s.Host != host {
		r.Damage = model.SlotForeign
		return r
	}
	r.Host, r.Slot, r.Valid = s.Host, s, true
	r.Identity = identityOf(s, b)
	return r
}

func identityOf(s model.Slot, b []byte) model.SlotIdentity {
	return model.SlotIdentity{Boot: s.Boot, Incarnation: s.Incarnation, Sequence: s.Sequence, Digest: digestOf(b)}
}

// digestOf is the first half of the SHA-256 of a block, in hex.
func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// encodeFileBlock makes block 0 of the heartbeats file.
func encodeFileBlock(h Header) []byte { return encodeIDBlock(fileMagic, h) }

// encodeRepairBlock makes a slot that the next writer may overwrite whatever
// it remembers.
func encodeRepairBlock(h Header) []byte { return encodeIDBlock(repairMagic, h) }

func encodeIDBlock(magic string, h Header) []byte {
	b := make([]byte, SlotSize)
	copy(b[offMagic:], magic)
	binary.LittleEndian.PutUint16(b[offVersion:], formatVersion)
	binary.LittleEndian.PutUint64(b[offIncarnation:], h.Generation)
	binary.LittleEndian.PutUint64(b[offSequence:], uint64(h.Slots))
	copy(b[offHost:offHost+maxText], h.ID)
	putCRC(b)
	return b
}

// checkFileBlock verifies block 0 against the header file.
func checkFileBlock(b []byte, h Header) error {
	switch {
	case !crcOK(b):
		return faultf(KindCorrupt, "the first block of the heartbeats file has a wrong checksum").advise(repairRemedy)
	case string(b[:8]) != fileMagic:
		return faultf(KindForeign, "the heartbeats file is not one of Hanok's").advise(repairRemedy)
	case binary.LittleEndian.Uint16(b[offVersion:]) > formatVersion:
		return faultf(KindFuture, "the heartbeats file has format %d, this program knows up to %d",
			binary.LittleEndian.Uint16(b[offVersion:]), formatVersion).advise("upgrade hanok on this host")
	}
	if got := string(bytes.TrimRight(b[offHost:offHost+maxText], "\x00")); got != string(h.ID) {
		return faultf(KindForeign, "the heartbeats file belongs to datastore %s, the header says %s", got, h.ID).advise(repairRemedy)
	}
	if got := binary.LittleEndian.Uint64(b[offSequence:]); got != uint64(h.Slots) {
		return faultf(KindCorrupt, "the heartbeats file was made for %d slots, the header says %d", got, h.Slots).advise(repairRemedy)
	}
	return nil
}

const repairRemedy = "see `hanok datastore check` and `hanok datastore repair`"

func describeIdentity(r model.SlotReading) string {
	if !r.Valid {
		return fmt.Sprintf("%s content (digest %.8s)", r.Damage, r.Identity.Digest)
	}
	return fmt.Sprintf("sequence %d of boot %s (digest %.8s)", r.Slot.Sequence, r.Slot.Boot, r.Identity.Digest)
}
