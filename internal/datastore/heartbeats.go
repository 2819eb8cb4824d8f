package datastore

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// heartbeats is the opened heartbeats file: block 0 says whose it is, slot i
// is block i+1.
type heartbeats struct {
	fd       int
	buffered bool
}

func (h *heartbeats) close() { _ = unix.Close(h.fd) }

// openHeartbeats opens the file with mode O_RDONLY or O_RDWR for in-place
// access and verifies block 0. A file system that refuses O_DIRECT, on open or
// on the first read, is accessed with O_SYNC and without trusting cached pages
// for longer than a read.
func (p *Posix) openHeartbeats(r *root, mode int) (*heartbeats, error) {
	buffered := p.buffered.Load() == 2
	hb, err := openHeartbeatsAs(r, mode, buffered)
	if !buffered && errors.Is(err, unix.EINVAL) {
		buffered = true
		hb, err = openHeartbeatsAs(r, mode, buffered)
	}
	if err != nil {
		if kindOf(err) == KindMissing {
			return nil, faultf(KindCorrupt, "the heartbeats file was removed").advise(repairRemedy)
		}
		return nil, within(nameHeartbeats, err)
	}
	if p.opts.Direct == DirectAuto {
		state := int32(1)
		if buffered {
			state = 2
		}
		p.buffered.Store(state)
	}
	return hb, nil
}

func openHeartbeatsAs(r *root, mode int, buffered bool) (*heartbeats, error) {
	flags := unix.O_DIRECT | unix.O_DSYNC
	if buffered {
		flags = unix.O_SYNC
	}
	fd, err := openAt(r.fd, nameHeartbeats, mode|flags, 0)
	if err != nil {
		return nil, err
	}
	hb := &heartbeats{fd: fd, buffered: buffered}
	block, err := hb.read(0, 1)
	if err == nil {
		err = checkFileBlock(block, r.header)
	}
	if err == nil {
		err = hb.checkSize(r.header)
	}
	if err != nil {
		hb.close()
		return nil, err
	}
	return hb, nil
}

func (h *heartbeats) checkSize(header Header) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(h.fd, &st) }); err != nil {
		return err
	}
	if want := int64(header.Slots+1) * SlotSize; st.Size < want {
		return faultf(KindShort, "the heartbeats file has %d of %d bytes", st.Size, want).advise(repairRemedy)
	}
	return nil
}

// read returns n blocks from block first on.
func (h *heartbeats) read(first, n int) ([]byte, error) {
	buf := alignedBuffer(n * SlotSize)
	off := int64(first) * SlotSize
	if h.buffered {
		_ = unix.Fadvise(h.fd, off, int64(len(buf)), unix.FADV_DONTNEED)
	}
	got, err := preadFull(h.fd, buf, off)
	if err != nil {
		return nil, err
	}
	if got < len(buf) {
		return nil, faultf(KindShort, "the heartbeats file ends after %d bytes", off+int64(got)).advise(repairRemedy)
	}
	return buf, nil
}

// write overwrites one block in place; it is on stable storage on return.
func (h *heartbeats) write(block int, data []byte) error {
	buf := alignedBuffer(SlotSize)
	copy(buf, data)
	var n int
	err := retry(func() (err error) { n, err = unix.Pwrite(h.fd, buf, int64(block)*SlotSize); return err })
	if err == nil && n != SlotSize {
		err = faultf(KindTorn, "only %d of %d bytes were written", n, SlotSize)
	}
	if err == nil && h.buffered {
		_ = unix.Fadvise(h.fd, int64(block)*SlotSize, SlotSize, unix.FADV_DONTNEED)
	}
	return err
}

// SlotIdentityOf implements Driver. The identity of a slot that cannot be
// written (see model.HostID.Validate) is zero.
func (p *Posix) SlotIdentityOf(next model.Slot) model.SlotIdentity {
	b, err := encodeSlot(next)
	if err != nil {
		return model.SlotIdentity{}
	}
	return identityOf(next, b)
}

// WriteSlot implements Driver.
func (p *Posix) WriteSlot(index int, known []string, next model.Slot) (model.SlotIdentity, error) {
	id, err := p.writeSlot(index, known, next)
	return id, wrap("write heartbeat", fmt.Sprintf("slot %d of %s", index, p.path), err)
}

func (p *Posix) writeSlot(index int, known []string, next model.Slot) (model.SlotIdentity, error) {
	block, err := encodeSlot(next)
	if err != nil {
		return model.SlotIdentity{}, err
	}
	r, err := p.enter()
	if err != nil {
		return model.SlotIdentity{}, err
	}
	defer r.close()
	if index < 0 || index >= r.header.Slots {
		return model.SlotIdentity{}, faultf(KindInvalid, "the datastore has slots 0 to %d", r.header.Slots-1)
	}
	hb, err := p.openHeartbeats(r, unix.O_RDWR)
	if err != nil {
		return model.SlotIdentity{}, err
	}
	defer hb.close()
	old, err := hb.read(index+1, 1)
	if err != nil {
		return model.SlotIdentity{}, err
	}
	found := decodeSlot(next.Host, old)
	if !slices.Contains(known, found.Identity.Digest) {
		// Nothing remembered vouches for this slot: the claim must.
		if err := checkClaim(r, index, next.Host); err != nil {
			return model.SlotIdentity{}, err
		}
		if len(known) > 0 && found.Damage != model.SlotRepaired {
			return model.SlotIdentity{}, faultf(KindChanged, "the slot holds %s, not what this host wrote last", describeIdentity(found)).
				advise("the datastore was rolled back, replaced or cloned: " + repairRemedy)
		}
	}
	if err := hb.write(index+1, block); err != nil {
		return model.SlotIdentity{}, err
	}
	return identityOf(next, block), nil
}

// ReadSlots implements Driver.
func (p *Posix) ReadSlots() ([]model.SlotReading, error) {
	out, err := p.readSlots("")
	return out, wrap("read heartbeats", p.path, err)
}

// ReadSlot implements Driver.
func (p *Posix) ReadSlot(host model.HostID) (model.SlotReading, error) {
	out, err := p.readSlots(host)
	if err == nil && len(out) == 0 {
		err = faultf(KindMissing, "host %s has claimed no slot", host)
	}
	if err != nil {
		return model.SlotReading{}, wrap("read heartbeat", fmt.Sprintf("of %s on %s", host, p.path), err)
	}
	return out[0], nil
}

// readChunk bounds the memory of one read of the heartbeats file.
const readChunk = 64

// readSlots reads the claimed slots, or only that of host.
func (p *Posix) readSlots(host model.HostID) ([]model.SlotReading, error) {
	r, err := p.enter()
	if err != nil {
		return nil, err
	}
	defer r.close()
	claims, err := p.readClaims(r)
	if err != nil {
		return nil, err
	}
	hb, err := p.openHeartbeats(r, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer hb.close()
	var out []model.SlotReading
	if host != "" {
		claims = slices.DeleteFunc(slices.Clone(claims), func(c slotClaim) bool { return c.Host != host })
	}
	for len(claims) > 0 {
		first := claims[0].index
		n := 1
		for n < len(claims) && claims[n].index < first+readChunk {
			n++
		}
		blocks, err := hb.read(first+1, claims[n-1].index-first+1)
		if err != nil {
			return nil, err
		}
		for _, c := range claims[:n] {
			off := (c.index - first) * SlotSize
			reading := decodeSlot(c.Host, blocks[off:off+SlotSize])
			if reading.Host != "" {
				out = append(out, reading)
			}
		}
		claims = claims[n:]
	}
	return out, nil
}
