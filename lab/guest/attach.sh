# Attaching: discovery, connect, and what nvme-cli asks of a controller and its namespaces.
#= promise 3
. ./lib.sh
modprobe nvme-tcp
serve disk:disk1:64 mem:32MiB

discover() { nvme discover -t tcp -a $HOST -s "$PORT" "$@"; }
shows "discovery names the subsystem" "subnqn: +$NQN" discover
shows "discovery names the port" "trsvcid: +$PORT" discover
shows "discovery names the address the host listens on" "traddr: +127.0.0.1" discover
check "discovery with digests" discover --hdr-digest --data-digest
check "attach" attach || exit 0
need_ns A 1
need_ns B 2
equal "size of namespace 1" "$(cat /sys/block/"${A##*/}"/size)" 131072
equal "size of namespace 2" "$(cat /sys/block/"${B##*/}"/size)" 65536

shows "list" "$A" nvme list
shows "list-subsys" "$NQN" nvme list-subsys
shows "id-ctrl" "^subnqn +: $NQN" nvme id-ctrl "/dev/$C"
nvme id-ctrl "/dev/$C" | grep -E '^(ver|cntlid|mdts|oncs|ocfs|fuses|awun|sgls|ioccsz|iorcsz|icdoff|kas|oaes|lpa|vwc|maxcmd|mn|fr) ' | sed 's/^/    /'
shows "id-ctrl: Copy is offered" "Copy Supported" nvme id-ctrl -H "/dev/$C"
check "list-ctrl" nvme list-ctrl "/dev/$C"
shows "list-ns" "0x2" nvme list-ns "/dev/$C"
check "nvm-id-ctrl" nvme nvm-id-ctrl "/dev/$C"
check "show-regs" nvme show-regs "/dev/$C"
for n in "$A" "$B"; do
  shows "id-ns $n" "^mssrl +: [1-9]" nvme id-ns "$n"
  grep -E '^(nsze|nsfeat|mssrl|mcl|msrc|nmic|dlfeat|nawun|nguid|lbaf.*in use)' $T.said | sed 's/^/    /'
  shows "ns-descs $n" "uuid|nguid" nvme ns-descs "$n"
  check "nvm-id-ns $n" nvme nvm-id-ns "$n"
  check "cmdset-ind-id-ns $n" nvme cmdset-ind-id-ns "$n"
done
[ "$(nvme id-ns "$A" | grep '^nguid')" != "$(nvme id-ns "$B" | grep '^nguid')" ] && ok "each namespace has its NGUID" || bad "two namespaces, one NGUID"

shows "smart-log" "available_spare" nvme smart-log "/dev/$C"
shows "error-log" "Error Log Entries" nvme error-log "/dev/$C"
shows "fw-log" "frs1|afi" nvme fw-log "/dev/$C"
check "effects-log of all command sets" nvme effects-log "/dev/$C"
shows "effects-log: Copy, nothing intrusive" "IOCS25 +\[Copy +\] [0-9a-fA-F]{3}00003" nvme effects-log "/dev/$C" --csi=0
check "changed-ns-list-log" nvme changed-ns-list-log "/dev/$C"
for f in 0x01 0x02 0x04 0x06 0x07 0x0a 0x0b 0x0f 0x16; do
  check "get-feature $f" nvme get-feature "/dev/$C" -f $f
done
check "get-feature 0x05, of a namespace" nvme get-feature "/dev/$C" -f 0x05 -n 1
refuse "get-feature of no feature" "Invalid Field" nvme get-feature "/dev/$C" -f 0x7f
refuse "a log page that is none" "Invalid Log Page" nvme get-log "/dev/$C" -i 0xbf -l 512
refuse "format is no claim of ours" "Invalid Command Opcode|Invalid Field" nvme format "$A" -f

check "controller reset" nvme reset "/dev/$C"
wait_for 30 is_live && ok "live after the reset" || bad "state after the reset: $(state)"
check "id-ns after the reset" nvme id-ns "$A"
kernel_is_content

# A second controller of the same subsystem, by another path name for the same host.
FIRST=$C
check "a second controller" attach -D
[ "$C" != "$FIRST" ] && ok "$FIRST and $C" || bad "the second controller is the first"
check "the first one still answers" nvme id-ctrl "/dev/$FIRST"
check "disconnect both" detach
C=$FIRST
[ -z "$(state)" ] && ok "gone" || bad "still there: $(state)"

refuse "a subsystem that is not there" "failed|could not|error" nvme connect -t tcp -a $HOST -s "$PORT" -n ${NQN}x
check "the target serves on" discover
check "end the target" host term
refuse "nobody listens" "refused|failed|error" nvme connect -t tcp -a $HOST -s "$PORT" -n $NQN

serve --allow nqn.2024-01.com.example:friend mem:32MiB
stranger() { attach -q nqn.2024-01.com.example:stranger && wait_for 5 ns "$C" 1; }
if stranger >$T.said 2>&1; then bad "a stranger sees a namespace"; else ok "a stranger sees no namespace"; fi
detach >/dev/null 2>&1
check "a friend attaches" attach -q nqn.2024-01.com.example:friend
wait_for 30 ns "$C" 1 && ok "and sees the namespace" || bad "a friend sees no namespace"
detach >/dev/null
