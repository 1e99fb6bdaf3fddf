# The target is killed (kill -9) and started again under I/O: the host reconnects, nothing is lost, nothing is torn.
#= promise 5, 6
. ./lib.sh
serve --cores 2 disk:disk1:64
must_attach -i 2 --reconnect-delay=1 --ctrl-loss-tmo=600 --keep-alive-tmo=5
need_ns D 1
blkcopy-lab load "$D" 512 11 4 $T.stop copy &
load=$!
for round in 1 2 3; do
  more_flushes 11 40
  check "kill -9, round $round" host kill
  check "each block old or new, what was flushed is in the file" host run blkcopy-lab check disk1 512 11 4 flushed copy
  note "$(tail -n 1 $T.said)"
  sleep 1
  serve --cores 2 disk:disk1:64
  wait_for 120 is_live && ok "the host is back" || bad "the host does not come back: $(state)"
done
more_flushes 11 40
touch $T.stop
wait $load && ok "every write and copy was done, in order" || bad "the load failed"
equal "the host's file is what the guest reads" "$(host run md5sum disk1 | cut -d' ' -f1)" "$(sum "$D" 1048576 0 64)"
check "graceful end under no load" host term
detach >/dev/null
