package observer

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// watchTree watches a cgroup and all below: for new groups, and for changes of
// their frozen and populated state.
func (o *Observer) watchTree(dir string) {
	o.watch(dir, unix.IN_CREATE|unix.IN_ONLYDIR, watch{dir: dir})
	o.watch(filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY, watch{dir: dir, events: true})
	entries, err := os.ReadDir(dir) // after the watch: nothing falls between
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			o.watchTree(filepath.Join(dir, e.Name()))
		}
	}
}

func (o *Observer) watch(path string, mask uint32, w watch) {
	if wd, err := unix.InotifyAddWatch(o.inotify, path, mask); err == nil {
		o.watches[int32(wd)] = w
	}
}

// readInotify handles all waiting changes of cgroups.
func (o *Observer) readInotify() {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(o.inotify, buf)
		if err != nil || n <= 0 {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			size := int(binary.NativeEndian.Uint32(b[12:]))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			b = b[unix.SizeofInotifyEvent+size:]
			o.changed(wd, mask, name)
		}
	}
}

func (o *Observer) changed(wd int32, mask uint32, name string) {
	w, known := o.watches[wd]
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		o.watchTree(string(o.cfg.Hosts))
		o.lookBelow(string(o.cfg.Hosts))
	case mask&unix.IN_IGNORED != 0:
		delete(o.watches, wd)
	case !known:
	case w.events:
		o.lookBelow(w.dir)
	case mask&unix.IN_ISDIR != 0:
		o.watchTree(filepath.Join(w.dir, name))
		o.lookBelow(filepath.Join(w.dir, name))
	}
}

// lookBelow looks at the instances in a cgroup and below, and at those that
// may have moved into it.
func (o *Observer) lookBelow(dir string) {
	for _, i := range o.instances {
		if i.ended != 0 {
			continue
		}
		group := filepath.Join(o.mount, cgroupOf(i.Pid))
		if group == dir || strings.HasPrefix(group, dir+"/") {
			o.look(i)
		}
	}
}
