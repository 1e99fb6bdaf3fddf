# What the guest scripts share: checks, words with the host, and where namespaces are.
#
# Every check prints one line that begins with "ok - ", "NOT OK - " or "skip - "; the host counts those lines.

HOST=10.0.2.2 # the host's 127.0.0.1, as QEMU's user-mode network shows it
NQN=nqn.2024-01.com.example:lab
T=/tmp/t # scratch names begin so

ok() { echo "ok - $*"; }
skip() { echo "skip - $*"; }
bad() { echo "NOT OK - $*"; }
# give_up WHY: a failed check after which the script makes no sense
give_up() { bad "$*"; exit 0; }
note() { echo "   # $*"; }
said() { head -n "${1:-8}" $T.said | sed 's/^/    /'; }

# check NAME COMMAND..: the command succeeds
check() {
  local name=$1; shift
  if "$@" >$T.said 2>&1; then ok "$name"; else bad "$name: exit status $?"; said; return 1; fi
}
# refuse NAME PATTERN COMMAND..: the command fails and says PATTERN
refuse() {
  local name=$1 pattern=$2; shift 2
  if "$@" >$T.said 2>&1; then bad "$name: it was done"; said; return 1; fi
  if grep -qiE "$pattern" $T.said; then ok "$name"; else bad "$name: it failed, but did not say $pattern"; said; return 1; fi
}
# equal NAME A B: two texts are the same
equal() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: $2 is not $3"; fi; }
# shows NAME PATTERN COMMAND..: the command succeeds and prints PATTERN
shows() {
  local name=$1 pattern=$2; shift 2
  if ! "$@" >$T.said 2>&1; then bad "$name: exit status not 0"; said; return 1; fi
  if grep -qE "$pattern" $T.said; then ok "$name"; else bad "$name: no $pattern in what it printed"; said 30; return 1; fi
}
# wait_for SECONDS COMMAND..: until it succeeds
wait_for() {
  local tries=$(($1 * 5)); shift
  until "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || return 1
    sleep 0.2
  done
}

# host WORDS..: asks the host to do something (xtask/src/lab/host.rs has the words); prints what it answers, returns its status
host() {
  local status lines line
  echo "@host $*" >&9
  read -r status lines <&9 || return 125
  while [ "$lines" -gt 0 ]; do
    IFS= read -r line <&9
    printf '%s\n' "$line"
    lines=$((lines - 1))
  done
  return "$status"
}

# serve WORDS..: a target on the host with these arguments; its port is in $PORT. disk:NAME:SIZE is a new file of the host.
serve() {
  PORT=$(host serve --nqn $NQN "$@") && return
  give_up "the target did not start: $PORT"
}

# attach ARGS..: connects to the target; $C is the controller (nvme0), wherever it was found
attach() {
  [ -d /sys/module/nvme_tcp ] || modprobe nvme-tcp
  nvme connect -t tcp -a $HOST -s "$PORT" -n $NQN -o json "$@" >$T.connect 2>&1 || { cat $T.connect; return 1; }
  C=$(sed -n 's/.*"device" *: *"\(nvme[0-9]*\)".*/\1/p' $T.connect)
  [ -n "$C" ] || { echo "nvme connect named no device:"; cat $T.connect; return 1; }
}
detach() { nvme disconnect -n $NQN; }

# ns CONTROLLER NSID: the block device of a namespace. Linux scans namespaces in parallel: the last number of
# /dev/nvme0n1 is not the NSID.
ns() {
  local d b
  for d in /sys/class/nvme/"$1"/nvme*n*; do
    [ "$(cat "$d/nsid" 2>/dev/null)" = "$2" ] || continue
    # With multipath the path is nvme0c0n1 and the device nvme0n1.
    b=/dev/$(echo "${d##*/}" | sed 's/c[0-9]*n/n/')
    [ -b "$b" ] && { echo "$b"; return; }
  done
  return 1
}
# need_ns VARIABLE NSID: waits for a namespace of $C and puts its block device into the variable
need_ns() {
  wait_for 30 ns "$C" "$2" || give_up "namespace $2 of $C did not appear"
  eval "$1=$(ns "$C" "$2")"
}
state() { cat "/sys/class/nvme/$C/state" 2>/dev/null; }
is_live() { [ "$(state)" = live ]; }

# must_attach ARGS..: attaches, or the script ends
must_attach() { attach "$@" >$T.said 2>&1 || { said; give_up "attach $*"; }; }
# relay LISTEN TO [FEATURE]: in the background, until the machine ends
relay() {
  blkcopy-lab relay "$@" >$T.relay 2>&1 &
  wait_for 20 grep -q listening $T.relay || give_up "no relay: $(cat $T.relay)"
}
# cdfe BITS: Copy Descriptor Formats Enable of $C, the rest of Host Behavior Support as it was; by feature $HBS
HBS=0x16
cdfe() {
  nvme get-feature "/dev/$C" -f 0x16 -l 512 -b >$T.hbs || return 1
  printf "\\$(printf %03o "$1")\\000" | dd of=$T.hbs bs=1 seek=4 conv=notrunc 2>/dev/null
  nvme set-feature "/dev/$C" -f $HBS -l 512 -d $T.hbs
}
# through_relay: from here on the target is reached through a relay that makes feature 16h of a vendor's one
through_relay() {
  relay 127.0.0.1:4421 $HOST:"$PORT" 214
  HBS=214 HOST=127.0.0.1 PORT=4421
}

# Reads and writes past the page cache, in blocks of BYTES.
put() { dd if="$1" of="$2" bs="$3" seek="$4" count="${5:-4194304}" oflag=direct conv=notrunc 2>$T.dd || { cat $T.dd; return 1; }; }
# sum DEVICE BYTES FIRST COUNT: checksum of COUNT blocks of BYTES; a read that failed is equal to nothing
sum() {
  if dd if="$1" of=$T.sum bs="$2" skip="$3" count="$4" iflag=direct 2>$T.dd; then md5sum <$T.sum | cut -d' ' -f1
  else echo "read-error-$(cat /proc/sys/kernel/random/uuid)"; fi
}
# random FILE KIBIBYTES
random() { dd if=/dev/urandom of="$1" bs=1024 count="$2" 2>/dev/null; }
# digest [FILE]: of a file, or of what comes in
digest() { md5sum "$@" | cut -d' ' -f1; }

# more_flushes SEED COUNT: waits until the load of this seed has announced so many more flushes
flushes() { host run grep -c "^@flushed.$1." flushed; }
more_flushes() {
  local want=$(($(flushes "$1") + $2))
  enough() { [ "$(flushes "$1")" -ge $want ]; }
  wait_for 120 enough "$1" || give_up "the load makes no progress"
}

# The kernel found nothing to complain about since the script began.
kernel_is_content() {
  if dmesg | grep -E 'WARNING:|BUG:|Oops|Call Trace|blocked for more than|I/O error|protocol error|unexpected' >$T.said; then
    bad "the kernel complains"; said
  else ok "no complaint from the kernel"; fi
}
