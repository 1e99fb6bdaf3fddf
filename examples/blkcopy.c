/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Copies ranges of a volume under `blkcopy mount`: within FILE, or from SOURCE into FILE. Prints how far each came.
 *
 *   cc -I include -o copy examples/blkcopy.c
 *   ./copy FILE SRC:DST:LEN...
 *   ./copy --from SOURCE [--durable] [--offload-only] FILE SRC:DST:LEN...
 *
 * Exit code 0: all copied; 1: not all; 2: not begun.
 */
#include <blkcopy.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int usage(void)
{
	fprintf(stderr, "usage: copy [--from SOURCE [--durable] [--offload-only]] FILE SRC:DST:LEN...\n");
	return 2;
}

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return 2;
}

int main(int argc, char **argv)
{
	const char *source = NULL, *file;
	uint32_t flags = 0;
	int at = 1, n, i, to, from = -1, result, why;
	struct blkcopy_ranges *within;
	struct blkcopy_from *between;
	struct blkcopy_range *ranges;

	for (; at < argc && strncmp(argv[at], "--", 2) == 0; at++) {
		if (strcmp(argv[at], "--from") == 0 && at + 1 < argc)
			source = argv[++at];
		else if (strcmp(argv[at], "--durable") == 0)
			flags |= BLKCOPY_DURABLE;
		else if (strcmp(argv[at], "--offload-only") == 0)
			flags |= BLKCOPY_OFFLOAD_ONLY;
		else
			return usage();
	}
	n = argc - at - 1;
	if (n < 1 || n > (source ? BLKCOPY_FROM_RANGES_MAX : BLKCOPY_RANGES_MAX) || (flags && !source))
		return usage();
	file = argv[at++];

	/* Zeroed: reserved fields must be 0. Large enough for either header. */
	within = (struct blkcopy_ranges *)calloc(1, BLKCOPY_FROM_SIZE((size_t)n));
	if (!within)
		return failed("memory");
	between = (struct blkcopy_from *)(void *)within;
	ranges = source ? blkcopy_from_ranges(between) : blkcopy_ranges(within);
	for (i = 0; i < n; i++) {
		char end;
		if (sscanf(argv[at + i], "%" SCNu64 ":%" SCNu64 ":%" SCNu64 "%c", &ranges[i].src, &ranges[i].dst,
			   &ranges[i].len, &end) != 3)
			return usage();
	}

	to = open(file, O_RDWR);
	if (to < 0)
		return failed(file);
	if (source) {
		from = open(source, O_RDONLY);
		if (from < 0)
			return failed(source);
		/* The token stands for this descriptor: it stays open until the copy is done. */
		if (ioctl(from, BLKCOPY_SOURCE, &between->token) != 0)
			return failed(source);
		between->nr_range = (uint64_t)n;
		between->flags = flags;
		result = ioctl(to, BLKCOPY_FROM((unsigned)n), between);
	} else {
		within->nr_range = (uint64_t)n;
		result = ioctl(to, BLKCOPY((unsigned)n), within);
	}
	why = errno;
	for (i = 0; i < n; i++)
		printf("%" PRIu64 ":%" PRIu64 ":%" PRIu64 " %" PRIu64 "\n", ranges[i].src, ranges[i].dst, ranges[i].len,
		       ranges[i].comp_len);
	if (result != 0)
		fprintf(stderr, "%s: %s\n", file, strerror(why));
	if (from >= 0)
		close(from);
	close(to);
	free(within);
	return result == 0 ? 0 : 1;
}
