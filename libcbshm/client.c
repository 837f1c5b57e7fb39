/*
 * client.c - one call of the agent: what a lost connection means, and when to repeat
 *
 * SPDX-License-Identifier: ISC
 *
 * Not the connections (pipeline.c), not the methods (write.c). The rule it exists for: "nothing was
 * applied" is said only when that is certain. A message of which the agent cannot have the end was
 * not applied; one that it may have and did not answer is repeated if it carries a request id, and
 * else its outcome is unknown.
 */
#include "config.h"

#include "libcbshm/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libcbshm/answer.h"
#include "libcbshm/arguments.h"
#include "libcbshm/attach.h"
#include "libcbshm/cbshm_private.h"
#include "libcbshm/error.h"
#include "libcbshm/pipeline.h"
#include "libcbshm/process.h"
#include "libcbshm/reports.h"
#include "libcbshm/varlink.h"

#define RECONNECT_FIRST_MS 20 /* doubled from attempt to attempt */
#define RECONNECT_MAX_MS   640
#define MARGIN_MAX_MS      500

/* One call on its way. */
struct exchange {
	struct cbshm *client;
	struct cbshm_call *call;
	enum client_kind kind;
	int64_t deadline;
	cJSON *message;
	cJSON *timeout_ms; /* in message */
	cJSON *root;
	const cJSON *answer;
	bool answered;  /* by the attempt just made: the error, if any, is the agent's own */
	bool unread;    /* by the attempt just made: the agent says that it could not read it */
	bool sent;      /* by the attempt just made: the agent may have acted on it */
	bool reused;    /* by the attempt just made: the connection was not new */
	bool uncertain; /* an earlier attempt may have been applied */
};

/* ---- one attempt ------------------------------------------------------------------------ */

/*
 * What is left of the caller's time, less what it takes the agent to say that it was not enough: an answer that says
 * "nothing was applied" is worth more than none.
 */
static int64_t agents_share(int64_t deadline)
{
	const int64_t left = (deadline - varlink_now()) / 1000;
	const int64_t margin = left / 10 < MARGIN_MAX_MS ? left / 10 : MARGIN_MAX_MS;

	return left - margin < 1 ? 1 : left - margin;
}

static int print_message(struct exchange *exchange, char **text, size_t *size)
{
	cJSON_SetNumberValue(exchange->timeout_ms, (double)agents_share(exchange->deadline));
	*text = cJSON_PrintUnformatted(exchange->message);
	if (*text == NULL)
		return call_fail_memory(exchange->call);
	*size = strlen(*text) + 1;
	if (*size - 1 <= VARLINK_MESSAGE_MAX)
		return 0;
	cJSON_free(*text);
	return call_fail(exchange->call, CBSHM_ERR_INVALID,
			 "details are too long: the whole message would be %zu bytes, and %u are "
			 "the limit",
			 *size - 1, VARLINK_MESSAGE_MAX);
}

static int attempt(struct exchange *exchange)
{
	struct process *process = process_of(exchange->client);
	struct pipeline_result result;
	char *text = NULL;
	size_t size = 0;
	int error;

	exchange->sent = exchange->answered = exchange->unread = exchange->reused = false;
	if (process == NULL)
		return call_fail_memory(exchange->call);
	reports_nudge(process->reports);
	error = print_message(exchange, &text, &size);
	if (error != 0)
		return error;
	error = pipelines_exchange(process->pipelines, exchange->kind == CLIENT_WAIT, text, size,
				   exchange->deadline, exchange->call, &result);
	exchange->sent = result.sent;
	exchange->reused = result.reused;
	if (error != 0)
		return error;
	exchange->answered = true;
	error = answer_parse(result.reply, exchange->call, &exchange->root, &exchange->answer);
	free(result.reply);
	/* After these the agent may be closing: what is sent into that is lost. */
	if (error == CBSHM_ERR_PROTOCOL || error == CBSHM_ERR_REFUSED)
		pipelines_distrust(process->pipelines, &result);
	if (error != 0) {
		exchange->unread = answer_is_malformed(exchange->root);
		cJSON_Delete(exchange->root);
		exchange->root = NULL;
	}
	return error;
}

/* ---- repeating -------------------------------------------------------------------------- */

/* May this attempt have been applied, for all we know? */
static bool left_uncertain(const struct exchange *exchange, int error)
{
	if (exchange->kind == CLIENT_READ || exchange->kind == CLIENT_WAIT || !exchange->sent)
		return false;
	if (exchange->answered)
		return error == CBSHM_ERR_UNKNOWN ||
		       (error == CBSHM_ERR_PROTOCOL && !exchange->unread);
	return true;
}

