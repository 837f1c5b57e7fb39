/*
 * client.h - what of the write side the rest of the library may use
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_CLIENT_H
#define LIBCBSHM_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "cbshm.h"

/* Whether a call may be made a second time after its answer was lost. */
enum client_kind {
	CLIENT_READ,   /* changes nothing: lost = not answered */
	CLIENT_WRITE,  /* must not be repeated: lost = unknown */
	CLIENT_REPEAT, /* carries a request id, so the agent applies it once: lost = repeat */
	CLIENT_WAIT, /* like CLIENT_READ, but answered late by nature: it has a connection of its own */
};

/*
 * One call of io.cbshm, on the connection that all threads share: `method` without the interface's
 * name. Takes `parameters` over. Returns 0, and *root is the reply (to be deleted) and *answer its
 * parameters; or an error of the write functions, with call->message.
 */
int client_call(struct cbshm *client, const char *method, enum client_kind kind, cJSON *parameters,
		struct cbshm_call *call, cJSON **root, const cJSON **answer);

/*
 * When a call that begins now has to end, in microseconds of CLOCK_MONOTONIC: 0, or
 * CBSHM_ERR_INVALID with a message.
 */
int call_deadline(struct cbshm_call *call, int64_t *deadline);

#endif /* LIBCBSHM_CLIENT_H */
