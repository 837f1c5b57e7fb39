/*
 * listing.h - List: a page of the breakers in the segment, sorted by name
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_LISTING_H
#define AGENT_LISTING_H

#include <stdint.h>

#include <cjson/cJSON.h>

struct cbshm_detail;
struct segment_writer;

#define LISTING_MAX 100 /* breakers in a page */

/*
 * The reply's parameters: at most `limit` breakers after the name `after` (NULL: from the first), fewer if they would not
 * fit in one message. NULL: out of memory.
 */
cJSON *listing_page(const struct segment_writer *segment, const char *after, uint32_t limit);

/* The State object of io.cbshm as JSON text, to be freed; NULL: out of memory. */
char *listing_state(const char *name, const struct cbshm_detail *detail);

#endif /* AGENT_LISTING_H */
