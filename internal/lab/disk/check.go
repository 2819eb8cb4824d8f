package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// maxViolations bounds the list of a report; one is enough to fail.
const maxViolations = 20

// Report is what a disk says about its writers.
type Report struct {
	// Records is the number of valid records.
	Records uint64 `json:"records"`
	// Epoch and Counter are those of the last record.
	Epoch   uint64 `json:"epoch"`
	Counter uint64 `json:"counter"`
	// Violations are rules that the disk breaks, at most 20.
	Violations []string `json:"violations,omitempty"`
}

// Intact tells whether no rule is broken.
func (r Report) Intact() bool { return len(r.Violations) == 0 }

// CheckFile checks a disk image. The guest may be running.
func CheckFile(path string) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, err
	}
	defer f.Close()
	r, err := Check(f)
	if err != nil {
		return Report{}, fmt.Errorf("check %s: %w", path, err)
	}
	return r, nil
}

// Check reads records until a chunk without any.
func Check(in io.Reader) (Report, error) {
	c := checker{}
	err := scan(in, c.record, c.invalid)
	return c.report, err
}

// End returns the last valid record and its checksum; the zero Record with
// Epoch 0 if there is none.
func End(in io.Reader) (Record, uint32, error) {
	var last Record
	var sum uint32
	err := scan(in, func(_ uint64, r Record, s uint32) { last, sum = r, s }, func(uint64, error) {})
	return last, sum, err
}

// chunk is how much is read at once and, when it holds no record, where a scan
// ends: more than any guest can have in flight.
const chunk = 256 << 10

func scan(in io.Reader, record func(slot uint64, r Record, sum uint32), invalid func(slot uint64, err error)) error {
	buf := make([]byte, chunk)
	for slot := uint64(0); ; {
		n, err := io.ReadFull(in, buf)
		any := false
		for off := 0; off+Size <= n; off += Size {
			r, sum, err := Decode(buf[off:])
			if err != nil {
				invalid(slot, err)
			} else {
				any = true
				record(slot, r, sum)
			}
			slot++
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		case !any:
			return nil
		}
	}
}

type checker struct {
	report Report
	last   Record
	sum    uint32
	hole   error // the first invalid slot since the last record
	holeAt uint64
}

func (c *checker) violation(format string, args ...any) {
	if len(c.report.Violations) < maxViolations {
		c.report.Violations = append(c.report.Violations, fmt.Sprintf(format, args...))
	}
}

func (c *checker) invalid(slot uint64, err error) {
	if c.hole == nil {
		c.hole, c.holeAt = err, slot
	}
}

func (c *checker) record(slot uint64, r Record, sum uint32) {
	if c.hole != nil {
		c.violation("slot %d: %v, although records follow", c.holeAt, c.hole)
		c.hole = nil
	}
	p := c.last
	switch {
	case r.Slot != slot:
		c.violation("slot %d: holds the record of slot %d", slot, r.Slot)
	case r.Epoch < p.Epoch:
		c.violation("slot %d: epoch %d wrote after epoch %d had begun: two writers", slot, r.Epoch, p.Epoch)
	case r.Epoch == p.Epoch && r.Counter != p.Counter+1:
		c.violation("slot %d: epoch %d goes from counter %d to %d: a write is lost or overwritten", slot, r.Epoch, p.Counter, r.Counter)
	case r.Epoch > p.Epoch && r.Counter != 1:
		c.violation("slot %d: epoch %d begins with counter %d: its first writes are overwritten", slot, r.Epoch, r.Counter)
	case r.Epoch > p.Epoch+1:
		c.violation("slot %d: epoch %d follows epoch %d: an epoch is lost", slot, r.Epoch, p.Epoch)
	case r.Previous != c.sum:
		c.violation("slot %d: the record before is not the one that its writer saw: overwritten", slot)
	}
	c.last, c.sum = r, sum
	c.report.Records++
	c.report.Epoch, c.report.Counter = r.Epoch, r.Counter
}
