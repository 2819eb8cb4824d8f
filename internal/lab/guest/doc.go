// Package guest builds the kernel and initramfs that the lab's virtual
// machines boot, from what Debian packages have installed on this machine.
//
// The initramfs loads virtio, runs qemu-ga on the agent's channel and the
// record writer of package disk on /dev/vda, and prints a tick a second on the
// console. An image is named by the content it is made of and kept; building
// the same again costs nothing.
package guest
