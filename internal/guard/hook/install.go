package hook

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Script is the text of the hook script for a guard binary.
func Script(binary string) string {
	return "#!/bin/sh\n# Installed by hanok-guard install-hook. libvirt asks here before it starts a domain.\n" +
		"exec '" + strings.ReplaceAll(binary, "'", `'\''`) + "' hook \"$@\"\n"
}

// Install writes the script to path. libvirt notices it at its next start or
// at a SIGHUP.
func Install(path, binary string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(filepath.Dir(path)), ".hanok-hook.new") // libvirt runs all that is in the directory
	if err := os.WriteFile(tmp, []byte(Script(binary)), 0o755); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // whatever the umask
		return fmt.Errorf("install the hook: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	return nil
}
