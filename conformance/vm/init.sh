#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the VM. Puts a tmpfs over the machine's root file system, which stays read-only, mounts what a node has, runs
# weft.job in it, says how that ended and turns the machine off. The kernel's command line gives weft.job,
# weft.modules, and weft.keep: directories, separated by colons, that may lie below /tmp.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
end() { echo "vm: status $1"; $b poweroff -f; }
try() { "$@" || end "125 ($*)"; }

while read -r module; do try $b insmod "/modules/$module"; done < /modules/order
for word in $($b cat /proc/cmdline); do
  case $word in
    weft.job=*) job=${word#*=} ;;
    weft.modules=*) modules=${word#*=} ;;
    weft.keep=*) keep=${word#*=} ;;
  esac
done
r=/root
try $b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
try $b mount -t tmpfs -o mode=755,size=60% tmpfs /upper
$b mkdir /upper/data /upper/work
try $b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay $r
try $b mount -t tmpfs -o mode=755,size=60% tmpfs $r/run
# An overlay takes no upper directory on another overlay, and containerd has its own below /tmp.
try $b mount -t tmpfs -o mode=1777,size=60% tmpfs $r/tmp
for dir in $(echo "$keep" | $b tr : ' '); do
  case $dir in /tmp/*) $b mkdir -p "$r$dir"; try $b mount --bind "/lower$dir" "$r$dir" ;; esac
done
for fs in dev proc sys; do $b mount --move /$fs $r/$fs; done
$b mkdir -p $r/dev/pts $r/dev/shm $r/run/lock $r/usr/lib/modules
try $b mount -t devpts -o newinstance,ptmxmode=0666 devpts $r/dev/pts
$b ln -sf pts/ptmx $r/dev/ptmx
try $b mount -t tmpfs tmpfs $r/dev/shm
for fd in "fd " "stdin /0" "stdout /1" "stderr /2"; do $b ln -s "/proc/self/fd${fd#* }" "$r/dev/${fd% *}"; done
try $b mount -t bpf bpf $r/sys/fs/bpf
try $b mount -t tracefs tracefs $r/sys/kernel/tracing
# Where modprobe looks.
$b ln -sfn "$modules/$($b uname -r)" "$r/usr/lib/modules/$($b uname -r)"
# What the kernel does not load by itself when it is asked for: mount(8) and the shim open /dev/loop-control.
try $b chroot $r /sbin/modprobe -a loop ext4 erofs
# Version 2 alone, every controller on: the root is the only cgroup that may both have processes and pass controllers on.
try $b mount -t cgroup2 cgroup2 $r/sys/fs/cgroup
for name in $($b cat $r/sys/fs/cgroup/cgroup.controllers); do
  echo "+$name" > $r/sys/fs/cgroup/cgroup.subtree_control
done
$b chroot $r /bin/busybox ip link set lo up
# What systemd sets on many a node: what gets no qdisc by name gets this one.
try $b chroot $r /sbin/modprobe sch_fq
echo fq > $r/proc/sys/net/core/default_qdisc
# shellcheck disable=SC2016
exec $b switch_root -c /dev/console $r /bin/bash -c '
  export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  cd /; bash "$0" < /dev/null; status=$?; echo "vm: status $status"; exec busybox poweroff -f' "$job"
