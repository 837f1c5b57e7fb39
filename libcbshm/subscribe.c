/*
 * subscribe.c - a subscription: a descriptor to poll, and events
 *
 * SPDX-License-Identifier: ISC
 *
 * The descriptor stays the same while connections come and go: it is an epoll(7) set of the socket
 * and a timer. The timer is when to connect again; or now, as long as there are events that the
 * caller has not taken, so that poll(2) never sleeps over them.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cbshm.h"
#include "libcbshm/answer.h"
#include "libcbshm/cbshm_private.h"
#include "libcbshm/error.h"
#include "libcbshm/name.h"
#include "libcbshm/varlink.h"
#include "libcbshm/write.h"

#define NAMES_MAX      1000
#define RETRY_FIRST_US INT64_C(100000) /* doubled from attempt to attempt */
#define RETRY_MAX_US   INT64_C(5000000)
#define NEVER          INT64_MAX

struct cbshm_subscription {
	struct cbshm *client;
	char *message; /* the call */
	int epoll, timer;
	int64_t timer_at; /* what the timer is set to, microseconds of CLOCK_MONOTONIC; NEVER */
	struct varlink stream;
	int64_t retry_at; /* while not connected */
	int64_t retry_us;

	/* A reply that has not been told to its end; NULL: none. */
	cJSON *root;
	const cJSON *breaker, *unknown; /* the next of each */
	bool complete;

	bool completed; /* told for this connection */
	int lost;       /* the error to be told; 0: none */
	int told;       /* the error told last, while there is no connection */
	struct cbshm_call call;
};

/* ---- the descriptor --------------------------------------------------------------------- */

static void set_timer(struct cbshm_subscription *subscription, int64_t at)
{
	struct itimerspec time = {.it_value = {at / 1000000, at % 1000000 * 1000}};

	if (subscription->timer_at == at)
		return;
	if (at == NEVER)
		memset(&time, 0, sizeof(time));
	else if (at == 0)
		time.it_value.tv_nsec = 1; /* long ago */
	timerfd_settime(subscription->timer, TFD_TIMER_ABSTIME, &time, NULL);
	subscription->timer_at = at;
}

static bool has_events(const struct cbshm_subscription *subscription)
{
	return subscription->root != NULL || subscription->lost != 0;
}

/* To be called before the caller is left alone with the descriptor. */
static void arm(struct cbshm_subscription *subscription)
{
	if (has_events(subscription) || varlink_message(&subscription->stream) != NULL)
		set_timer(subscription, 0);
	else
		set_timer(subscription,
			  subscription->stream.fd < 0 ? subscription->retry_at : NEVER);
}

