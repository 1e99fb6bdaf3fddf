# The guest is reset under load, then its plug is pulled: each block is old or new, and what it flushed is there.
#= promise 5, 6
. ./lib.sh
load() { # NSID SEED: in the background, for a while
  need_ns D "$1"
  blkcopy-lab load "$D" 512 "$2" 4 $T.stop copy &
  more_flushes "$2" 60
}
look() { # NSID SEED: as the guest reads it
  need_ns D "$1"
  host run tail -n 200 flushed >$T.flushed
  check "as the guest reads it" blkcopy-lab check "$D" 512 "$2" 4 $T.flushed copy
}
case $BOOT in
1)
  serve disk:disk1:64 disk:disk2:64 disk:disk3:128
  must_attach -i 2
  need_ns F 3
  modprobe ext4
  check "mkfs.ext4" mkfs.ext4 -q -F "$F"
  mount -t ext4 "$F" /mnt
  i=0
  while [ $i -lt 30 ]; do
    yes "file $i" | head -c 65536 >$T.r
    dd if=$T.r of=/mnt/synced$i bs=64k conv=fsync 2>/dev/null || bad "fsync of a file"
    dd if=$T.r of=/mnt/other$i bs=64k 2>/dev/null
    i=$((i + 1))
  done
  load 1 21
  host reset
  # No sync, no shutdown: the processor is reset. The connections stay open on the host until keep-alive ends them.
  echo b >/proc/sysrq-trigger
  sleep 100 ;;
2)
  ok "the guest came back from its reset"
  PORT=$(host port)
  must_attach -i 2
  look 1 21
  need_ns F 3
  modprobe ext4
  check "the journal of the file system is replayed" mount -t ext4 "$F" /mnt
  i=0 lost=
  while [ $i -lt 30 ]; do
    [ "$(digest /mnt/synced$i)" = "$(yes "file $i" | head -c 65536 | digest)" ] || lost="$lost $i"
    i=$((i + 1))
  done
  equal "files that were synced and are lost:" "$lost" ""
  umount /mnt
  check "fsck" fsck.ext4 -f -n "$F"
  check "in the file" host run blkcopy-lab check disk1 512 21 4 flushed copy
  note "$(tail -n 1 $T.said)"
  load 2 22
  host cut ;;
3)
  ok "the guest came back after its plug was pulled"
  PORT=$(host port)
  must_attach -i 2
  look 2 22
  detach >/dev/null
  check "the target ends" host term
  check "in the file" host run blkcopy-lab check disk2 512 22 4 flushed copy
  check "and the first file is as it was" host run blkcopy-lab check disk1 512 21 4 flushed copy ;;
esac
