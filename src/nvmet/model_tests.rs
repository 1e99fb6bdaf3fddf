//! Any mix of commands of several hosts on several queues against flat arrays of blocks: every status, every byte.

use super::testing::*;
use super::*;
use crate::nvme::copy::Format;
use crate::nvme::{IoCommand, Sgl, Status};
use crate::sim::{DelayDevice, Rng, VolatileDisk};
use proptest::prelude::*;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Blocks of the three namespaces; the third is hidden from the second host.
const SIZES: [u64; 3] = [96, 64, 64];

#[derive(Clone, Debug)]
enum Command {
    Read { nsid: u32, lba: u64, blocks: u32 },
    Write { nsid: u32, lba: u64, blocks: u32, seed: u64 },
    Zeroes { nsid: u32, lba: u64, blocks: u32, deallocate: bool },
    Deallocate { nsid: u32, ranges: Vec<(u64, u32)> },
    Compare { nsid: u32, lba: u64, blocks: u32, same: bool },
    Flush { nsid: u32 },
    Copy { nsid: u32, sdlba: u64, format: u8, ranges: Vec<(u32, u64, u32)> },
}

fn nsid() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 1..4u32, 1 => Just(0), 1 => Just(4), 1 => Just(u32::MAX)]
}

fn lba() -> impl Strategy<Value = u64> {
    prop_oneof![30 => 0..90u64, 1 => Just(u64::MAX)]
}

fn command() -> impl Strategy<Value = Command> {
    let place = || (nsid(), lba(), 1..12u32);
    prop_oneof![
        3 => place().prop_map(|(nsid, lba, blocks)| Command::Read { nsid, lba, blocks }),
        4 => (place(), any::<u64>())
            .prop_map(|((nsid, lba, blocks), seed)| Command::Write { nsid, lba, blocks, seed }),
        2 => (place(), any::<bool>())
            .prop_map(|((nsid, lba, blocks), deallocate)| Command::Zeroes { nsid, lba, blocks, deallocate }),
        1 => (nsid(), prop::collection::vec((lba(), 0..10u32), 1..4))
            .prop_map(|(nsid, ranges)| Command::Deallocate { nsid, ranges }),
        2 => (place(), any::<bool>())
            .prop_map(|((nsid, lba, blocks), same)| Command::Compare { nsid, lba, blocks, same }),
        1 => nsid().prop_map(|nsid| Command::Flush { nsid }),
        8 => (nsid(), lba(), 0..6u8, prop::collection::vec(place(), 1..6))
            .prop_map(|(nsid, sdlba, format, ranges)| Command::Copy { nsid, sdlba, format, ranges }),
    ]
}

/// What the namespaces hold, and what each host may do.
struct Model {
    bytes: [Vec<u8>; 3],
}

/// A host of the model: how many namespaces it sees, which formats it has enabled.
#[derive(Clone, Copy)]
struct Eyes {
    sees: u32,
    formats: u16,
}

impl Model {
    fn sees(eyes: Eyes, nsid: u32) -> Result<usize, Status> {
        match nsid {
            0 => Err(Status::INVALID_NAMESPACE),
            n if n > NSID_MAX => Err(Status::INVALID_NAMESPACE),
            n if n > eyes.sees => Err(Status::INVALID_FIELD),
            n => Ok(n as usize - 1),
        }
    }

