package datastore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// slotClaim is the content of slots/<index>: which installation may write the
// slot. A claim is made once and never changes.
type slotClaim struct {
	Slot    int          `json:"slot"`
	Host    model.HostID `json:"host"`
	Machine string       `json:"machine"`

	// index is the number in the file's name. Host is empty when the file is
	// damaged; damage then says how.
	index  int
	damage error
}

const maxMachine = 128

func claimName(index int) string { return fmt.Sprintf("%04d", index) }

// parseClaimName returns false for names that are no claims.
func parseClaimName(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0 && n < MaxSlots && name == claimName(n)
}

func decodeClaim(index int, data []byte) (slotClaim, error) {
	var c slotClaim
	if err := unseal(whatClaim, data, &c); err != nil {
		return slotClaim{}, err
	}
	if err := c.Host.Validate(); err != nil {
		return slotClaim{}, &fault{kind: KindCorrupt, cause: "impossible value", err: err}
	}
	if c.Slot != index {
		return slotClaim{}, faultf(KindForeign, "it claims slot %d", c.Slot)
	}
	c.index = index
	return c, nil
}

// claimCache keeps the claims as long as the directory does not change. A
// directory stamp is trusted only from settleTime after it was first seen: two
// changes within the file system's time granularity leave the same stamp.
type claimCache struct {
	claims    []slotClaim
	stamp     dirStamp
	firstSeen time.Time // monotonic
	settled   bool
}

type dirStamp struct {
	dev, ino     uint64
	mtime, ctime unix.Timespec
}

const settleTime = 3 * time.Second

func stampOf(fd int) (dirStamp, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return dirStamp{}, err
	}
	return dirStamp{dev: st.Dev, ino: st.Ino, mtime: st.Mtim, ctime: st.Ctim}, nil
}

// readClaims returns all claims in the order of their slots, from the cache
// when the directory has not changed.
func (p *Posix) readClaims(r *root) ([]slotClaim, error) {
	dir, err := r.subdir(nameSlots)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	now := time.Now()
	stamp, err := stampOf(dir)
	if err != nil {
		return nil, sysFault("stat "+nameSlots, err)
	}
	p.mu.Lock()
	cache := p.claims
	p.mu.Unlock()
	if cache.settled && cache.stamp == stamp {
		return cache.claims, nil
	}
	claims, err := listClaims(dir, r.header.Slots)
	if err != nil {
		return nil, err
	}
	next := claimCache{claims: claims, stamp: stamp, firstSeen: now}
	if cache.stamp == stamp {
		next.firstSeen = cache.firstSeen
		next.settled = now.Sub(cache.firstSeen) >= settleTime
	}
	p.mu.Lock()
	p.claims = next
	p.mu.Unlock()
	return claims, nil
}

// listClaims reads slots/ afresh. A damaged claim is returned with its damage:
// it must not hide the others.
func listClaims(dir, slots int) ([]slotClaim, error) {
	names, err := listNames(dir, false)
	if err != nil {
		return nil, within("list "+nameSlots, err)
	}
	var out []slotClaim
	for _, name := range names {
		index, ok := parseClaimName(name)
		if !ok || index >= slots {
			continue
		}
		data, err := readAt(dir, name, maxRecord)
		c := slotClaim{index: index}
		if err == nil {
			if d, derr := decodeClaim(index, data); derr == nil {
				c = d
			} else {
				c.damage = within(filepath.Join(nameSlots, name), derr)
			}
		} else if f := within(filepath.Join(nameSlots, name), err); kindIn(f, KindMissing) {
			continue // removed by an administrator meanwhile
		} else if kindIn(f, KindCorrupt) {
			c.damage = f
		} else {
			return nil, f
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b slotClaim) int { return a.index - b.index })
	return out, nil
}

func kindIn(err error, kinds ...Kind) bool {
	f, ok := err.(*fault)
	return ok && slices.Contains(kinds, f.kind)
}