static int watch(struct cbshm_subscription *subscription, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(subscription->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? CBSHM_ERR_SYSTEM : 0;
}

/* ---- the connection --------------------------------------------------------------------- */

/* An error that has been told is told again only after a connection. */
static void lose(struct cbshm_subscription *subscription, int error)
{
	/* It would stay in the set if a forked child has the socket, too. */
	if (varlink_is_ours(&subscription->stream))
		epoll_ctl(subscription->epoll, EPOLL_CTL_DEL, subscription->stream.fd, NULL);
	varlink_close(&subscription->stream);
	cJSON_Delete(subscription->root);
	subscription->root = NULL;
	subscription->completed = false;
	subscription->retry_at = varlink_now() + subscription->retry_us;
	if (subscription->retry_us < RETRY_MAX_US)
		subscription->retry_us *= 2;
	if (subscription->told != error)
		subscription->lost = subscription->told = error;
}

static void try_connect(struct cbshm_subscription *subscription)
{
	struct cbshm *client = subscription->client;
	const size_t size = strlen(subscription->message) + 1;
	size_t taken = 0;
	int error = varlink_open(&subscription->stream, client->socket, client->trusted,
				 client->trusted_count, varlink_now(), &subscription->call);

	if (error == 0)
		error = watch(subscription, subscription->stream.fd);
	if (error == 0)
		error = varlink_send(&subscription->stream, subscription->message, size,
				     &subscription->call, &taken);
	/* The call fits into any socket's buffer, which is empty. */
	if (error == 0 && taken < size)
		error = call_fail(&subscription->call, CBSHM_ERR_AGENT_DOWN,
				  "the agent does not take the call");
	if (error != 0)
		lose(subscription, error == CBSHM_ERR_TIMEOUT ? CBSHM_ERR_AGENT_DOWN : error);
}

static int take_reply(struct cbshm_subscription *subscription, const char *text)
{
	const cJSON *parameters, *breakers, *unknown, *complete;
	int error = answer_parse(text, &subscription->call, &subscription->root, &parameters);

	if (error != 0)
		return error;
	breakers = cJSON_GetObjectItemCaseSensitive(parameters, "breakers");
	unknown = cJSON_GetObjectItemCaseSensitive(parameters, "unknown");
	complete = cJSON_GetObjectItemCaseSensitive(parameters, "complete");
	if (!cJSON_IsArray(breakers) || !cJSON_IsArray(unknown) || !cJSON_IsBool(complete))
		return call_fail(&subscription->call, CBSHM_ERR_PROTOCOL,
				 "the agent's answer is not what io.cbshm says (Subscribe)");
	subscription->breaker = breakers->child;
	subscription->unknown = unknown->child;
	subscription->complete = cJSON_IsTrue(complete);
	subscription->retry_us = RETRY_FIRST_US;
	subscription->told = 0;
	return 0;
}

/* The next reply, if it is there. True: there is something to be told. */
static bool receive(struct cbshm_subscription *subscription)
{
	const char *text;
	int error = 0;
	size_t used;

	do {
		text = varlink_message(&subscription->stream);
		if (text != NULL) {
			error = take_reply(subscription, text);
			if (error == 0)
				varlink_drop_message(&subscription->stream);
			break;
		}
		used = subscription->stream.used - subscription->stream.begin;
		error = varlink_receive(&subscription->stream, &subscription->call);
	} while (error == 0 && subscription->stream.used - subscription->stream.begin > used);
	if (error != 0)
		lose(subscription, error);
	return has_events(subscription);
}

/* ---- events ----------------------------------------------------------------------------- */

static void forget_reply(struct cbshm_subscription *subscription)
{
	cJSON_Delete(subscription->root);
	subscription->root = NULL;
}

/* Of a reply: false if all of it has been told. */
static int next_of_reply(struct cbshm_subscription *subscription, struct cbshm_event *event)
{
	int error;

	if (subscription->breaker != NULL) {
		event->kind = CBSHM_EVENT_STATE;
		error = answer_one_state(subscription->breaker, &subscription->call, &event->state);
		subscription->breaker = subscription->breaker->next;
		if (error == 0)
			state_apply_ttl(subscription->client, &event->state);
		return error;
	}
	if (subscription->unknown != NULL) {
		const char *name = cJSON_GetStringValue(subscription->unknown);

		event->kind = CBSHM_EVENT_UNKNOWN;
		subscription->unknown = subscription->unknown->next;
		if (name == NULL || name_length(name) == 0)
			return call_fail(&subscription->call, CBSHM_ERR_PROTOCOL,
					 "the agent's answer is not what io.cbshm says (unknown)");
		strcpy(event->state.name, name);
		return 0;
	}
	if (subscription->complete && !subscription->completed) {
		event->kind = CBSHM_EVENT_COMPLETE;
		subscription->completed = true;
	}
	forget_reply(subscription);
	return 0;
}

/* True: *event is one. */
static bool next_event(struct cbshm_subscription *subscription, struct cbshm_event *event)
{
	memset(event, 0, sizeof(*event));
	if (subscription->lost != 0) {
		event->kind = CBSHM_EVENT_LOST;
		event->error = subscription->lost;
		strcpy(event->message, subscription->call.message);
		subscription->lost = 0;
		return true;
	}
	while (subscription->root != NULL) {
		int error = next_of_reply(subscription, event);

		if (error != 0) {
			lose(subscription, error);
			return next_event(subscription, event);
		}
		if (event->kind != 0)
			return true;
	}
	return false;
}

/* What there is without waiting. */
static bool poll_events(struct cbshm_subscription *subscription, struct cbshm_event *event)
{
	while (!next_event(subscription, event)) {
		if (subscription->stream.fd < 0) {
			if (varlink_now() < subscription->retry_at)
				return false;
			try_connect(subscription);
		}
		if (subscription->stream.fd >= 0 && !receive(subscription))
			return false;
	}
	return true;
}

int cbshm_subscription_next(struct cbshm_subscription *subscription, int timeout_ms,
			    struct cbshm_event *event)
{
	int64_t end;

	if (subscription == NULL || event == NULL || timeout_ms < -1)
		return CBSHM_ERR_INVALID;
	end = timeout_ms < 0 ? NEVER : varlink_now() + (int64_t)timeout_ms * 1000;
	for (;;) {
		struct pollfd descriptor = {.fd = subscription->epoll, .events = POLLIN};
		bool found = poll_events(subscription, event);

		arm(subscription);
		if (found)
			return 0;
		if (end != NEVER && varlink_now() >= end)
			return CBSHM_ERR_TIMEOUT;
		if (poll(&descriptor, 1, end == NEVER ? -1 : varlink_milliseconds_until(end)) < 0)
			return CBSHM_ERR_SYSTEM;
	}
}

/* ---- life ------------------------------------------------------------------------------- */

static char *make_message(const char *const *names, size_t count)
{
	cJSON *message = cJSON_CreateObject();
	cJSON *parameters = cJSON_AddObjectToObject(message, "parameters");
	bool complete = cJSON_AddStringToObject(message, "method", "io.cbshm.Subscribe") != NULL &&
			cJSON_AddTrueToObject(message, "more") != NULL && parameters != NULL;
	char *text = NULL;

	if (count > 0) {
		cJSON *array = cJSON_AddArrayToObject(parameters, "names");

		for (size_t i = 0; i < count; i++)
			complete = complete &&
				   cJSON_AddItemToArray(array, cJSON_CreateString(names[i]));
	}
	if (complete)
		text = cJSON_PrintUnformatted(message);
	cJSON_Delete(message);
	return text;
}

static int open_descriptor(struct cbshm_subscription *subscription)
{
	subscription->epoll = epoll_create1(EPOLL_CLOEXEC);
	subscription->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (subscription->epoll < 0 || subscription->timer < 0)
		return CBSHM_ERR_SYSTEM;
	subscription->timer_at = NEVER;
	return watch(subscription, subscription->timer);
}

int cbshm_subscribe(struct cbshm *client, const char *const *names, size_t count,
		    struct cbshm_subscription **subscription)
{
	struct cbshm_subscription *made;
	int error = 0;

	if (subscription == NULL)
		return CBSHM_ERR_INVALID;
	*subscription = NULL;
	if (client == NULL || (count != 0) != (names != NULL) || count > NAMES_MAX)
		return CBSHM_ERR_INVALID;
	for (size_t i = 0; i < count; i++) {
		if (names[i] == NULL || name_length(names[i]) == 0)
			return CBSHM_ERR_INVALID;
	}
	made = calloc(1, sizeof(*made));
	if (made == NULL)
		return CBSHM_ERR_MEMORY;
	made->client = client;
	made->stream.fd = made->epoll = made->timer = -1;
	made->retry_us = RETRY_FIRST_US;
	made->message = make_message(names, count);
	if (made->message == NULL)
		error = CBSHM_ERR_MEMORY;
	else if (strlen(made->message) > VARLINK_MESSAGE_MAX)
		error = CBSHM_ERR_INVALID;
	else
		error = open_descriptor(made);
	if (error != 0) {
		const int saved_errno = errno;

		cbshm_subscription_close(made);
		errno = saved_errno;
		return error;
	}
	arm(made); /* to connect at once */
	*subscription = made;
	return 0;
}

int cbshm_subscription_fd(const struct cbshm_subscription *subscription)
{
	return subscription->epoll;
}

void cbshm_subscription_close(struct cbshm_subscription *subscription)
{
	if (subscription == NULL)
		return;
	varlink_close(&subscription->stream);
	if (subscription->timer >= 0)
		close(subscription->timer);
	if (subscription->epoll >= 0)
		close(subscription->epoll);
	cJSON_Delete(subscription->root);
	cJSON_free(subscription->message);
	free(subscription);
}
