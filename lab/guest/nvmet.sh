# The other direction: our host driver, on the host, against this kernel's target (nvmet), through a forwarded port.
#= promise 1, 2, 10
. ./lib.sh
modprobe -a nvmet nvmet-tcp
modprobe null_blk nr_devices=1 gb=1 memory_backed=1
truncate -s 64M /tmp/file.img
config=/sys/kernel/config
[ -d $config/nvmet ] || mount -t configfs none $config
sub=$config/nvmet/subsystems/$NQN
mkdir "$sub"
echo 1 >"$sub/attr_allow_any_host"
nsid=1
for d in /tmp/file.img /dev/nullb0; do
  mkdir "$sub/namespaces/$nsid"
  echo -n $d >"$sub/namespaces/$nsid/device_path"
  echo 1 >"$sub/namespaces/$nsid/enable" || bad "enable $d"
  nsid=$((nsid + 1))
done
port=$config/nvmet/ports/1
mkdir $port
echo tcp >$port/addr_trtype
echo ipv4 >$port/addr_adrfam
# The discovery log names what stands here: an address that leads here from the host too, by the relay.
echo 127.0.0.1 >$port/addr_traddr
echo "$FWD" >$port/addr_trsvcid
relay 10.0.2.15:"$FWD" 127.0.0.1:"$FWD"
ln -s "$sub" $port/subsystems/ && ok "nvmet listens" || give_up "nvmet does not listen"

AT=nvme-tcp://127.0.0.1:$FWD
U1="$AT/$NQN?nsid=1" U2="$AT/$NQN?nsid=2"
blkcopy() { host run blkcopy "$@"; }
hostsum() { host run md5sum "$1" | cut -d' ' -f1; }
shows "info of the address looks into the subsystem" "$NQN" blkcopy info "$AT"
said 40
shows "info of a namespace names its size" "64\.0 MiB \(67108864" blkcopy info "$U1"
host run dd if=/dev/urandom of=one.img bs=1M count=64 >/dev/null

# copied NAME PATH PATH: the copy of $LEN bytes is done, compared, read and written, and the receipt says so
copied() {
  local name=$1 s d; shift
  if ! blkcopy cp --yes --json --verify digest "$@" >$T.receipt 2>&1; then bad "$name"; cat $T.receipt; return; fi
  ok "$name"
  grep -q '"equal": true' $T.receipt && grep -A1 '"methods": {' $T.receipt | grep -q "\"emulated\": $LEN\$" &&
    ok "$name: equal, read and written" || { bad "$name: the receipt"; cat $T.receipt; }
  s=$(sed -n 's/.*"sent": \([0-9]*\).*/\1/p' $T.receipt) d=$(sed -n 's/.*"received": \([0-9]*\).*/\1/p' $T.receipt)
  [ "$s" -ge "$SENT" ] && [ "$s" -lt $((SENT + LEN / 16 + 65536)) ] && [ "$d" -ge "$RECEIVED" ] && [ "$d" -lt $((RECEIVED + LEN / 16 + 65536)) ] &&
    ok "$name: on the wire $s bytes sent, $d received" || bad "$name: $s bytes sent, $d received"
}
LEN=67108864 SENT=$LEN RECEIVED=0 copied "a file to namespace 1" one.img "$U1"
equal "it is in the guest's file" "$(hostsum one.img)" "$(digest /tmp/file.img)"
LEN=67108864 SENT=0 RECEIVED=$LEN copied "namespace 1 to a file" "$U1" back.img
check "the same bytes" host run cmp one.img back.img
shows "plan: read and write, nvmet has no Copy" "would copy 32.0 MiB: 32.0 MiB by read+write" blkcopy plan "$U1@0+32MiB" "$U2@0+32MiB"
LEN=33554432 SENT=$LEN RECEIVED=$LEN copied "namespace 1 to namespace 2" "$U1@0+32MiB" "$U2@0+32MiB"
equal "it is in the guest's memory disk" "$(head -c 33554432 /tmp/file.img | digest)" "$(sum /dev/nullb0 1048576 0 32)"
LEN=8388608 SENT=$LEN RECEIVED=0 copied "with digests" one.img@16MiB+8MiB "$U2&hdgst&ddgst@100MiB+8MiB"
equal "it is in the guest's memory disk" "$(dd if=/tmp/file.img bs=1M skip=16 count=8 2>/dev/null | digest)" "$(sum /dev/nullb0 1048576 100 8)"
refuse "no Copy, so none with --offload require" "require" blkcopy cp --yes --offload require "$U1@0+32MiB" "$U2@0+32MiB"
said
refuse "a namespace that is not there" "nsid|namespace" blkcopy info "$AT/$NQN?nsid=9"
said
refuse "a subsystem that is not there" "subsystem|NQN|invalid" blkcopy info "$AT/${NQN}x?nsid=1"
said
kernel_is_content
