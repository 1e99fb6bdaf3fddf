# The other direction: our host driver, on the host, against this kernel's target (nvmet), through a forwarded port.
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
echo 0.0.0.0 >$port/addr_traddr
echo 4420 >$port/addr_trsvcid
ln -s "$sub" $port/subsystems/ && ok "nvmet listens" || give_up "nvmet does not listen"

AT=nvme-tcp://127.0.0.1:$FWD
U1="$AT/$NQN?nsid=1" U2="$AT/$NQN?nsid=2"
blkcopy() { host run blkcopy "$@"; }
hostsum() { host run md5sum "$1" | cut -d' ' -f1; }
shows "info of the address names the subsystem" "$NQN" blkcopy info "$AT"
shows "info of a namespace names its size" "64(\.0)? MiB" blkcopy info "$U1"
said 20
host run dd if=/dev/urandom of=one.img bs=1M count=64 >/dev/null
shows "a file to namespace 1, compared" "64(\.0)? MiB" blkcopy cp --yes --verify digest --receipt r1.json one.img "$U1"
said
equal "it is in the guest's file" "$(hostsum one.img)" "$(digest /tmp/file.img)"
shows "namespace 1 to a file, compared" "64(\.0)? MiB" blkcopy cp --verify digest --receipt r2.json "$U1" back.img
check "the same bytes" host run cmp one.img back.img
shows "plan: read and write, nvmet has no Copy" "read and write|read/write|emulat" blkcopy plan "$U1@0+32MiB" "$U2@0+32MiB"
said 20
shows "namespace 1 to namespace 2, compared" "32(\.0)? MiB" blkcopy cp --yes --verify digest --receipt r3.json "$U1@0+32MiB" "$U2@0+32MiB"
said
equal "it is in the guest's memory disk" "$(head -c 33554432 /tmp/file.img | digest)" "$(sum /dev/nullb0 1048576 0 32)"
shows "the receipt says read and write" "read" host run cat r3.json
refuse "no Copy, so none with --offload require" "." blkcopy cp --yes --offload require "$U1@0+32MiB" "$U2@0+32MiB"
refuse "a namespace that is not there" "9" blkcopy info "$AT/$NQN?nsid=9"
refuse "a subsystem that is not there" "." blkcopy info "$AT/${NQN}x?nsid=1"
kernel_is_content
