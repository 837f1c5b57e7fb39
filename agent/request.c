/*
 * request.c - makes and frees requests
 *
 * SPDX-License-Identifier: ISC
 *
 * What is in them is checked in arguments.c and methods.c; what becomes of them is up to writer.c.
 */
#include <config.h>

#include <stdlib.h>
#include <time.h>

#include "agent/request.h"

struct request *request_new(enum request_kind kind)
{
	struct request *request = calloc(1, sizeof(*request));

	if (request != NULL)
		request->kind = kind;
	return request;
}

void request_free(struct request *request)
{
	if (request == NULL)
		return;
	free(request->name);
	free(request->details);
	free(request->reason);
	free(request->by);
	free(request->until);
	free(request->since);
	free(request->request_id);
	for (size_t i = 0; i < request->name_count; i++)
		free(request->names[i]);
	free(request->names);
	free(request);
}

int64_t request_deadline(int64_t timeout_ms)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 + timeout_ms * 1000;
}
