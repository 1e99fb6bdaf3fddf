# Copy: formats 0 to 3, two namespaces, each limit met and passed, each status that a host can provoke.
#= promise 1, 7
. ./lib.sh
serve --log copies disk:one:64 disk:two:64 mem:32MiB
must_attach -i 2
need_ns A 1
need_ns B 2
need_ns M 3
raw() { blkcopy-lab copy "$@"; }
field() { nvme id-ns "$A" | sed -n "s/^$1 *: *//p"; }
DIRECT=$HOST MSSRL=$(field mssrl) MCL=$(field mcl) MSRC=$(field msrc)
note "MSSRL $MSSRL, MCL $MCL, MSRC $MSRC"
END=131072
random $T.r 8192
put $T.r "$A" 1048576 0 8
random $T.s 8192
put $T.s "$B" 1048576 0 8

parts() { # DEVICE+FIRST+COUNT..: checksum of these blocks, one after the other
  local p d f
  for p; do
    d=${p%%+*} f=${p#*+}
    dd if="$d" bs=512 skip="${f%+*}" count="${f#*+}" iflag=direct 2>/dev/null || echo "read error at $p"
  done | md5sum | cut -d' ' -f1
}
same() { # NAME DEST+FIRST+COUNT SOURCE..: the destination holds the sources
  local name=$1 dest=$2; shift 2
  equal "$name: data" "$(parts "$@")" "$(parts "$dest")"
}

check "format 0, one range" nvme copy "$A" --format=0 --sdlba=40000 --slbs=0 --blocks=255
same "format 0, one range" "$A+40000+256" "$A+0+256"
check "one block" nvme copy "$A" --format=0 --sdlba=41001 --slbs=77 --blocks=0
same "one block" "$A+41001+1" "$A+77+1"
check "format 0, four ranges" nvme copy "$A" --format=0 --sdlba=42000 --slbs=1024,2048,4096,0 --blocks=255,127,255,9
same "format 0, four ranges" "$A+42000+650" "$A+1024+256" "$A+2048+128" "$A+4096+256" "$A+0+10"
check "the same range twice" raw "$A" 43000 8+8 8+8 12+8
same "the same range twice" "$A+43000+24" "$A+8+8" "$A+8+8" "$A+12+8"
check "format 1" nvme copy "$A" --format=1 --sdlba=44000 --slbs=100,300 --blocks=99,49
same "format 1" "$A+44000+150" "$A+100+100" "$A+300+50"
check "FUA" raw "$A" 45000 5+64 fua
same "FUA" "$A+45000+64" "$A+5+64"
check "memory" nvme copy "$M" --format=0 --sdlba=1000 --slbs=0 --blocks=255
many=$(i=0; while [ $i -lt $((MSRC + 1)) ]; do echo "$((i * 2))+1"; i=$((i + 1)); done)
check "all $((MSRC + 1)) ranges" raw "$A" 46000 $many
same "all ranges" "$A+46000+$((MSRC + 1))" $(for r in $many; do echo "$A+$r"; done)
check "the last block of the namespace as source" raw "$A" 47000 $((END - 1))+1
check "the last block of the namespace as destination" raw "$A" $((END - 1)) 9+1
same "the last block of the namespace" "$A+$((END - 1))+1" "$A+9+1"

# An overlap in format 0 is no error, and every block holds some source's old data.
put $T.r "$A" 1048576 0 8
check "overlap forward" raw "$A" 8 0+64
check "onto itself" raw "$A" 200 200+64
same "onto itself" "$A+200+64" "$A+200+64"

# Formats 2 and 3 want to be enabled, for one controller and until its reset.
refuse "format 2 before it is enabled" "0h/02h.* 0$" raw "$A" 50000 format=2 0+8:2
refuse "format 3 before it is enabled" "0h/02h.* 0$" raw "$A" 50000 format=3 0+8:2
if ! cdfe 12 >$T.said 2>&1 && grep -qi 'permission denied' $T.said; then
  note "this kernel lets nobody set feature 16h: by a relay that renames it"
  detach >/dev/null
  through_relay
  wait_for 30 attach -i 2 || give_up "attach through the relay"
  need_ns A 1
  need_ns B 2
  need_ns M 3
  check "formats 2 and 3 enabled" cdfe 12
fi
put $T.r "$A" 1048576 0 8
check "format 2, from another namespace" nvme copy "$A" --format=2 --snsids=2 --sdlba=50000 --slbs=0 --blocks=255
same "format 2, from another namespace" "$A+50000+256" "$B+0+256"
check "format 2, other then own" nvme copy "$A" --format=2 --snsids=2,1,3 --sdlba=51000 --slbs=64,64,1000 --blocks=63,31,7
same "format 2, other then own" "$A+51000+104" "$B+64+64" "$A+64+32" "$M+1000+8"
check "format 3, from another namespace" nvme copy "$B" --format=3 --snsids=1,2 --sdlba=52000 --slbs=0,9 --blocks=99,0
same "format 3, from another namespace" "$B+52000+101" "$A+0+100" "$B+9+1"
check "from a file to memory" nvme copy "$M" --format=2 --snsids=1 --sdlba=2000 --slbs=512 --blocks=255
same "from a file to memory" "$M+2000+256" "$A+512+256"
check "from one file to another, 4 MiB" nvme copy "$A" --format=2 --snsids=2 --sdlba=65536 --slbs=0 --blocks=8191
same "from one file to another, 4 MiB" "$A+65536+8192" "$B+0+8192"
refuse "overlap by the last block" "1h/87h" raw "$A" 1007 format=2 1000+8:1
refuse "overlap by the first block" "1h/87h" raw "$A" 1000 format=2 1007+8:1
refuse "overlap, identical" "1h/87h" raw "$A" 1000 format=2 1000+8:1
refuse "overlap, inside" "1h/87h" raw "$A" 1000 format=2 3000+8:1 1004+2:1
check "side by side is no overlap" raw "$A" 1008 format=2 1000+8:1
check "the same blocks of another namespace are no overlap" raw "$A" 1000 format=2 1000+8:2
refuse "SNSID 0" "0h/0bh" raw "$A" 53000 format=2 0+8:0
refuse "SNSID of all namespaces" "0h/0bh" raw "$A" 53000 format=2 0+8:0xffffffff
NN=$(nvme id-ctrl "/dev/$C" | sed -n 's/^nn *: *//p')
refuse "SNSID above NN" "0h/0bh" raw "$A" 53000 format=2 0+8:$((NN + 1))
refuse "SNSID of no namespace that is there" "0h/02h" raw "$A" 53000 format=2 0+8:4
refuse "the same in the second range" "0h/02h" raw "$A" 53000 format=2 0+8:1 0+8:4
refuse "fast copy only, where it must be read and written" "1h/86h" raw "$A" 53000 format=2 0+8:3:0x8000
check "format 0 goes on" raw "$A" 53000 0+8
hbs() { nvme get-feature "/dev/$1" -f 0x16 -l 512 -b | od -An -tx1 -j4 -N2 | tr -d ' '; }
equal "the feature reads as it was set" "$(hbs "$C")" 0c00
FIRST=$C
check "a second controller" attach -D
equal "enabling is no matter of another controller" "$(hbs "$C")" 0000
nvme disconnect -d "$C" >/dev/null
C=$FIRST
check "controller reset" nvme reset "/dev/$C"
wait_for 30 is_live || bad "not live after the reset"
wait_for 30 nvme id-ns "$A"
refuse "format 2 after the reset" "0h/02h" raw "$A" 53000 format=2 0+8:2

# Limits: met, then passed by one; a refused Copy writes nothing.
before=$(parts "$A+60000+2048")
refuse "format 4" "0h/02h" raw "$A" 60000 format=4 0+8
refuse "format 15" "0h/02h" raw "$A" 60000 format=15 0+8
refuse "source one past the end" "0h/80h" raw "$A" 60000 $((END - 7))+8
refuse "source far past the end" "0h/80h" raw "$A" 60000 0xfffffffffffffff0+64
refuse "second source past the end" "0h/80h" raw "$A" 60000 0+8 $END+1
refuse "destination one past the end" "0h/80h" raw "$A" $((END - 7)) 0+8
refuse "destination far past the end" "0h/80h" raw "$A" 0xffffffffffffffff 0+8
refuse "a list shorter than the ranges it names" "0h/" raw "$A" 60000 0+8 8+8 bytes=32
refuse "a list longer than the ranges it names" "0h/" raw "$A" 60000 0+8 8+8 count=1
if [ "$MSRC" -lt 255 ]; then refuse "one range more than MSRC allows" "1h/83h" raw "$A" 60000 $many 0+1
else note "MSRC allows all 256 ranges a command can name"; fi
equal "nothing was written" "$before" "$(parts "$A+60000+2048")"
kernel_is_content
shows "the target tells of its copies" "." host run grep -c . target.out
host run tail -n 3 target.out | sed 's/^/    /'
detach >/dev/null
check "the target ends" host term

# MSSRL and MCL may be larger than a small namespace: a large one with holes.
SIZE=$((MCL / 2048 + MSSRL / 2048 + 64))
[ $SIZE -gt 256 ] || SIZE=256
if [ $SIZE -gt 65536 ]; then
  skip "MSSRL and MCL passed by one: $MCL blocks are more than this host's file system is asked to hold"
else
  HOST=$DIRECT
  serve disk:large:$SIZE
  must_attach -i 2
  need_ns A 1
  put $T.r "$A" 1048576 0 8
  equal "MSSRL and MCL are those of the smaller one" "$(field mssrl) $(field mcl)" "$MSSRL $MCL"
  check "a range as long as MSSRL" raw "$A" $((MSSRL + 1)) 0+$MSSRL
  same "a range as long as MSSRL" "$A+$((MSSRL + 1))+16384" "$A+0+16384"
  refuse "a range one block longer" "1h/83h" raw "$A" $((MSSRL + 1)) 0+$((MSSRL + 1))
  refuse "a range one block longer, behind others" "1h/83h" raw "$A" $((MSSRL + 100)) 0+8 0+$((MSSRL + 1))
  full=$((MCL / MSSRL)) left=$((MCL % MSSRL)) ranges= i=0
  if [ $full -ge $((MSRC + 1)) ]; then skip "MCL passed by one: no command can name so many blocks"
  else
    while [ $i -lt $full ]; do ranges="$ranges 0+$MSSRL"; i=$((i + 1)); done
    [ $left = 0 ] || ranges="$ranges 0+$left"
    check "as many blocks as MCL" raw "$A" $((MSSRL + 1)) $ranges
    refuse "one block more than MCL" "1h/83h" raw "$A" $((MSSRL + 1)) $ranges 0+1
  fi
  detach >/dev/null
fi
