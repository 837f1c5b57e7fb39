/*
 * histogram.c - counts of values by size
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include "agent/histogram.h"

const double histogram_seconds[14] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
				      0.1,    0.25,  0.5,    1,     2.5,  5,     10};

void histogram_add(struct histogram *histogram, double value)
{
	unsigned at = 0;

	while (at < histogram->count && value > histogram->bounds[at])
		at++;
	histogram->buckets[at]++;
	histogram->sum += value;
}

uint64_t histogram_total(const struct histogram *histogram)
{
	uint64_t total = 0;

	for (unsigned i = 0; i <= histogram->count; i++)
		total += histogram->buckets[i];
	return total;
}
