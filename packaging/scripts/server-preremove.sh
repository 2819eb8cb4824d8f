#!/bin/sh
# Before removal: deb says "remove" or "upgrade", rpm the number of versions
# that stay (0: removal). The clusters go on without a server.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable -q --now hanok-server || true
fi
exit 0
