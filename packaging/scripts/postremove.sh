#!/bin/sh
# After removal. Configuration, keys and state stay until a purge (deb).
set -e
[ -d /run/systemd/system ] && systemctl daemon-reload || true
if [ "$1" = purge ]; then
	rm -rf /var/lib/hanok /etc/hanok
fi
exit 0
