/*
 * arguments.h - the arguments of the writes: checked, and put into the parameters of a call
 *
 * SPDX-License-Identifier: ISC
 *
 * The limits are those of the agent, which checks again. Every function returns 0, or
 * CBSHM_ERR_INVALID with a message that names the argument, or CBSHM_ERR_MEMORY.
 */
#ifndef LIBCBSHM_ARGUMENTS_H
#define LIBCBSHM_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "cbshm.h"

#define ARGUMENT_BY_MAX         128
#define ARGUMENT_REASON_MAX     1024
#define ARGUMENT_DETAILS_MAX    32768
#define ARGUMENT_COUNT_MAX      INT64_C(9007199254740991) /* what a JSON number holds exactly */
#define ARGUMENT_TTL_MAX_US     INT64_C(315360000000000)  /* ten years */
#define ARGUMENT_TIMEOUT_MAX_MS 3600000

/* The name, which must be one. */
int add_name(cJSON *parameters, const char *name, struct cbshm_call *call);

/* The texts; NULL adds nothing. add_reason(): `required` refuses NULL. */
int add_by(cJSON *parameters, const char *by, struct cbshm_call *call);
int add_reason(cJSON *parameters, const char *reason, bool required, struct cbshm_call *call);

/* A JSON object in text, or NULL, which adds nothing. */
int add_details(cJSON *parameters, const char *details, struct cbshm_call *call);

/* Whether `details` is a JSON object that the agent takes. */
int check_details(const char *details, struct cbshm_call *call);

/* A finite number for JSON, with all 17 digits, since cJSON itself would round to 15. */
#define NUMBER_SIZE 64
void number_format(char text[NUMBER_SIZE], double value);

/* A number in [0, 1]; `argument` is its name for the caller, `field` the one on the wire. */
int add_fraction(cJSON *parameters, const char *field, const char *argument, double value,
		 struct cbshm_call *call);

/* A whole number. */
int add_whole(cJSON *parameters, const char *field, const char *argument, int64_t value,
	      int64_t min, int64_t max, struct cbshm_call *call);

/* Microseconds, as seconds on the wire. */
int add_seconds(cJSON *parameters, const char *field, const char *argument, int64_t microseconds,
		int64_t min, struct cbshm_call *call);

/* `until` and `for_us` of cbshm_disable(). */
int add_end(cJSON *parameters, int64_t until, int64_t for_us, struct cbshm_call *call);

/* `set` and `clear` of cbshm_set_policy(). `fleet`: there is nothing to follow. */
int add_policy(cJSON *parameters, bool fleet, const struct cbshm_policy *policy, uint32_t set,
	       uint32_t clear, struct cbshm_call *call);

#endif /* LIBCBSHM_ARGUMENTS_H */
