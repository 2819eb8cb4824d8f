#!/bin/sh
# The guest agent calls this with the arguments of shutdown(8).
case " $* " in
*" -r "*) exec /bin/busybox reboot -f ;;
*) exec /bin/busybox poweroff -f ;;
esac