    fn place(
        eyes: Eyes,
        nsid: u32,
        lba: u64,
        blocks: u64,
    ) -> Result<(usize, std::ops::Range<usize>), Status> {
        let at = Self::sees(eyes, nsid)?;
        match lba.checked_add(blocks) {
            Some(end) if end <= SIZES[at] => Ok((at, (lba * BLOCK) as usize..(end * BLOCK) as usize)),
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Carries a command out: its status, and the data of a read.
    fn run(&mut self, eyes: Eyes, command: &Command) -> Result<Vec<u8>, Status> {
        match command {
            Command::Read { nsid, lba, blocks } => {
                let (at, range) = Self::place(eyes, *nsid, *lba, (*blocks).into())?;
                return Ok(self.bytes[at][range].to_vec());
            }
            Command::Write { nsid, lba, blocks, seed } => {
                let (at, range) = Self::place(eyes, *nsid, *lba, (*blocks).into())?;
                self.bytes[at][range].copy_from_slice(&pattern(*seed, (*blocks).into()));
            }
            Command::Zeroes { nsid, lba, blocks, .. } => {
                let (at, range) = Self::place(eyes, *nsid, *lba, (*blocks).into())?;
                self.bytes[at][range].fill(0);
            }
            Command::Deallocate { nsid, ranges } => {
                Self::sees(eyes, *nsid)?;
                let places: Result<Vec<_>, _> = ranges
                    .iter()
                    .map(|&(lba, blocks)| Self::place(eyes, *nsid, lba, blocks.into()))
                    .collect();
                for (at, range) in places? {
                    self.bytes[at][range].fill(0);
                }
            }
            Command::Compare { nsid, lba, blocks, same } => {
                Self::place(eyes, *nsid, *lba, (*blocks).into())?;
                if !same {
                    return Err(Status::COMPARE_FAILURE);
                }
            }
            Command::Flush { nsid: u32::MAX } => {}
            Command::Flush { nsid } => drop(Self::sees(eyes, *nsid)?),
            Command::Copy { nsid, sdlba, format, ranges } => {
                self.copy(eyes, *nsid, *sdlba, *format, ranges)?
            }
        }
        Ok(Vec::new())
    }

    fn copy(
        &mut self,
        eyes: Eyes,
        nsid: u32,
        sdlba: u64,
        format: u8,
        ranges: &[(u32, u64, u32)],
    ) -> Result<(), Status> {
        if format > 4 {
            // Reserved: refused with the entry.
            return Err(Status::INVALID_FIELD);
        }
        let to = Self::sees(eyes, nsid)?;
        if eyes.formats >> format & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let across = format >= 2;
        let from = |snsid: u32| if across { Self::sees(eyes, snsid) } else { Ok(to) };
        for &(snsid, ..) in ranges {
            from(snsid)?;
        }
        let total: u64 = ranges.iter().map(|r| u64::from(r.2)).sum();
        let (_, whole) = Self::place(eyes, nsid, sdlba, total)?;
        let mut sources = Vec::new();
        for &(snsid, lba, blocks) in ranges {
            let at = from(snsid)?;
            sources.push(Self::place(eyes, at as u32 + 1, lba, blocks.into())?);
        }
        let shares = |(at, r): &(usize, std::ops::Range<usize>)| {
            *at == to && r.start < whole.end && whole.start < r.end
        };
        if across && sources.iter().any(shares) {
            return Err(Status::OVERLAPPING_IO_RANGE);
        }
        let mut next = whole.start;
        for (at, range) in sources {
            let bytes = self.bytes[at][range].to_vec();
            self.bytes[to][next..next + bytes.len()].copy_from_slice(&bytes);
            next += bytes.len();
        }
        Ok(())
    }
}

/// Sends a command; `holds` is what the blocks of a Compare hold.
fn send(queue: &Queue<'_>, command: &Command, holds: Option<Vec<u8>>) -> CommandId {
    match command {
        Command::Read { nsid, lba, blocks } => {
            queue.send(read_sqe(*nsid, *lba, *blocks).with_sgl(Sgl::transport(blocks * 512)), &[])
        }
        Command::Write { nsid, lba, blocks, seed } => {
            let bytes = pattern(*seed, (*blocks).into());
            queue.send_data(write_sqe(*nsid, *lba, bytes.len()), &bytes)
        }
        Command::Zeroes { nsid, lba, blocks, deallocate } => {
            let extent = extent(*nsid, *lba, *blocks);
            queue.send(IoCommand::WriteZeroes { extent, deallocate: *deallocate }.to_sqe(), &[])
        }
        Command::Deallocate { nsid, ranges } => {
            let (sqe, list) = dsm(*nsid, ranges);
            queue.send_data(sqe, &list)
        }
        Command::Compare { nsid, lba, blocks, same } => {
            let mut bytes = holds.unwrap_or_else(|| vec![0; *blocks as usize * 512]);
            if !same {
                bytes[0] ^= 1;
            }
            queue.send_data(IoCommand::Compare(extent(*nsid, *lba, *blocks)).to_sqe(), &bytes)
        }
        Command::Flush { nsid } => queue.send(IoCommand::Flush { nsid: *nsid }.to_sqe(), &[]),
        Command::Copy { nsid, sdlba, format, ranges } => {
            let format_of = Format::from_number(*format).filter(|f| *f < Format::F4);
            let copy = if matches!(format_of, Some(Format::F2 | Format::F3)) {
                Copy::from_namespaces(*nsid, *sdlba, ranges)
            } else {
                let ranges: Vec<(u64, u32)> = ranges.iter().map(|r| (r.1, r.2)).collect();
                Copy::local(*nsid, *sdlba, &ranges)
            };
            match format_of {
                Some(format) => queue.send_copy(&copy.in_format(format)),
                None => {
                    let (mut sqe, list) = copy.command();
                    sqe.set_dword(12, sqe.dword(12) & !0xf00 | u32::from(*format) << 8);
                    queue.send_data(sqe, &list)
                }
            }
        }
    }
}

fn world(seed: u64) -> World {
    let disk = Arc::new(VolatileDisk::new("disk", SIZES[1] * BLOCK, NonZeroU32::new(512).unwrap()).unwrap());
    let mut make = Make::new([
        Arc::new(DelayDevice::new(mem(SIZES[0]), seed, 3)) as Dev,
        Arc::new(DelayDevice::new(disk, seed ^ 1, 3)),
    ]);
    let hosts = Hosts::These(vec!["nqn.a".to_owned()]);
    make.devices.push((mem(SIZES[2]), NamespaceOptions { hosts, ..Default::default() }));
    make.workers = 2;
    make.world()
}

/// Two queues of the first host on two threads, one of the second; what each may do.
fn queues(world: &World) -> ([Queue<'_>; 3], [Eyes; 3], [Queue<'_>; 2]) {
    let (a, b) = (world.host("nqn.a"), world.host("nqn.b").on_worker(1));
    let (admin_a, admin_b) = (a.admin(), b.admin());
    admin_a.enable_formats(0b1100);
    let queues = [a.io(&admin_a, 1), a.clone().on_worker(1).io(&admin_a, 2), b.io(&admin_b, 1)];
    let first = Eyes { sees: 3, formats: 0b1111 };
    (queues, [first, first, Eyes { sees: 2, formats: 0b0011 }], [admin_a, admin_b])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    //= promise 1, 3
    #[test]
    fn any_mix_of_commands_equals_flat_arrays(
        seed in any::<u64>(),
        commands in prop::collection::vec((0..3usize, command()), 1..60),
    ) {
        let world = world(seed);
        let (queues, eyes, _admins) = queues(&world);
        let mut model = Model { bytes: SIZES.map(|blocks| vec![0; (blocks * BLOCK) as usize]) };
        for (who, command) in &commands {
            let holds = match command {
                Command::Compare { nsid, lba, blocks, .. } => Model::place(eyes[*who], *nsid, *lba, (*blocks).into())
                    .ok()
                    .map(|(at, range)| model.bytes[at][range].to_vec()),
                _ => None,
            };
            let told = queues[*who].wait(send(&queues[*who], command, holds));
            match model.run(eyes[*who], command) {
                Ok(data) => {
                    prop_assert_eq!(told.status, Status::SUCCESS, "{:?}", command);
                    prop_assert!(told.data == data, "{:?}", command);
                }
                Err(status) => {
                    prop_assert_eq!(told.status, status, "{:?}", command);
                    prop_assert!(told.data.is_empty());
                }
            }
            prop_assert_eq!(told.result, 0);
        }
        for (namespace, bytes) in world.subsystem.namespaces().iter().zip(&model.bytes) {
            prop_assert!(contents(namespace.device()) == *bytes, "namespace {}", namespace.nsid());
        }
        prop_assert!(world.is_idle());
        prop_assert_eq!(world.free_buffers(), world.pool.count());
    }
}

/// A block that tells its writer in every word.
fn marked(id: u64, blocks: u64) -> Vec<u8> {
    let word = |i: u64| (id << 16) | (i % (BLOCK / 8));
    (0..blocks * BLOCK / 8).flat_map(|i| word(i).to_le_bytes()).collect()
}

/// Whose block it is; 0 for one of zeroes.
fn writer_of(block: &[u8]) -> Option<u64> {
    if block.iter().all(|&b| b == 0) {
        return Some(0);
    }
    let id = u64::from_le_bytes(block[..8].try_into().ok()?) >> 16;
    (marked(id, 1) == block).then_some(id)
}

//= promise 4
#[test]
fn commands_at_once_leave_whole_blocks_and_each_is_answered() {
    for seed in 0..12 {
        let world = world(seed);
        let (queues, eyes, _admins) = queues(&world);
        let mut rng = Rng::new(seed);
        let mut out: Vec<(usize, CommandId)> = Vec::new();
        for id in 1..400u64 {
            let who = rng.index(3);
            let nsid = 1 + rng.below(eyes[who].sees.into()) as u32;
            let (lba, blocks) = (rng.below(48), 1 + rng.below(12) as u32);
            let queue = &queues[who];
            let from = match rng.below(10) {
                0..4 => {
                    queue.send_data(write_sqe(nsid, lba, blocks as usize * 512), &marked(id, blocks.into()))
                }
                4 => queue.send(read_sqe(nsid, lba, blocks).with_sgl(Sgl::transport(blocks * 512)), &[]),
                5 => send(queue, &Command::Zeroes { nsid, lba, blocks, deallocate: true }, None),
                6 => send(queue, &Command::Flush { nsid: u32::MAX }, None),
                _ => {
                    let format =
                        if eyes[who].formats & 4 != 0 { 2 + rng.below(2) as u8 } else { rng.below(2) as u8 };
                    let ranges = (0..1 + rng.below(3))
                        .map(|_| {
                            (
                                1 + rng.below(eyes[who].sees.into()) as u32,
                                rng.below(56),
                                1 + rng.below(4) as u32,
                            )
                        })
                        .collect();
                    send(queue, &Command::Copy { nsid, sdlba: lba, format, ranges }, None)
                }
            };
            out.push((who, from));
            if rng.below(4) == 0 {
                world.turns(rng.index(3));
            }
        }
        for (who, from) in out {
            let told = queues[who].wait(from);
            let is_fine = told.status.is_success() || told.status == Status::OVERLAPPING_IO_RANGE;
            assert!(is_fine, "{}", told.status);
            for block in told.data.chunks_exact(512) {
                assert!(writer_of(block).is_some(), "a read saw a torn block");
            }
        }
        for namespace in world.subsystem.namespaces().iter() {
            for block in contents(namespace.device()).chunks_exact(512) {
                assert!(writer_of(block).is_some(), "a torn block");
            }
        }
        assert!(world.is_idle());
        assert_eq!(world.free_buffers(), world.pool.count());
    }
}
