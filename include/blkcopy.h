/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Copy ranges of a block volume that `blkcopy mount` shows as a file, with one ioctl. C99 and C++.
 *
 * Three calls, all on a descriptor of such a file (any other file: ENOTTY):
 *
 *   BLKCOPY(n)       copies n ranges within the file
 *   BLKCOPY_SOURCE   gives a token that stands for this open file as a source
 *   BLKCOPY_FROM(n)  copies n ranges from the file of a token into this one
 *
 * Offsets and lengths are in bytes and need no alignment. Numbers have the byte order of the machine, which is
 * little-endian where this runs. A copy that returned 0 is seen by every later read, as after write(2); it survives a
 * power cut once fsync(2) of the destination has returned, or at once with BLKCOPY_DURABLE.
 *
 * The descriptor must be open for writing, and for reading too where it is the source (EBADF). copy_file_range(2) is the
 * simpler call where one range is enough; these take many, and say how far each came.
 */
#ifndef BLKCOPY_H
#define BLKCOPY_H

#include <linux/ioctl.h>
#include <stddef.h>
#include <stdint.h>

/* Most entries of one call: the size of an ioctl's argument has 14 bits. */
#define BLKCOPY_RANGES_MAX 511
#define BLKCOPY_FROM_RANGES_MAX 510

/* Most bytes of one call, all entries together: 128 MiB. More is EINVAL. */
#define BLKCOPY_BYTES_MAX (UINT64_C(128) << 20)

/*
 * One entry, 32 bytes.
 *
 * EINVAL, before anything is copied: a length of 0; a range that ends past the end of its file; an entry that
 * overlaps itself; two destinations that overlap; within one file, a source that overlaps any destination.
 */
struct blkcopy_range {
	uint64_t src;      /* in: first byte of the source */
	uint64_t dst;      /* in: first byte of the destination */
	uint64_t len;      /* in: bytes, 1 to BLKCOPY_BYTES_MAX */
	uint64_t comp_len; /* out: how many bytes from dst on are the source's, see below */
};

/*
 * Argument of BLKCOPY(n), 16 bytes; n entries follow it (blkcopy_ranges()).
 *
 * Entries run in their order, each one whole: a concurrent read or write sees all of it or nothing of it. comp_len is
 * written in every case, also when the call fails:
 *
 *   entry done                    len
 *   the entry that failed         bytes known to be good; behind them, up to len, dst may be old or new
 *   entries behind it             0: not begun
 *   call refused as a whole       0 in every entry: nothing was copied
 *
 * Returns 0, or -1 and errno:
 *
 *   EINVAL      n is 0 or too large, is not nr_range, reserved is not 0, or the entries say so (above)
 *   EBADF       the descriptor is not open for what the call needs
 *   EPERM       the volume is read-only
 *   ESTALE      BLKCOPY_FROM: no open file has this token, or no longer
 *   EOPNOTSUPP  BLKCOPY_OFFLOAD_ONLY, and the devices cannot copy an entry between them
 *   EIO, ENOSPC, ENOMEM and so on     what a device said; comp_len says how far it came
 */
struct blkcopy_ranges {
	uint64_t nr_range; /* in: entries, the n of the number */
	uint64_t reserved; /* in: 0 */
};

/* 16 bytes that stand for an open file until its last descriptor closes. Whoever knows them may read that file with
 * BLKCOPY_FROM, as if it had been handed the descriptor: keep them as one keeps a descriptor. */
struct blkcopy_token {
	uint8_t bytes[16];
};

/* Argument of BLKCOPY_FROM(n), 32 bytes; n entries follow it (blkcopy_from_ranges()). Answers as BLKCOPY(n). Source and
 * destination are files of one mount, and may be the same file. */
struct blkcopy_from {
	uint64_t nr_range;          /* in: entries, the n of the number */
	uint32_t flags;             /* in: BLKCOPY_DURABLE and so on; an unknown one is EINVAL */
	uint32_t reserved;          /* in: 0 */
	struct blkcopy_token token; /* in: of the source, from BLKCOPY_SOURCE */
};

/* The destination is flushed before the call returns. */
#define BLKCOPY_DURABLE 1u
/* EOPNOTSUPP rather than bytes that are read and written by the daemon, in its memory too, or copied by this kernel. */
#define BLKCOPY_OFFLOAD_ONLY 2u

/* Bytes of an argument with n entries. */
#define BLKCOPY_SIZE(n) (16 + 32 * (n))
#define BLKCOPY_FROM_SIZE(n) (32 + 32 * (n))

/* The size stands in the number, so that the kernel carries the entries too: only a header of a fixed size would reach
 * a FUSE server otherwise. */
#define BLKCOPY(n) _IOC(_IOC_READ | _IOC_WRITE, 0x12, 129, BLKCOPY_SIZE(n))
#define BLKCOPY_SOURCE _IOC(_IOC_READ, 0x12, 200, 16)
#define BLKCOPY_FROM(n) _IOC(_IOC_READ | _IOC_WRITE, 0x12, 201, BLKCOPY_FROM_SIZE(n))

/* The entries of an argument. It has at least BLKCOPY_SIZE(nr_range) bytes, aligned to 8. */
static inline struct blkcopy_range *blkcopy_ranges(struct blkcopy_ranges *header)
{
	return (struct blkcopy_range *)(void *)(header + 1);
}

/* The same for BLKCOPY_FROM_SIZE(nr_range) bytes. */
static inline struct blkcopy_range *blkcopy_from_ranges(struct blkcopy_from *header)
{
	return (struct blkcopy_range *)(void *)(header + 1);
}

/* C99 has no static assertion; an array of -1 is an error everywhere. */
#define BLKCOPY_ASSERT(name, holds) typedef char blkcopy_assert_##name[(holds) ? 1 : -1]
BLKCOPY_ASSERT(range_size, sizeof(struct blkcopy_range) == 32);
BLKCOPY_ASSERT(range_comp_len, offsetof(struct blkcopy_range, comp_len) == 24);
BLKCOPY_ASSERT(ranges_size, sizeof(struct blkcopy_ranges) == BLKCOPY_SIZE(0));
BLKCOPY_ASSERT(token_size, sizeof(struct blkcopy_token) == 16);
BLKCOPY_ASSERT(from_size, sizeof(struct blkcopy_from) == BLKCOPY_FROM_SIZE(0));
BLKCOPY_ASSERT(from_token, offsetof(struct blkcopy_from, token) == 16);
BLKCOPY_ASSERT(most, BLKCOPY_SIZE(BLKCOPY_RANGES_MAX) < 1 << 14);
BLKCOPY_ASSERT(most_from, BLKCOPY_FROM_SIZE(BLKCOPY_FROM_RANGES_MAX) < 1 << 14);
BLKCOPY_ASSERT(size_bits, _IOC_SIZEBITS >= 14);
#undef BLKCOPY_ASSERT

#endif
