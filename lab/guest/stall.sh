# Keep-alive: a target that stops (SIGSTOP) for a moment, and for too long; and a host that falls silent.
#= promise 8
. ./lib.sh
serve --cores 2 disk:disk1:64
must_attach -i 2 --reconnect-delay=1 --ctrl-loss-tmo=600 --keep-alive-tmo=10
need_ns D 1
blkcopy-lab load "$D" 512 31 4 $T.stop copy &
load=$!
more_flushes 31 20
began=$(cut -d. -f1 /proc/uptime)
host stop; sleep 1; host cont
more_flushes 31 20
if [ $(($(cut -d. -f1 /proc/uptime) - began)) -lt 5 ]; then equal "a moment is no reason to part" "$(state)" live
else skip "a moment is no reason to part: on this machine it was a long one"; fi
is_parted() { [ "$(state)" = connecting ] || [ "$(state)" = resetting ]; }
check "the target stops" host stop
wait_for 180 is_parted && ok "the host gives the connection up" || bad "state: $(state)"
sleep 3
check "the target goes on" host cont
wait_for 180 is_live && ok "the host is back" || bad "state: $(state)"
more_flushes 31 20
touch $T.stop
wait $load && ok "every write and copy was done, in order" || bad "the load failed"
equal "the host's file is what the guest reads" "$(host run md5sum disk1 | cut -d' ' -f1)" "$(sum "$D" 1048576 0 64)"

# A host whose network is down: the connections stay open on the target's machine, only keep-alive can tell.
connections() { host run grep -cE ":.0100007F:$(printf %04X "$PORT").0100007F:[0-9A-F]{4}.01" /proc/net/tcp; }
all_closed() { [ "$(connections)" = 0 ]; }
equal "connections: one for admin, two for I/O" "$(connections)" 3
ifconfig eth0 down
wait_for 120 all_closed && ok "the target closes what a silent host left" || bad "$(connections) connections still open"
ifconfig eth0 up
route add default gw 10.0.2.2 2>/dev/null
wait_for 180 is_live && ok "the host is back" || bad "state: $(state)"
check "and is answered" nvme id-ctrl "/dev/$C"
equal "the same bytes" "$(host run md5sum disk1 | cut -d' ' -f1)" "$(sum "$D" 1048576 0 64)"
detach >/dev/null
