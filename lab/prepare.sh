#!/usr/bin/env bash
# Makes what the lab boots: a stock Debian kernel, a small root of stock programs, and QEMU where the host has none.
#
#   lab/prepare.sh FOLDER    makes FOLDER/{vmlinuz,root,qemu,about}; done at once when they are there
#
# An apt of its own (own lists, an empty package status) resolves and downloads from the mirror the host's apt uses,
# dpkg-deb unpacks: nothing is installed, the host's packages and lists stay as they are. Exit status 3: cannot be had
# here; the last line on stderr says why.
set -euo pipefail

SUITE=${BLKCOPY_LAB_SUITE:-trixie}
F=$(mkdir -p "$1" && cd "$1" && pwd)

PACKAGES="busybox-static nvme-cli xfsprogs e2fsprogs kmod"
PROGRAMS="nvme mkfs.xfs xfs_repair mke2fs e2fsck"
MODULES="nvme-tcp nvmet nvmet-tcp null_blk loop xfs ext4 fuse virtio_pci virtio_net
 crc32c_generic crc32c_intel crc32c_cryptoapi"

cannot() { echo "$*" >&2; exit 3; }
note() { echo "lab: $*" >&2; }

mirror() {
  [ -z "${BLKCOPY_LAB_MIRROR:-}" ] || { echo "$BLKCOPY_LAB_MIRROR"; return; }
  apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 'Created-By: Packages' 2>/dev/null |
    awk -F'|' '$2 == "Debian" && $3 == "Debian" { print $1; exit }'
}

own_apt() {
  local from keys=/usr/share/keyrings/debian-archive-keyring.gpg signed=
  from=$(mirror)
  [ -n "$from" ] || cannot "apt on this host knows no Debian mirror; name one in BLKCOPY_LAB_MIRROR"
  [ ! -e $keys ] || signed="[signed-by=$keys] "
  mkdir -p "$W"/apt/{state/lists/partial,cache/archives/partial,empty/partial,none.d}
  : >"$W/apt/status"
  echo "deb $signed$from $SUITE main" >"$W/apt/sources.list"
  cat >"$W/apt/apt.conf" <<E
Dir::State "$W/apt/state";
Dir::State::status "$W/apt/status";
Dir::Cache "$W/apt/cache";
Dir::Etc::sourcelist "$W/apt/sources.list";
Dir::Etc::sourceparts "$W/apt/none.d";
Dir::Etc::preferences "$W/apt/none";
Dir::Etc::preferencesparts "$W/apt/none.d";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
E
  export APT_CONFIG=$W/apt/apt.conf
  apt-get -qq update >&2 || cannot "the Debian mirror does not answer for $SUITE"
}

unpack() { # FOLDER, names of packages' files on stdin
  local file
  mkdir -p "$1"/usr/{bin,sbin,lib,lib64}
  ( cd "$1" && ln -sfn usr/bin bin && ln -sfn usr/sbin sbin && ln -sfn usr/lib lib && ln -sfn usr/lib64 lib64 )
  while read -r file; do
    dpkg-deb --fsys-tarfile "$file" | tar -x -C "$1" --keep-directory-symlink --no-same-owner -f -
  done
}

# fetch FOLDER PACKAGE..: the packages and all they depend on, unpacked in FOLDER
fetch() {
  local to=$1; shift
  note "downloading $* ($SUITE)"
  # --print-uris leaves out what is in the archive folder: given an empty one it lists all.
  apt-get install -o Dir::Cache::archives="$W/apt/empty" --print-uris -y -qq "$@" |
    awk -v d="$W/apt/cache/archives/" '/^\x27/ { print d $2 }' >"$to.list"
  apt-get install --download-only -y -qq "$@" >&2 || cannot "the download of $* from the Debian mirror failed"
  unpack "$to" <"$to.list"
  sed 's#.*/##; s#_amd64.deb##; s#_all.deb##' "$to.list" | grep -E '^(nvme-cli|libnvme1|xfsprogs|e2fsprogs|qemu-system-x86)_' >>"$W/about" || true
}