/* Is `error` an answer that would have been another one if the earlier attempt had been applied? */
static bool settles_it(const struct exchange *exchange, int error)
{
	return exchange->answered && (error == CBSHM_ERR_INVALID || error == CBSHM_ERR_DENIED);
}

static bool worth_repeating(const struct exchange *exchange, int attempts, int error)
{
	if (varlink_now() >= exchange->deadline)
		return false;
	if (exchange->uncertain && !exchange->sent)
		return error == CBSHM_ERR_AGENT_DOWN; /* it is being restarted: keep knocking */
	if (attempts >= 2 || exchange->kind == CLIENT_WRITE)
		return !exchange->sent && exchange->reused && error == CBSHM_ERR_AGENT_DOWN;
	if (exchange->kind == CLIENT_REPEAT && left_uncertain(exchange, error))
		return error == CBSHM_ERR_AGENT_DOWN || error == CBSHM_ERR_UNKNOWN;
	/* A kept connection may have been closed just now; that says nothing about the agent. */
	return exchange->reused && error == CBSHM_ERR_AGENT_DOWN;
}

static int outcome_unknown(const struct exchange *exchange)
{
	struct cbshm_call *call = exchange->call;
	char why[sizeof(call->message)];

	strcpy(why, call->message);
	return call_fail(call, CBSHM_ERR_UNKNOWN, "%s; whether it was applied cannot be known: %s",
			 exchange->kind == CLIENT_REPEAT
				 ? "the answer is lost, just repeat it"
				 : "the answer is lost, look before you repeat it",
			 why);
}

static int exchange_run(struct exchange *exchange)
{
	int pause_ms = RECONNECT_FIRST_MS;
	int error;

	for (int attempts = 1;; attempts++) {
		error = attempt(exchange);
		if (error == 0)
			return 0;
		if (left_uncertain(exchange, error))
			exchange->uncertain = true;
		if (!worth_repeating(exchange, attempts, error))
			break;
		if (exchange->reused)
			continue;
		varlink_pause(pause_ms, exchange->deadline);
		if (pause_ms < RECONNECT_MAX_MS)
			pause_ms *= 2;
	}
	if (exchange->uncertain && !settles_it(exchange, error))
		return outcome_unknown(exchange);
	return error;
}

/* ---- the call --------------------------------------------------------------------------- */

int call_deadline(struct cbshm_call *call, int64_t *deadline)
{
	int timeout_ms = call->timeout_ms;

	if (timeout_ms < 0 || timeout_ms > ARGUMENT_TIMEOUT_MAX_MS)
		return call_fail(call, CBSHM_ERR_INVALID,
				 "timeout_ms must be from 1 to %d, or 0 for %d; it is %d",
				 ARGUMENT_TIMEOUT_MAX_MS, CBSHM_DEFAULT_TIMEOUT_MS, timeout_ms);
	if (timeout_ms == 0)
		timeout_ms = CBSHM_DEFAULT_TIMEOUT_MS;
	*deadline = varlink_now() + (int64_t)timeout_ms * 1000;
	return 0;
}

/* Takes `parameters` over. */
static bool wrap(struct exchange *exchange, const char *method, cJSON *parameters)
{
	char name[64] = "io.cbshm.";

	strncat(name, method, sizeof(name) - strlen(name) - 1);
	exchange->message = cJSON_CreateObject();
	exchange->timeout_ms = cJSON_AddNumberToObject(parameters, "timeout_ms", 0);
	if (!cJSON_AddItemToObject(exchange->message, "parameters", parameters)) {
		cJSON_Delete(parameters);
		return false;
	}
	return exchange->timeout_ms != NULL &&
	       cJSON_AddStringToObject(exchange->message, "method", name) != NULL;
}

int client_call(struct cbshm *client, const char *method, enum client_kind kind, cJSON *parameters,
		struct cbshm_call *call, cJSON **root, const cJSON **answer)
{
	struct exchange exchange = {.client = client, .call = call, .kind = kind};
	int error, saved_errno;

	if (!wrap(&exchange, method, parameters))
		error = call_fail_memory(call);
	else if (client == NULL)
		error = call_fail(call, CBSHM_ERR_INVALID, "client must be one of cbshm_open()");
	else
		error = call_deadline(call, &exchange.deadline);
	if (error == 0)
		error = exchange_run(&exchange);
	if (error == 0)
		segment_catch_up(client);
	saved_errno = errno;
	cJSON_Delete(exchange.message);
	errno = saved_errno;
	if (error == 0)
		call->message[0] = '\0';
	*root = exchange.root;
	*answer = exchange.answer;
	return error;
}
