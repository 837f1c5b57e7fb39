/*
 * exposition.h - metrics as text: OpenMetrics 1.0, or the older format of Prometheus
 *
 * SPDX-License-Identifier: ISC
 *
 * Families come one after the other, each as a whole: its name first, then all of its samples.
 */
#ifndef AGENT_EXPOSITION_H
#define AGENT_EXPOSITION_H

#include <stdbool.h>

#include "agent/histogram.h"
#include "agent/text.h"

#define EXPOSITION_OPENMETRICS_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
#define EXPOSITION_TEXT_TYPE        "text/plain; version=0.0.4; charset=utf-8"

enum exposition_type {
	EXPOSITION_GAUGE,
	EXPOSITION_COUNTER, /* samples are called NAME_total */
	EXPOSITION_HISTOGRAM,
	EXPOSITION_INFO, /* samples are called NAME_info, and are 1 */
};

struct exposition {
	struct text *text;
	bool openmetrics;
	const char *name; /* of the family, with what its samples have at their end */
	char room[96];
};

/* Does a client with this Accept header want OpenMetrics? Only who names it gets it. */
bool exposition_wants_openmetrics(const char *accept);

/* Begins a family. */
void exposition_family(struct exposition *exposition, const char *name, enum exposition_type type,
		       const char *help);

/* One sample of it. Labels are pairs of name and value, up to NULL; values are escaped. */
void exposition_sample(struct exposition *exposition, double value, ...) __attribute__((sentinel));

/* All samples of a histogram, with one label or (NULL) none. */
void exposition_histogram(struct exposition *exposition, const struct histogram *histogram,
			  const char *label, const char *label_value);

/* After the last family. */
void exposition_end(struct exposition *exposition);

#endif /* AGENT_EXPOSITION_H */
