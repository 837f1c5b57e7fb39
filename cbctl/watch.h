/*
 * watch.h - what `cbctl watch` looks at, and the table it draws of it
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_WATCH_H
#define CBCTL_WATCH_H

#include "cbctl/segment.h"

/* One look at the segment. Only an error is filled in if it could not be read. */
struct look {
	int error;     /* 0, or of the library */
	bool by_names; /* only some were asked for; those that do not exist have version 0 */
	int64_t now;   /* the database's clock */
	size_t disabled;
	struct states states; /* sorted by name */
	struct cbshm_health health;
};

/* Draws it on the screen. */
void watch_draw(const struct look *look);

#endif /* CBCTL_WATCH_H */
