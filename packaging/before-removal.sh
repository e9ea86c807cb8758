#!/bin/sh
# Run before weft's files go, by `make uninstall` and by the packages. It never fails: a node that cannot be tidied up must still get
# rid of weft.
#
# Where no pod is attached, nothing of weft stays: programs, maps and state go. A pod that is attached keeps its network: what it
# needs is in the kernel, and goes with the pod or with the boot. Taking it away would cut the pod off, and whoever removes a
# package need not know what runs on the node.
weft=@bindir@/weft

# Not where no systemd runs, and not in a chroot: below it /sys and /run may be those of the machine around it.
if [ ! -d /run/systemd/system ] || systemd-detect-virt --quiet --chroot; then
    exit 0
fi
systemctl stop weft-reconcile.timer weft-reconcile.service weft.socket weft.service weft-init.service
if $weft cleanup --if-unused; then
    # What cleanup leaves is empty.
    for folder in /run/weft/pods /run/weft/netns /run/weft/runtime /run/weft; do
        if [ -d "$folder" ]; then rmdir --ignore-fail-on-non-empty "$folder"; fi
    done
else
    echo "weft: pods that are attached keep their network until they end or the node boots; containerd needs the CNI plugin" >&2
    echo "weft: to stop them, so end them first, or install weft again and run: weft cleanup" >&2
fi
exit 0
