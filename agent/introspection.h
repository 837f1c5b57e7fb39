/*
 * introspection.h - org.varlink.service: what this agent is and what it offers
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef AGENT_INTROSPECTION_H
#define AGENT_INTROSPECTION_H

#include "agent/message.h"

/*
 * The parameters of the reply. NULL: out of memory, or *fault says what is wrong (its error is then
 * not REPLY_OK).
 */
cJSON *introspection_info(const cJSON *parameters, struct fault *fault);
cJSON *introspection_description(const cJSON *parameters, struct fault *fault);

#endif /* AGENT_INTROSPECTION_H */
