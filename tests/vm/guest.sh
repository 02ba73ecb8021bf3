# First process of the guest, in its root: mounts what is left, runs the command, tells the host its exit code, powers off.
#
# Standard output and error of the command and its exit code each have a virtio port of their own: out, err, ctl.
set -u
umask 022
mkdir /run/vm/bin
/run/vm/busybox --install -s /run/vm/bin
export PATH=/run/vm/bin
. /run/vm/settings

mount -t sysfs sys /sys
mount -t bpf -o mode=700 bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -sfn /proc/self/fd /dev/fd
ln -sfn fd/0 /dev/stdin
ln -sfn fd/1 /dev/stdout
ln -sfn fd/2 /dev/stderr
mkdir -p -m 1777 /run/lock
if [ "$SHARE" = yes ]; then
    mount -t 9p -o "rw,trans=virtio,version=9p2000.L,msize=$MSIZE,cache=mmap" share /mnt/share
fi
if [ -d "$MODULES" ]; then # lets the kernel and `modprobe` find more modules
    mkdir -p /lib/modules
    ln -sfn "$MODULES" "/lib/modules/$(uname -r)"
fi
ip link set lo up
hostname localhost
ulimit -H -n 1048576
ulimit -l unlimited

# Prints the device of the virtio port of name $1, when it has come.
port() {
    tries=0
    while [ "$tries" -lt 500 ]; do
        for name in /sys/class/virtio-ports/*/name; do
            if [ "$(cat "$name" 2>/dev/null)" = "$1" ]; then
                basename "$(dirname "$name")"
                return
            fi
        done
        tries=$((tries + 1))
        usleep 10000
    done
    echo "guest: virtio port $1 did not come" >/dev/console
    poweroff -f
}
out=/dev/$(port out)
err=/dev/$(port err)
ctl=/dev/$(port ctl)

# If the host's side was killed and cannot end this machine, the machine ends itself.
(sleep "$DEADLINE" && poweroff -f) </dev/null >/dev/null 2>&1 &

# Pipes, not the ports themselves, so that the command may open /dev/stdout anew.
mkfifo /run/vm/out /run/vm/err
cat /run/vm/out >"$out" &
out_pid=$!
cat /run/vm/err >"$err" &
err_pid=$!
echo started >"$ctl"
# In the foreground: a shell starts background commands with SIGINT and SIGQUIT ignored.
sh /run/vm/command </dev/null >/run/vm/out 2>/run/vm/err
code=$?
# What the command left running may hold the pipes open: do not wait for it long.
(sleep 2 && kill "$out_pid" "$err_pid") </dev/null >/dev/null 2>&1 &
wait "$out_pid" "$err_pid"
echo "exit $code" >"$ctl"
sync
poweroff -f