// checkClaim verifies that the slot was claimed for host.
func checkClaim(r *root, index int, host model.HostID) error {
	dir, err := r.subdir(nameSlots)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	data, err := readAt(dir, claimName(index), maxRecord)
	if kindOf(err) == KindMissing {
		return faultf(KindMissing, "slot %d is not claimed", index).advise("claim a slot again")
	}
	if err != nil {
		return within("slot claim", err)
	}
	c, err := decodeClaim(index, data)
	if err != nil {
		return within("slot claim", err)
	}
	if c.Host != host {
		return faultf(KindMissing, "slot %d is claimed by host %s, not %s", index, c.Host, host).advise("claim a slot again")
	}
	return nil
}

func validateClaimer(host model.HostID, machine string) error {
	if err := host.Validate(); err != nil {
		return &fault{kind: KindInvalid, cause: "host", err: err}
	}
	if machine == "" || len(machine) > maxMachine {
		return faultf(KindInvalid, "machine id of %d bytes, must be 1 to %d", len(machine), maxMachine)
	}
	return nil
}

// ClaimSlot implements Driver.
func (p *Posix) ClaimSlot(host model.HostID, machine string) (int, error) {
	index, err := p.claimSlot(host, machine)
	return index, wrap("claim slot", fmt.Sprintf("for %s on %s", host, p.path), err)
}

func (p *Posix) claimSlot(host model.HostID, machine string) (int, error) {
	if err := validateClaimer(host, machine); err != nil {
		return -1, err
	}
	r, err := p.enter()
	if err != nil {
		return -1, err
	}
	defer r.close()
	dir, err := r.subdir(nameSlots)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	// Claims only accumulate, and everybody takes the lowest free slot: of two
	// claimers of one name the slower one meets the faster one's file, lists
	// again and finds the name. Each round somebody gains a slot.
	for range r.header.Slots + 1 {
		claims, err := listClaims(dir, r.header.Slots)
		if err != nil {
			return -1, err
		}
		if index, found, err := ownClaim(claims, host, machine); found || err != nil {
			return index, err
		}
		free := lowestFree(claims)
		if free >= r.header.Slots {
			return -1, faultf(KindFull, "all %d slots are claimed", r.header.Slots).
				advise("remove the slots of hosts that left the cluster with `hanok datastore repair --forget-host`")
		}
		data, err := seal(whatClaim, slotClaim{Slot: free, Host: host, Machine: machine}, maxRecord)
		if err != nil {
			return -1, err
		}
		err = p.withRoom(r, nil, func() error { return linkNew(dir, claimName(free), string(host), data) })
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, within("link slot claim", err)
		}
	}
	return -1, faultf(KindOther, "other hosts took every slot tried").advise("try again")
}

// ownClaim finds host's claim: an error if another installation made it, or if
// it cannot be told because a claim is damaged.
func ownClaim(claims []slotClaim, host model.HostID, machine string) (index int, found bool, err error) {
	for _, c := range claims {
		if c.Host != host || c.damage != nil {
			continue
		}
		if c.Machine != machine {
			return -1, false, faultf(KindConflict, "slot %d was claimed for this name by machine %s, this is machine %s", c.index, c.Machine, machine).
				advise("two machines use one host name; if this one was re-installed, `hanok datastore repair --forget-host`")
		}
		return c.index, true, nil
	}
	for _, c := range claims {
		if c.damage != nil {
			return -1, false, c.damage
		}
	}
	return -1, false, nil
}

func lowestFree(claims []slotClaim) int {
	free := 0
	for _, c := range claims {
		if c.index == free {
			free++
		}
	}
	return free
}

// linkNew publishes data under a name that must not exist: the file appears
// complete or not at all. EEXIST if the name is taken.
func linkNew(dir int, name, tag string, data []byte) error {
	tmp := tempPrefix + name + "." + tag + "." + randomHex(8)
	if err := writeTemp(dir, tmp, data); err != nil {
		return err
	}
	err := linkTemp(dir, tmp, name)
	if err == nil {
		err = fsync(dir)
	}
	_ = unlinkAt(dir, tmp) // what stays behind is removed by the next prune
	return err
}

// linkTemp gives the temporary file its final name; EEXIST if that is taken.
func linkTemp(dir int, tmp, name string) error {
	err := retry(func() error { return unix.Linkat(dir, tmp, dir, name, 0) })
	if errors.Is(err, unix.ENOENT) {
		// Somebody pruned the temporary file, which is done when the name is
		// taken. If the directory itself is gone, the next listing says so.
		return unix.EEXIST
	}
	return err
}
