package hook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DaemonVariable is the variable of the environment in which the script hands
// on the process id of the libvirt daemon that runs it: the guard's parent may
// be the script's shell.
const DaemonVariable = "HANOK_LIBVIRTD"

// Script is the text of the hook script for a guard binary. What must never
// fail does not depend on that binary: it may be missing in the midst of an
// upgrade, and libvirt destroys a running VM whose reconnect hook fails.
func Script(binary string) string {
	guard := "'" + strings.ReplaceAll(binary, "'", `'\''`) + "' hook \"$@\""
	return `#!/bin/sh
# Installed by hanok-guard install-hook. libvirt asks here before it starts a domain.
export ` + DaemonVariable + `="$PPID"
case "$2" in
prepare|start|restore|migrate|attach) exec ` + guard + ` ;;
stopped|release) ` + guard + ` ;;
esac
exit 0
`
}

// Install writes the script to path. libvirt notices it at its next start or
// at a SIGHUP.
func Install(path, binary string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(filepath.Dir(path)), ".hanok-hook.new") // libvirt runs all that is in the directory
	if err := writeScript(tmp, Script(binary)); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	return nil
}

func writeScript(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	// Whatever the umask; and an empty script after a crash would refuse all.
	return errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
}
