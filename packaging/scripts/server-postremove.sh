#!/bin/sh
# After removal. The state stays until a purge (deb).
set -e
[ -d /run/systemd/system ] && systemctl daemon-reload || true
if [ "$1" = purge ]; then
	rm -rf /var/lib/hanok-server
fi
exit 0
