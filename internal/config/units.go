package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// maxDuration bounds every duration of the file.
const maxDuration = 30 * 24 * time.Hour

// ParseDuration reads a duration such as 500ms, 5s, 10m or 1h30m, from 0 to 30
// days. A plain 0 needs no unit.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		if _, e := strconv.ParseFloat(s, 64); e == nil {
			return 0, fmt.Errorf("%q has no unit; write for example %ss", s, s)
		}
		return 0, fmt.Errorf("%q is no duration; write for example 500ms, 5s or 10m", s)
	case d < 0 || d > maxDuration:
		return 0, fmt.Errorf("%s is out of range; 0s to 720h", s)
	}
	return d, nil
}

// FormatDuration writes a duration as ParseDuration reads it, without zero
// parts.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

type unit struct {
	name   string
	factor float64
}

var (
	memoryUnits = []unit{{"KiB", 1.0 / 1024}, {"MiB", 1}, {"GiB", 1024}, {"TiB", 1024 * 1024}}
	clockUnits  = []unit{{"MHz", 1}, {"GHz", 1000}}
)

// ParseMemory reads an amount of memory such as 512MiB or 16GiB: a whole number
// of MiB, from 0 to 1 PiB.
func ParseMemory(s string) (model.MiB, error) {
	v, err := parseUnit(s, memoryUnits, "512MiB or 16GiB", 1<<30)
	return model.MiB(v), err
}

// ParseClock reads an amount of processor such as 500MHz or 2.5GHz: a whole
// number of MHz, from 0 to 1 PHz.
func ParseClock(s string) (model.MHz, error) {
	v, err := parseUnit(s, clockUnits, "500MHz or 2.5GHz", 1e9)
	return model.MHz(v), err
}

func parseUnit(s string, units []unit, example string, highest float64) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		v := f * u.factor
		switch {
		case err != nil || math.IsNaN(v):
			return 0, fmt.Errorf("%q is no amount; write for example %s", s, example)
		case v < 0 || v > highest:
			return 0, fmt.Errorf("%q is out of range", s)
		case v != math.Trunc(v):
			return 0, fmt.Errorf("%q is no whole number of %s; round it", s, wholeUnit(units))
		}
		return int64(v), nil
	}
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		return 0, fmt.Errorf("%q has no unit; write for example %s", s, example)
	}
	return 0, fmt.Errorf("%q has no known unit; write for example %s", s, example)
}

func wholeUnit(units []unit) string {
	for _, u := range units {
		if u.factor == 1 {
			return u.name
		}
	}
	return ""
}

// FormatMemory writes an amount as ParseMemory reads it, in the largest unit
// that keeps it whole.
func FormatMemory(m model.MiB) string {
	switch {
	case m != 0 && m%(1024*1024) == 0:
		return fmt.Sprintf("%dTiB", m/(1024*1024))
	case m != 0 && m%1024 == 0:
		return fmt.Sprintf("%dGiB", m/1024)
	default:
		return fmt.Sprintf("%dMiB", m)
	}
}

// FormatClock writes an amount as ParseClock reads it.
func FormatClock(m model.MHz) string { return fmt.Sprintf("%dMHz", m) }

// ParseVersion reads a version such as 10.0.2 or 9.0, as libvirt counts: major ×
// 1,000,000 + minor × 1,000 + release. The empty text is 0.
func ParseVersion(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	parts := strings.Split(s, ".")
	n, factor := 0, 1_000_000
	for _, p := range parts {
		k, err := strconv.Atoi(p)
		if err != nil || k < 0 || k > 999 || factor == 0 {
			return 0, fmt.Errorf("%q is no version; write for example 10.0.2", clip(s))
		}
		n += k * factor
		factor /= 1000
	}
	return n, nil
}
