/*
 * error.h - how a write says what went wrong
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_ERROR_H
#define LIBCBSHM_ERROR_H

#include "cbshm.h"

/*
 * Writes the message of a failed call, cut between words if it does not fit, and returns
 * `error` for `return`. errno stays as it is.
 */
int call_fail(struct cbshm_call *call, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* call_fail() for a lack of memory. */
int call_fail_memory(struct cbshm_call *call);

#endif /* LIBCBSHM_ERROR_H */
