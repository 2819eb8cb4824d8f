// Package disk is the record that lab guests append to their data disk, and
// the check that shows whether two writers or a lost write ever touched it.
//
// Records lie one after the other from the start of the disk. A guest that
// boots looks for the last valid record and goes on behind it with the next
// epoch. The image of a disk that only one guest at a time has written, and
// that lost no acknowledged write, satisfies every rule of Check.
package disk

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Size is the size of a record in bytes, one sector, so that it is written
// whole or not at all.
const Size = 512

const magic = "HANOKLR1"

// Record is one entry.
type Record struct {
	// Slot is the record's own position, in records from the start of the disk.
	Slot uint64
	// Epoch counts the boots that wrote, from 1.
	Epoch uint64
	// Counter counts the records of an epoch, from 1.
	Counter uint64
	// Monotonic is the guest's uptime in nanoseconds.
	Monotonic uint64
	// Previous is the checksum of the record before; 0 in the first.
	Previous uint32
}

var table = crc32.MakeTable(crc32.Castagnoli)

var (
	errForeign  = errors.New("not a record")
	errChecksum = errors.New("wrong checksum")
)

// Encode writes the record to buf, at least Size bytes, and returns its
// checksum.
func (r Record) Encode(buf []byte) uint32 {
	clear(buf[:Size])
	copy(buf, magic)
	for i, v := range []uint64{r.Slot, r.Epoch, r.Counter, r.Monotonic, uint64(r.Previous)} {
		binary.LittleEndian.PutUint64(buf[8+8*i:], v)
	}
	sum := crc32.Checksum(buf[:Size-4], table)
	binary.LittleEndian.PutUint32(buf[Size-4:], sum)
	return sum
}

// Decode reads a record and its checksum from buf, at least Size bytes.
func Decode(buf []byte) (Record, uint32, error) {
	if string(buf[:8]) != magic {
		return Record{}, 0, errForeign
	}
	sum := binary.LittleEndian.Uint32(buf[Size-4:])
	if crc32.Checksum(buf[:Size-4], table) != sum {
		return Record{}, 0, errChecksum
	}
	get := func(i int) uint64 { return binary.LittleEndian.Uint64(buf[8+8*i:]) }
	return Record{get(0), get(1), get(2), get(3), uint32(get(4))}, sum, nil
}
