package drill

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Stands returns nil if a process uses no processor for a moment.
func Stands(pid int) error {
	used := func() (string, error) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err != nil {
			return "", err
		}
		all := string(data)
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, t := range tasks {
			data, err := os.ReadFile(t)
			if err != nil {
				return "", err
			}
			all += string(data)
		}
		return all, err
	}
	before, err := used()
	if err != nil {
		return err
	}
	time.Sleep(300 * time.Millisecond) // the moment that is looked at
	after, err := used()
	if err == nil && before != after {
		err = fmt.Errorf("process %d runs", pid)
	}
	return err
}
