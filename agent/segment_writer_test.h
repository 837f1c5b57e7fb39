/*
 * segment_writer_test.h - what only the tests do to a segment writer
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_SEGMENT_WRITER_TEST_H
#define AGENT_SEGMENT_WRITER_TEST_H

#include <stdint.h>

#include "agent/segment_writer.h"

/* How long a removed breaker's slot rests; 60 s otherwise. */
void segment_writer_set_cool_down(struct segment_writer *writer, int64_t nanoseconds);

#endif /* AGENT_SEGMENT_WRITER_TEST_H */
