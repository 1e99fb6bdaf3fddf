# Data: every size of read and write, digests, several queues, and the commands beside them.
#= promise 1
. ./lib.sh
serve --cores 2 disk:disk1:64 mem:32MiB
random $T.r 4096

exercise() { # NAME DEVICE: writes and reads of every size at odd places, compared
  local size count first
  first=3
  for size in 512 4096 65536 524288 1048576; do
    count=$((2097152 / size))
    [ $count -le 96 ] || count=96
    check "$1: write $count of $size" put $T.r "$2" $size $first $count
    equal "$1: read $count of $size" "$(head -c $((size * count)) $T.r | digest)" "$(sum "$2" $size $first $count)"
    first=$((first + 1))
  done
}
at_once() { # NAME DEVICE: four writers and four readers at once
  local i jobs=
  for i in 0 1 2 3; do dd if=$T.r of="$2" bs=65536 count=16 skip=$((i * 16)) seek=$((i * 16 + 256)) oflag=direct conv=notrunc 2>/dev/null & jobs="$jobs $!"; done
  wait $jobs
  for i in 0 1 2 3; do dd if="$2" of=$T.at$i bs=4096 count=256 skip=$((i * 256 + 4096)) iflag=direct 2>/dev/null & jobs="$jobs $!"; done
  wait $jobs
  equal "$1: four at once" "$(digest $T.r)" "$(cat $T.at0 $T.at1 $T.at2 $T.at3 | md5sum | cut -d' ' -f1)"
}

must_attach -i 1
need_ns A 1
need_ns B 2
exercise "one queue, file" "$A"
exercise "one queue, memory" "$B"
detach >/dev/null
must_attach --hdr-digest --data-digest -i 2
equal "two I/O queues" "$(cat "/sys/class/nvme/$C/queue_count")" 3
need_ns A 1
need_ns B 2
random $T.r 4096
exercise "digests, file" "$A"
at_once "digests, file" "$A"
at_once "digests, memory" "$B"
detach >/dev/null
must_attach --hdr-digest -i 2
need_ns A 1
random $T.r 4096
at_once "header digest" "$A"
detach >/dev/null
must_attach --data-digest -i 2
need_ns A 1
need_ns B 2
random $T.r 4096
at_once "data digest" "$A"
equal "the host's file is what the guest reads" "$(host run md5sum disk1 | cut -d' ' -f1)" "$(sum "$A" 1048576 0 64)"

# The commands beside read and write. Blocks 0 to 2047 hold the first mebibyte.
put $T.r "$A" 1048576 0 1
check "flush" nvme flush "$A"
head -c 4096 $T.r >$T.first
check "compare equal" nvme compare "$A" -s 0 -c 7 -z 4096 -d $T.first
printf x | dd of=$T.first bs=1 seek=4095 conv=notrunc 2>/dev/null
refuse "compare, last byte differs" "Compare Failure" nvme compare "$A" -s 0 -c 7 -z 4096 -d $T.first
check "write zeroes" nvme write-zeroes "$A" -s 17 -c 22
head -c 17408 /dev/zero >$T.zero
cp $T.r $T.want
dd if=/dev/zero of=$T.want bs=512 seek=17 count=23 conv=notrunc 2>/dev/null
equal "zeroes there and nowhere else" "$(head -c 1048576 $T.want | digest)" "$(sum "$A" 1048576 0 1)"
check "deallocate" nvme dsm "$A" -d -s 64,1024 -b 64,8
dd if=/dev/zero of=$T.want bs=512 seek=64 count=64 conv=notrunc 2>/dev/null
dd if=/dev/zero of=$T.want bs=512 seek=1024 count=8 conv=notrunc 2>/dev/null
equal "deallocated blocks read as zeroes, others as before" "$(head -c 1048576 $T.want | digest)" "$(sum "$A" 1048576 0 1)"
check "blkdiscard of the whole" blkdiscard "$B"
equal "and it reads as zeroes" "$(head -c 1048576 /dev/zero | digest)" "$(sum "$B" 1048576 7 1)"

check "the last block" nvme read "$A" -s 131071 -c 0 -z 512 -d $T.last
refuse "one past the end" "out of range|LBA Range|LBA_RANGE" nvme read "$A" -s 131072 -c 0 -z 512 -d $T.last
refuse "across the end" "out of range|LBA Range|LBA_RANGE" nvme read "$A" -s 131071 -c 1 -z 1024 -d $T.last
refuse "write across the end" "out of range|LBA Range|LBA_RANGE" nvme write "$A" -s 131071 -c 1 -z 1024 -d $T.r
refuse "zeroes across the end" "out of range|LBA Range|LBA_RANGE" nvme write-zeroes "$A" -s 131071 -c 1
refuse "an opcode that is none" "Invalid Command Opcode" nvme io-passthru "$A" --opcode=0x7e --namespace-id=1
equal "nothing of that was written" "$(head -c 1048576 $T.want | digest)" "$(sum "$A" 1048576 0 1)"
kernel_is_content
detach >/dev/null
check "the target ends" host term

serve --block-size 4096 disk:disk1:64 disk:other:64
must_attach -i 2
need_ns A 1
equal "4096-byte blocks" "$(cat /sys/block/"${A##*/}"/queue/logical_block_size)" 4096
equal "the same bytes as before" "$(head -c 1048576 $T.want | digest)" "$(sum "$A" 1048576 0 1)"
random $T.r 4096
at_once "4096-byte blocks" "$A"
detach >/dev/null
check "the target ends" host term

serve --read-only disk:disk1:64
must_attach -i 2
need_ns A 1
equal "the same bytes, read-only" "$(host run md5sum disk1 | cut -d' ' -f1)" "$(sum "$A" 1048576 0 64)"
refuse "a write is refused" "Write Protected|Read Only" nvme write "$A" -s 0 -c 0 -z 512 -d $T.r
refuse "a copy is refused" "0h/20h|1h/82h" blkcopy-lab copy "$A" 100 0+8
detach >/dev/null
