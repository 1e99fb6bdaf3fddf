//! What a thread of the load does and what its blocks hold: a function of the seed, so that guest and host agree on it
//! without a word, and a block found later tells which operation wrote it.

/// Blocks of one thread's part of the device.
pub(crate) const PART_BLOCKS: usize = 4096;
/// Longest write or copy, in blocks.
const LENGTH_MAX: u64 = 64;
/// Every so many operations the thread flushes.
pub(crate) const FLUSH_EVERY: u64 = 16;

/// One operation of a thread; places and lengths in blocks, within the thread's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// New values for `len` blocks.
    Write { at: usize, len: usize },
    /// The values of another place, which does not overlap.
    Copy { from: usize, at: usize, len: usize },
    /// All before this is durable.
    Flush,
}

/// What a block holds: which operation wrote it first and where. Operation 0: nothing yet, zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Value {
    pub(crate) op: u64,
    pub(crate) block: u64,
}

/// One thread's operations and what its blocks hold after them.
#[derive(Clone)]
pub(crate) struct Model {
    seed: u64,
    thread: u64,
    copies: bool,
    /// The number of the last operation done; the first is 1.
    pub(crate) done: u64,
    pub(crate) blocks: Vec<Value>,
}

impl Model {
    pub(crate) fn new(seed: u64, thread: u64, copies: bool) -> Self {
        Self { seed, thread, copies, done: 0, blocks: vec![Value::default(); PART_BLOCKS] }
    }

    /// The operation after the last one done.
    pub(crate) fn next(&self) -> Op {
        let number = self.done + 1;
        if number.is_multiple_of(FLUSH_EVERY) {
            return Op::Flush;
        }
        let mut dice = Dice(mix(self.seed ^ mix(self.thread << 32 ^ number)));
        let len = 1 + dice.below(LENGTH_MAX);
        let at = dice.below(PART_BLOCKS as u64 - len + 1);
        let from = dice.below(PART_BLOCKS as u64 - len + 1);
        let apart = from.abs_diff(at) >= len;
        let [len, at, from] = [len, at, from].map(|n| usize::try_from(n).expect("below PART_BLOCKS"));
        if self.copies && apart && dice.below(4) == 0 {
            Op::Copy { from, at, len }
        } else {
            Op::Write { at, len }
        }
    }

    /// The values the next operation leaves at its place (none for a flush), with that place.
    pub(crate) fn outcome(&self) -> (usize, Vec<Value>) {
        match self.next() {
            Op::Write { at, len } => {
                let value = |block| Value { op: self.done + 1, block: block as u64 };
                (at, (at..at + len).map(value).collect())
            }
            Op::Copy { from, at, len } => (at, self.blocks[from..from + len].to_vec()),
            Op::Flush => (0, Vec::new()),
        }
    }

    /// Counts the next operation as done.
    pub(crate) fn advance(&mut self) {
        let (at, values) = self.outcome();
        self.blocks[at..at + values.len()].copy_from_slice(&values);
        self.done += 1;
    }

    /// The bytes of a block that holds `value`: its name, then bytes that follow from it.
    pub(crate) fn bytes(&self, value: Value, out: &mut [u8]) {
        if value == Value::default() {
            out.fill(0);
            return;
        }
        let name = [self.seed, self.thread, value.op, value.block];
        let mut dice = Dice(name.iter().fold(0, |hash, word| mix(hash ^ word)));
        for (i, word) in out.chunks_exact_mut(8).enumerate() {
            let bits = name.get(i).copied().unwrap_or_else(|| dice.roll());
            word.copy_from_slice(&bits.to_le_bytes());
        }
    }

    /// The value a block says it holds; its bytes may not agree.
    pub(crate) fn claim(bytes: &[u8]) -> Value {
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("eight bytes"));
        Value { op: word(2), block: word(3) }
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// The finalizer of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
