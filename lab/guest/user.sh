# An ordinary user sends Copy (opcode 19h) through the kernel: the effects log says that it is harmless.
#= promise 3
. ./lib.sh
serve disk:disk1:64 mem:32MiB
must_attach -i 2
need_ns A 1
random $T.r 64
put $T.r "$A" 65536 0 1
copy() { blkcopy-lab copy "$A" "$@" uid=1000; }
refuse "not without a right to the device" "Permission denied" copy 1000 0+128
chmod 666 "$A"
check "with it" copy 1000 0+128
equal "the data is there" "$(digest $T.r)" "$(sum "$A" 512 1000 128)"
refuse "not through a descriptor that only reads" "Permission denied" copy 2000 0+128 read-only
refuse "errors come through as they are" "0h/80h" copy 131071 0+128
check "root needs no more than before" blkcopy-lab copy "$A" 3000 0+128
check "fused in one list: 128 ranges" copy 4000 $(i=0; while [ $i -lt 128 ]; do echo "$i+1"; i=$((i + 1)); done)
equal "the data is there" "$(digest $T.r)" "$(sum "$A" 512 4000 128)"
kernel_is_content
detach >/dev/null
