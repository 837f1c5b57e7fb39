/*
 * query.c - calls of io.cbshm in JSON
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "cbctl/query.h"
#include "cbctl/output.h"
#include "cbctl/segment.h"
#include "libcbshm/timestamp.h"

#define LIMIT_MAX 1000

int query_agent(struct cbctl *cbctl, const char *method, cJSON *parameters, cJSON **answer)
{
	struct cbshm_call call = {0};
	char *text = cJSON_PrintUnformatted(parameters);
	char *reply = NULL;
	int error = CBSHM_ERR_MEMORY;

	cJSON_Delete(parameters);
	*answer = NULL;
	if (text != NULL)
		error = cbshm_call_json(cbctl->client, method, text, &call, &reply);
	cJSON_free(text);
	if (error != 0)
		return fail_library(error, &call);
	*answer = cJSON_Parse(reply);
	free(reply);
	return *answer != NULL ? 0 : fail_library(CBSHM_ERR_MEMORY, NULL);
}

int query_limit(const struct command *command, const char *text, cJSON *parameters)
{
	char *end;
	long value;

	if (text == NULL)
		return 0;
	errno = 0;
	value = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || value < 1 || value > LIMIT_MAX)
		return fail_usage(command, "--limit must be a whole number from 1 to %d; it is %s",
				  LIMIT_MAX, text);
	json_whole(parameters, "limit", value);
	return 0;
}

const char *query_text(const cJSON *object, const char *name)
{
	const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, name));

	return text != NULL ? text : "";
}

int64_t query_time(const cJSON *object, const char *name)
{
	int64_t us;

	return timestamp_parse(query_text(object, name), &us) ? us : CBSHM_NO_TIME;
}

int64_t query_whole(const cJSON *object, const char *name)
{
	const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);

	return cJSON_IsNumber(value) && value->valuedouble > -9e15 && value->valuedouble < 9e15
		       ? (int64_t)value->valuedouble
		       : 0;
}

bool query_bool(const cJSON *object, const char *name)
{
	return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}
