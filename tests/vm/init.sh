#!/bin/busybox sh
# First process of the guest, in the initramfs: loads modules, mounts the root and hands over to guest.sh.
#
# The root is an overlay: below, the host's `/` over 9p, read-only; above, a tmpfs. So every write works and none reaches the host.
# `cache=loose` is for speed, several times that of `none` where many files are opened; a file that the host changes
# while the guest runs may be seen as it was. Uprobes are hit with each of loose, mmap and none, on the overlay and on /mnt/host.
set -eu
export PATH=/bin
# What failed has said why; powering off keeps that the last word, where the end of this process would be a panic.
trap '/bin/busybox poweroff -f' EXIT

/bin/busybox mkdir -p /dev /proc /host /scratch /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
. /vm/settings

while read -r module; do
    insmod "/modules/$module"
done </modules/order

mount -t 9p -o "ro,trans=virtio,version=9p2000.L,msize=$MSIZE,cache=loose" host /host
mount -t tmpfs -o size=75%,mode=755 scratch /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /root

mkdir -p /root/dev /root/proc /root/sys /root/run /root/mnt/host /root/mnt/share
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/vm
cp -R /vm/. /root/run/vm
cp /bin/busybox /root/run/vm/busybox
mount --move /host /root/mnt/host
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /run/vm/busybox sh /run/vm/guest.sh
