# The mount on this kernel, over files of an XFS that shares extents: what was copied and flushed, and cut and flushed, outlives a reset.
#= promise 5, 6
. ./lib.sh
MIB=4
volumes() { for f in golden flushed cut unflushed; do echo /mnt/$f; done; }
old() { yes "$1 as it was" | head -c $((MIB * 1048576)); }
mounted() { [ -s /vols/golden ]; }
# part FILE NUMBER BYTES: checksum of one part of a file
part() { dd if="$1" bs="$3" skip="$2" count=1 2>/dev/null | digest; }
case $BOOT in
1)
  serve disk:disk1:300
  must_attach -i 2
  need_ns D 1
  modprobe xfs
  modprobe fuse
  check "mkfs.xfs" mkfs.xfs -q -f "$D"
  mount -t xfs "$D" /mnt
  random /mnt/golden $((MIB * 1024))
  for f in flushed cut unflushed; do old $f >/mnt/$f; done
  sync
  mkdir /vols
  blkcopy mount /vols $(volumes) >$T.mount 2>&1 &
  wait_for 30 mounted || give_up "no mount: $(cat $T.mount)"
  ok "mounted"
  check "a copy, flushed" blkcopy cp --quiet /vols/golden /vols/flushed
  equal "it reads as its source" "$(digest </vols/flushed)" "$(digest </vols/golden)"
  shows "it shared extents" '"reflink":4194304' blkcopy-lab attribute /vols/flushed user.blkcopy.receipt
  check "cut to 1000 bytes" truncate -s 1000 /vols/cut
  equal "it keeps its size" "$(wc -c </vols/cut)" $((MIB * 1048576))
  equal "behind them it reads as zero" "$(tail -c +1001 /vols/cut | tr -d '\0' | wc -c)" 0
  check "flushed" dd if=/dev/null of=/vols/cut conv=notrunc,fsync
  check "a copy, not flushed" blkcopy cp --quiet --no-sync /vols/golden /vols/unflushed
  equal "it reads as its source too" "$(digest </vols/unflushed)" "$(digest </vols/golden)"
  kernel_is_content
  host reset
  # No sync, no shutdown, no unmount: the processor is reset.
  echo b >/proc/sysrq-trigger
  sleep 100 ;;
2)
  ok "the guest came back from its reset"
  PORT=$(host port)
  must_attach -i 2
  need_ns D 1
  modprobe xfs
  check "the log of the file system is replayed" mount -t xfs "$D" /mnt
  equal "what was copied and flushed is there" "$(digest </mnt/flushed)" "$(digest </mnt/golden)"
  equal "what was cut and flushed is cut: the front" "$(head -c 1000 /mnt/cut | digest)" "$(old cut | head -c 1000 | digest)"
  equal "and zeroes behind it" "$(tail -c +1001 /mnt/cut | tr -d '\0' | wc -c)" 0
  old unflushed >$T.old
  n=0 torn=
  while [ $n -lt $((MIB * 256)) ]; do
    # 64 KiB at once while they are one thing or the other.
    if [ $((n % 16)) = 0 ]; then
      d=$(part /mnt/unflushed $((n / 16)) 65536)
      [ "$d" = "$(part /mnt/golden $((n / 16)) 65536)" ] || [ "$d" = "$(part $T.old $((n / 16)) 65536)" ] && { n=$((n + 16)); continue; }
    fi
    d=$(part /mnt/unflushed $n 4096)
    [ "$d" = "$(part /mnt/golden $n 4096)" ] || [ "$d" = "$(part $T.old $n 4096)" ] || torn="$torn $n"
    n=$((n + 1))
  done
  equal "blocks of the copy that was not flushed that are neither old nor new:" "$torn" ""
  umount /mnt
  check "the file system is sound" xfs_repair -n "$D"
  detach >/dev/null ;;
esac
