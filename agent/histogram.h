/*
 * histogram.h - counts of values by size
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_HISTOGRAM_H
#define AGENT_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BOUNDS_MAX 16

struct histogram {
	const double *bounds;                       /* rising, inclusive; static */
	unsigned count;                             /* of bounds */
	uint64_t buckets[HISTOGRAM_BOUNDS_MAX + 1]; /* the last one: beyond every bound */
	double sum;
};

/* Of an array of bounds. */
#define HISTOGRAM(array)                                                     \
	{                                                                    \
		.bounds = (array), .count = sizeof(array) / sizeof(*(array)) \
	}

/* Seconds from half a millisecond to ten, for what a database takes. */
extern const double histogram_seconds[14];

void histogram_add(struct histogram *histogram, double value);

/* All values counted so far. */
uint64_t histogram_total(const struct histogram *histogram);

#endif /* AGENT_HISTOGRAM_H */