# Only the image itself: what it depends on makes an initrd, which is not wanted.
fetch_kernel() {
  local image part
  note "downloading the kernel ($SUITE)"
  image=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
  [ -n "$image" ] || cannot "no linux-image-amd64 in $SUITE"
  mkdir -p "$W/kernel.debs"
  # Since Linux 6.17 or so the image is a package of little else but dependencies.
  for part in "$image" $(apt-cache depends "$image" | awk '/ Depends: linux-(modules|binary|base)-[0-9]/ { print $2 }' | sort -u); do
    ( cd "$W/kernel.debs" && apt-get download -qq "$part" >&2 ) || cannot "the download of $part from the Debian mirror failed"
  done
  find "$W/kernel.debs" -name '*.deb' | unpack "$W/kernel"
  RELEASE=$(basename "$(echo "$W"/kernel/lib/modules/*)")
  echo "linux_$RELEASE" >>"$W/about"
  cp "$W"/kernel/boot/vmlinuz-* "$W/vmlinuz" 2>/dev/null || cp "$W"/kernel/lib/modules/*/vmlinuz* "$W/vmlinuz"
}

# in_root ROOT PROGRAM ARGS..: a program of an unpacked root, by that root's own loader and libraries
in_root() {
  local r=$1 p=$2; shift 2
  "$r/usr/lib64/ld-linux-x86-64.so.2" --argv0 "${p##*/}" --library-path "$r/usr/lib/x86_64-linux-gnu" "$r/$p" "$@"
}

# The modules named above with all they need, unpacked here: for the guest that would be slow.
copy_modules() {
  local from=$W/kernel/lib/modules/$RELEASE to=$W/root/lib/modules/$RELEASE m
  in_root "$W/base" usr/sbin/depmod -b "$W/kernel" "$RELEASE"
  awk -v want="$MODULES" '
    function base(p) { sub(/.*\//, "", p); sub(/\.ko.*/, "", p); gsub(/-/, "_", p); return p }
    function add(b,  n, i, q) {
      if (done[b]++ || !(b in path)) return
      n = split(deps[b], q, " "); for (i = 1; i <= n; i++) add(base(q[i]))
      n = split(soft[b], q, " "); for (i = 1; i <= n; i++) add(base(q[i]))
      print path[b]
    }
    FILENAME ~ /modules.dep$/ { split($0, a, ":"); b = base(a[1]); path[b] = a[1]; deps[b] = a[2]; next }
    FILENAME ~ /softdep$/ && $1 == "softdep" { for (i = 3; i <= NF; i++) if ($i !~ /:$/) soft[base($2)] = soft[base($2)] " " $i; next }
    END { n = split(want, w, /[ \n]+/); for (j = 1; j <= n; j++) add(base(w[j])) }
  ' "$from/modules.dep" "$from/modules.softdep" >"$W/modules.list"
  while read -r m; do
    mkdir -p "$to/${m%/*}"
    case $m in
      *.xz) xz -dc "$from/$m" >"$to/${m%.xz}" ;;
      *.zst) zstd -qdc "$from/$m" >"$to/${m%.zst}" ;;
      *) cp "$from/$m" "$to/$m" ;;
    esac
  done <"$W/modules.list"
  cp "$from"/modules.builtin* "$from/modules.order" "$to/"
  in_root "$W/base" usr/sbin/depmod -b "$W/root" "$RELEASE"
}

