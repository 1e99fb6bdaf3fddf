# File systems: made, mounted, filled with real files, checked, and compared after the host attached anew.
#= promise 1
. ./lib.sh
serve --cores 2 disk:disk1:256 disk:disk2:400
tree() { (cd "$1" && find . -type f -exec md5sum {} + | sort | md5sum | cut -d' ' -f1); }
want=$(tree /usr)
mkdir -p /mnt/fs

fill() { # NAME NSID MKFS..
  local name=$1 nsid=$2; shift 2
  need_ns D "$nsid"
  modprobe "$name"
  check "mkfs.$name" "$@" "$D" || return
  check "mount $name" mount -t "$name" "$D" /mnt/fs || return
  check "copy files to $name" cp -a /usr /mnt/fs/
  # Small files, renames and removals: what a journal is for.
  mkdir /mnt/fs/small
  i=0; while [ $i -lt 300 ]; do echo "$i" >/mnt/fs/small/$i; i=$((i + 1)); done
  i=0; while [ $i -lt 300 ]; do mv /mnt/fs/small/$i /mnt/fs/small/n$i; rm /mnt/fs/small/n$i; i=$((i + 2)); done
  check "umount $name" umount /mnt/fs
}
look() { # NAME NSID FSCK..
  local name=$1 nsid=$2; shift 2
  need_ns D "$nsid"
  check "fsck of $name" "$@" "$D"
  check "mount $name again" mount -t "$name" -o ro "$D" /mnt/fs || return
  equal "the files of $name are as they were" "$(tree /mnt/fs/usr)" "$want"
  equal "the small ones too" "$(cat /mnt/fs/small/* | wc -l)" 150
  umount /mnt/fs
}

must_attach -i 2
fill ext4 1 mkfs.ext4 -q -F
fill xfs 2 mkfs.xfs -q -f
kernel_is_content
check "disconnect" detach
must_attach -i 2 --hdr-digest --data-digest
look ext4 1 fsck.ext4 -f -n
look xfs 2 xfs_repair -n
detach >/dev/null
check "the target ends" host term
serve disk:disk1:256 disk:disk2:400
must_attach -i 2
look ext4 1 fsck.ext4 -f -n
look xfs 2 xfs_repair -n
detach >/dev/null
