//! Counts that the wire holds 0's based (a field of 0 means one): nobody else adds or subtracts that one.

use std::fmt;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident($field:ty), most $most:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($field);

        impl $name {
            /// One.
            pub const ONE: Self = Self(0);
            /// The largest count.
            pub const MAX: Self = Self(<$field>::MAX);

            #[doc = concat!("The count, if it is 1 to ", $most, ".")]
            pub fn new(count: u32) -> Option<Self> {
                <$field>::try_from(count.checked_sub(1)?).ok().map(Self)
            }

            /// From the 0's based field.
            pub const fn from_wire(field: $field) -> Self {
                Self(field)
            }

            /// The 0's based field.
            pub const fn to_wire(self) -> $field {
                self.0
            }

            /// The count: never 0.
            pub const fn get(self) -> u32 {
                self.0 as u32 + 1
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.get(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.get(), f)
            }
        }
    )*};
}

counts! {
    /// Logical blocks of one command or range: 1 to 65536 (NLB and its kin; AWUN: FFFFh means 10000h blocks).
    Blocks(u16), most "65536";
    /// Things counted in 16 bits that are not blocks, such as queues or entries of a queue: 1 to 65536.
    Count16(u16), most "65536";
    /// Things counted in 8 bits, such as the ranges of one command: 1 to 256 (NR, MSRC, ACL, AERL, ELPE).
    Count8(u8), most "256";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_0_is_one_and_the_largest_field_is_a_power_of_two() {
        assert_eq!((Blocks::from_wire(0).get(), Blocks::from_wire(0xffff).get()), (1, 65536));
        assert_eq!((Count8::from_wire(0).get(), Count8::from_wire(0xff).get()), (1, 256));
        assert_eq!((Blocks::ONE.get(), Blocks::MAX.get(), Count16::MAX.get()), (1, 65536, 65536));
    }

    #[test]
    fn what_the_field_cannot_hold_is_refused() {
        assert_eq!((Blocks::new(0), Blocks::new(65537), Blocks::new(u32::MAX)), (None, None, None));
        assert_eq!((Count8::new(0), Count8::new(257)), (None, None));
        for count in [1, 2, 255, 256] {
            assert_eq!(Count8::new(count).unwrap().get(), count);
            assert_eq!(u32::from(Count8::new(count).unwrap().to_wire()), count - 1);
        }
        assert_eq!(Blocks::new(65536).unwrap().to_wire(), 0xffff);
    }
}
