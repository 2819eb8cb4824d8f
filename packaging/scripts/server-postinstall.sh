#!/bin/sh
# After unpacking. The first time the server is only made ready to be started:
# its options come first (/etc/default/hanok-server). An upgrade restarts one
# that runs; hosts and VMs do not notice.
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemctl try-restart hanok-server || true
exit 0
