//! How the memory of a server is divided: one bound for the process, cut into equal slices for its threads, and each
//! slice into connections, payload and copies.

/// Most connections of one thread.
const CONNECTIONS_MAX: usize = 1 << 14;
/// Fewest connections of one thread that are of use: a host's admin queue and a few I/O queues.
const CONNECTIONS_MIN: usize = 8;
/// Tables of the target for one connection, in bytes: generous.
const TABLES_BYTES: usize = 24 << 10;
/// Most copies of one thread that are tasks at a time, and buffers of each in bytes.
const COPIES_MAX: usize = 8;
const COPY_BYTES_MAX: usize = 8 << 20;
const COPY_BYTES_MIN: usize = 1 << 20;
/// Most payload of one thread, in bytes, unless its longest transfers are longer.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// Buffers of the longest size at least: one for each of three hosts, one for those without a share of their own.
const LONGEST_MIN: usize = 4;
/// The shortest buffer, in bytes, and how many times longer each size is than the one before.
const SHORTEST: usize = 4096;
const STEP: usize = 4;

/// What every slice is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryNeeds {
    /// Threads.
    pub(super) cores: usize,
    /// Memory of one connection's machine, in bytes.
    pub(super) machine_bytes: usize,
    /// Longest transfer of one command, in bytes.
    pub(super) transfer_bytes: usize,
}

/// How one thread's slice is divided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MemorySlice {
    /// Connections.
    pub(super) connections: usize,
    /// Memory of each of them, in bytes.
    pub(super) connection_bytes: usize,
    /// Sizes of payload buffers, ascending: bytes and count.
    pub(super) payload: Vec<(usize, usize)>,
    /// Copies that run as tasks.
    pub(super) copies: usize,
    /// Buffers of each of them, in bytes.
    pub(super) copy_bytes: usize,
}

impl MemorySlice {
    /// Divides a bound in bytes. `None`: it is too small.
    ///
    /// Nine parts of sixteen are for connections, two for copies, and what is left for payload: the longest size gets
    /// half of that, the next half of the rest, and so on.
    pub(super) fn new(bound: usize, needs: MemoryNeeds) -> Option<Self> {
        let all = bound / needs.cores;
        let connection_bytes = needs.machine_bytes.checked_add(TABLES_BYTES)?;
        let (for_connections, for_copies) = (all / 16 * 9, all / 16 * 2);
        let connections = (for_connections / connection_bytes).min(CONNECTIONS_MAX);
        let copies = for_copies.div_ceil(COPY_BYTES_MAX).clamp(1, COPIES_MAX);
        let copy_bytes = (for_copies / copies).min(COPY_BYTES_MAX);
        // What the others cannot use, too. Never less for a larger bound.
        let left = all / 16 * 5
            + for_connections.saturating_sub(CONNECTIONS_MAX * connection_bytes)
            + for_copies.saturating_sub(COPIES_MAX * COPY_BYTES_MAX);
        let most = PAYLOAD_BYTES_MAX.max(needs.transfer_bytes.checked_mul(2 * LONGEST_MIN)?);
        let payload = sizes(left.min(most), needs.transfer_bytes);
        let is_enough = connections >= CONNECTIONS_MIN
            && copy_bytes >= COPY_BYTES_MIN
            && payload.iter().all(|&(_, count)| count >= LONGEST_MIN);
        is_enough.then_some(Self { connections, connection_bytes, payload, copies, copy_bytes })
    }

    /// The least bound that can be divided, in whole MiB, as bytes.
    pub(super) fn least(needs: MemoryNeeds) -> usize {
        let fits = |mib: &usize| Self::new(mib << 20, needs).is_some();
        (1..).find(fits).map_or(usize::MAX, |mib| mib << 20)
    }

    /// Memory it divides, in bytes: no more than its part of the bound.
    pub(super) fn bytes(&self) -> usize {
        let payload: usize = self.payload.iter().map(|(bytes, count)| bytes * count).sum();
        self.connections * self.connection_bytes + self.copies * self.copy_bytes + payload
    }
}

/// Sizes of buffers up to `longest` bytes, and how many of each fit `bytes`.
fn sizes(bytes: usize, longest: usize) -> Vec<(usize, usize)> {
    let mut lens: Vec<usize> = std::iter::successors(Some(SHORTEST), |len| Some(len * STEP))
        .take_while(|len| *len < longest)
        .collect();
    lens.push(longest.next_multiple_of(SHORTEST));
    let mut left = bytes;
    let mut sizes: Vec<_> = lens
        .iter()
        .rev()
        .enumerate()
        .map(|(at, len)| {
            let part = if at + 1 == lens.len() { left } else { left / 2 };
            left -= part;
            (*len, part / len)
        })
        .collect();
    sizes.reverse();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEEDS: MemoryNeeds = MemoryNeeds { cores: 1, machine_bytes: 318 << 10, transfer_bytes: 1 << 20 };

    #[test]
    fn the_usual_bound_is_for_a_thousand_connections_and_eighty_long_transfers() {
        let slice = MemorySlice::new(640 << 20, NEEDS).unwrap();
        assert!(slice.connections >= 1024, "{slice:?}");
        assert_eq!((slice.copies, slice.copy_bytes), (8, 8 << 20));
        let lens: Vec<_> = slice.payload.iter().map(|(bytes, _)| bytes >> 10).collect();
        assert_eq!(lens, [4, 16, 64, 256, 1024]);
        assert!(slice.payload[4].1 >= 80, "{slice:?}");
    }

    proptest! {
        #[test]
        fn no_slice_is_more_than_its_part_and_the_least_is_the_least(
            mib in 1usize..5000,
            cores in 1usize..33,
            machine_kib in 100usize..1000,
            transfer_log in 12u32..25,
        ) {
            let needs = MemoryNeeds { cores, machine_bytes: machine_kib << 10, transfer_bytes: 1 << transfer_log };
            let least = MemorySlice::least(needs);
            let slice = MemorySlice::new(mib << 20, needs);
            prop_assert!(MemorySlice::new(least - (1 << 20), needs).is_none());
            if let Some(slice) = &slice {
                prop_assert!(slice.bytes() * cores <= mib << 20, "{slice:?}");
                prop_assert!(slice.payload.last().unwrap().0 >= needs.transfer_bytes);
            }
            prop_assert_eq!(slice.is_some(), mib << 20 >= least, "{} {:?}", least, slice);
        }
    }
}
