/*
 * arguments.h - the parameters of io.cbshm's methods, checked and put into a request
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_ARGUMENTS_H
#define AGENT_ARGUMENTS_H

#include "agent/message.h"
#include "agent/methods.h"
#include "agent/report.h"

#define ARGUMENT_TIMEOUT_MAX_MS 3600000
#define ARGUMENT_COUNT_MAX      INT64_C(9007199254740991) /* what a JSON number holds exactly */

/*
 * Parses the parameters of a call of a method of io.cbshm. List's `after` becomes the name. False: *fault names the
 * field. Whatever came before it stays in the request, for request_free().
 */
bool arguments_parse(enum method_id method, const struct message *message, struct request *request,
		     struct fault *fault);

/* The same for a report that was read without a tree: nothing of it is wrong. */
bool arguments_of_report(const struct report *report, struct request *request, struct fault *fault);

#endif /* AGENT_ARGUMENTS_H */
