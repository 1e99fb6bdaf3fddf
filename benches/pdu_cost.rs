//! What a command costs in the controller's end of an NVMe/TCP connection: capsule in, completion, output drained,
//! N times, DEPTH at once. `cargo bench -p blkcopy --bench pdu_cost -- read 20000 [DEPTH]` prints nanoseconds; for
//! instructions, run the program (`cargo bench -p blkcopy --bench pdu_cost --no-run` prints where it is) under
//! `valgrind --tool=callgrind` (subtract the counts of N and 2N). The other kinds: `write` (in the capsule), `both`
//! (read, with both digests), `flush`.

mod common;

use blkcopy::block::{Buf, BufPool};
use blkcopy::nvme::tcp::Digests;
use blkcopy::nvme::tcp::controller::{Config, Connection, Event, QueueFacts};
use blkcopy::nvme::tcp::pdu::{Form, IcReq, Kind, seal};
use blkcopy::nvme::{Cqe, Sgl, Sqe};
use std::error::Error;
use std::time::{Duration, Instant};

const LEN: u32 = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = common::args();
    let usage = "usage: pdu_cost read|write|both|flush COUNT [DEPTH]";
    let kind = args.next().ok_or(usage)?;
    let count: u64 = args.next().ok_or(usage)?.parse()?;
    let depth: u16 = args.next().map_or(Ok(32), |n| n.parse())?;
    let digests = Digests { header: kind == "both", data: kind == "both" };
    let mut sqe = match kind.as_str() {
        "read" | "both" => Sqe::new(0x02, 1).with_sgl(Sgl::transport(LEN)),
        "write" => Sqe::new(0x01, 1).with_sgl(Sgl::in_capsule(LEN)),
        "flush" => Sqe::new(0x00, 1),
        _ => return Err(usage.into()),
    };
    let config = Config {
        data_bytes_max: 1 << 20,
        in_capsule_bytes_max: 16 << 10,
        h2c_data_bytes_max: 1 << 20,
        r2t_bytes_max: 1 << 20,
        r2t_count_max: 1,
        digests,
        cpda: 0,
        entries_max: 1024,
        icreq_timeout: Duration::from_secs(1),
    };
    let mut end = Connection::new(&config).ok_or("no memory")?;
    let mut request = [0; 128];
    IcReq { hpda: 0, digests, r2t_count_max: 1 }.encode(&mut request);
    receive(&mut end, &request);
    assert!(end.next().is_none());
    end.connected(QueueFacts { entries: depth.max(2), admin: false, flow_control: false });
    let mut back = Vec::new();
    send(&mut end, &mut back);

    // All capsules of a turn, as one read would bring them.
    let form = Form { kind: Kind::CapsuleCmd, flags: 0, digests, align: 4 };
    let mut turn = Vec::new();
    for cid in 0..depth {
        sqe.set_cid(cid);
        let data = if kind == "write" { LEN } else { 0 };
        let start = turn.len();
        turn.resize(start + form.lead_len(data), 0);
        turn[start + 8..start + 72].copy_from_slice(&sqe.0);
        seal(&mut turn[start..], &form, data);
        turn.resize(turn.len() + data as usize, 0x5a);
    }

    let pool = BufPool::new(usize::from(depth) * LEN as usize, LEN as usize).ok_or("no memory")?;
    let mut slots: Vec<(u16, Option<Buf>)> = Vec::with_capacity(usize::from(depth));
    let (mut done, mut sent) = (0, 0);
    let begun = Instant::now();
    while done < count {
        let mut at = 0;
        while at < turn.len() {
            at += receive(&mut end, &turn[at..]);
            while let Some(event) = end.next() {
                let Event::Command { slot, sqe, data } = event else {
                    return Err(format!("{event:?}").into());
                };
                let answer = if sqe.opcode() == 0x02 { pool.take(LEN as usize) } else { None };
                drop(data);
                slots.push((slot, answer));
            }
        }
        for (slot, data) in slots.drain(..) {
            drop(end.complete(slot, Cqe::default(), data));
            done += 1;
        }
        sent += send(&mut end, &mut back);
    }
    let each = begun.elapsed().as_nanos() / u128::from(done);
    println!("{done} commands ({kind}) at depth {depth}: {each} ns each, {} bytes each out", sent / done);
    Ok(())
}

fn receive(end: &mut Connection, bytes: &[u8]) -> usize {
    let mut taken = 0;
    for slice in &mut end.space() {
        let n = slice.len().min(bytes.len() - taken);
        slice[..n].copy_from_slice(&bytes[taken..taken + n]);
        taken += n;
    }
    end.filled(taken);
    taken
}

fn send(end: &mut Connection, back: &mut Vec<Buf>) -> u64 {
    let mut all = 0;
    loop {
        let n: usize = end.output().iter().map(|slice| slice.len()).sum();
        if n == 0 {
            return all;
        }
        end.sent(n, back);
        back.clear();
        all += n as u64;
    }
}