make_root() {
  local r=$W/root b=$W/base p f lib
  mkdir -p "$r"/{dev,proc,sys,tmp,run,mnt,lab} "$r"/etc/nvme "$r"/root "$r"/usr/{bin,sbin,lib64} "$r"/usr/lib/x86_64-linux-gnu
  ( cd "$r" && ln -s usr/bin bin && ln -s usr/sbin sbin && ln -s usr/lib lib && ln -s usr/lib64 lib64 )
  cp "$b/usr/bin/busybox" "$r/usr/bin/"
  ( cd "$r/usr/bin" && for f in $(./busybox --list); do [ "$f" = busybox ] || ln -s busybox "$f"; done )
  # The kernel calls this one by its full name.
  ln -s ../bin/busybox "$r/usr/sbin/modprobe"
  lib=usr/lib/x86_64-linux-gnu
  # libgcc_s and libm: programs of the project are linked with them.
  cp -L "$b/$lib/libgcc_s.so.1" "$b/$lib/libm.so.6" "$b/$lib/libc.so.6" "$r/$lib/"
  cp -L "$b/usr/lib64/ld-linux-x86-64.so.2" "$r/usr/lib64/"
  for p in $PROGRAMS; do
    for f in "$b/usr/sbin/$p" "$b/usr/bin/$p"; do [ ! -e "$f" ] || break; done
    rm -f "$r/usr/bin/$p"
    cp -L "$f" "$r/usr/bin/"
    "$b/usr/lib64/ld-linux-x86-64.so.2" --library-path "$b/$lib" --list "$f" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
  done | sort -u | xargs -I{} cp -L {} "$r/$lib/"
  for p in mke2fs:mkfs.ext4 e2fsck:fsck.ext4; do ln -sf "${p%:*}" "$r/usr/bin/${p#*:}"; done
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'guest:x:1000:1000:guest:/tmp:/bin/sh' >"$r/etc/passwd"
  printf '%s\n' 'root:x:0:' 'guest:x:1000:' >"$r/etc/group"
  ln -s /proc/mounts "$r/etc/mtab"
  echo 127.0.0.1 localhost >"$r/etc/hosts"
  : >"$r/etc/fstab"
}

# QEMU: the host's if it has a user-mode network, else Debian's, run from the folder by its own loader.
make_qemu() {
  local q
  if q=$(command -v qemu-system-x86_64) && "$q" -netdev help 2>/dev/null | grep -qx user; then
    printf '#!/bin/sh\nexec %s "$@"\n' "$q" >"$W/qemu"
  else
    fetch "$W/qemu.d" qemu-system-x86
    rm -rf "$W"/qemu.d/usr/share/{doc,locale,man,icons}
    q='$(dirname "$0")/qemu.d/usr'
    cat >"$W/qemu" <<E
#!/bin/sh
Q=$q
export QEMU_MODULE_DIR="\$Q/lib/x86_64-linux-gnu/qemu"
exec "\$Q/lib64/ld-linux-x86-64.so.2" --library-path "\$Q/lib/x86_64-linux-gnu" "\$Q/bin/qemu-system-x86_64" \\
  -L "\$Q/share/qemu" -L "\$Q/share/seabios" -L "\$Q/lib/ipxe/qemu" "\$@"
E
  fi
  chmod 755 "$W/qemu"
}

stamp=$(sha256sum <"$0")
have() { [ "$(cat "$F/stamp" 2>/dev/null)" = "$stamp" ] && "$F/qemu" --version >/dev/null 2>&1; }
have && exit 0
[ "$(uname -m)" = x86_64 ] || cannot "the lab's guest is x86-64, this host is $(uname -m)"
for p in apt-get apt-cache dpkg-deb tar xz awk flock; do
  command -v $p >/dev/null || cannot "no $p on this host: packages of Debian cannot be fetched"
done
exec 9>"$F/lock"; flock 9
have && exit 0
W=$F/making
rm -rf "$W"; mkdir -p "$W"
: >"$W/about"
own_apt
fetch "$W/base" $PACKAGES
fetch_kernel
make_root
copy_modules
make_qemu
rm -rf "$F"/{vmlinuz,root,qemu,qemu.d,about,stamp}
mv "$W"/{vmlinuz,root,qemu,about} "$F/"
[ ! -d "$W/qemu.d" ] || mv "$W/qemu.d" "$F/"
rm -rf "$W"
echo "$stamp" >"$F/stamp"
