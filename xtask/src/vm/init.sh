#!/bin/busybox sh
# The first process of the virtual machine: makes it look like one, with swap space, runs the command, and tells how it ended.
export PATH=/bin HOME=/tmp TMPDIR=/tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
ip link set lo up
mke2fs -F /dev/nvme0n1 >/dev/null
mount -t ext4 /dev/nvme0n1 /tmp
dd if=/dev/zero of=/tmp/swap bs=1M count=128 2>/dev/null
mkswap /tmp/swap >/dev/null
swapon /tmp/swap
chmod 1777 /tmp /dev/shm
# The serial ports: the kernel's messages, the command's output, its exit status.
stty -F /dev/ttyS1 raw -echo
cd /tmp
sh /command </dev/null >/dev/ttyS1 2>&1
echo "status $?" >/dev/ttyS2
poweroff -f
