/*
 * target.c - takes a conninfo apart and puts it together again
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <arpa/inet.h>
#include <libpq-fe.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "agent/target.h"
#include "agent/text.h"

#define TIMEOUT_ONE     5000000 /* microseconds, where there is only one server */
#define TIMEOUT_SEVERAL 2000000 /* where another one may be better */
#define TIMEOUT_FIRST   500000  /* and has not been tried yet; twice as long each time */

struct server {
	char *host;
	char *address;
	char *port;
};

struct target {
	PQconninfoOption *options;
	struct server servers[TARGET_SERVERS_MAX];
	unsigned count;
	const char *keywords[TARGET_SETTINGS_MAX + 1];
	const char *values[TARGET_SETTINGS_MAX + 1];
	char *lists[3]; /* host, hostaddr, port as last built */
};

/* What the user has not set himself. */
static const struct {
	const char *keyword;
	const char *value;
} defaults[] = {
	{"application_name", "cbagent"},
	{"target_session_attrs", "read-write"},
	{"keepalives", "1"},
	{"keepalives_idle", "5"},
	{"keepalives_interval", "2"},
	{"keepalives_count", "3"},
	{"tcp_user_timeout", "10000"},
};

static const char *option(const PQconninfoOption *options, const char *keyword)
{
	for (; options != NULL && options->keyword != NULL; options++) {
		if (strcmp(options->keyword, keyword) == 0)
			return options->val != NULL && *options->val != '\0' ? options->val : NULL;
	}
	return NULL;
}

/* The i-th item of a list with commas; the only one counts for all, as with libpq's ports. NULL = none. */
static char *list_item(const char *list, unsigned i)
{
	char *copy, *rest, *item;

	if (list == NULL)
		return NULL;
	if (strchr(list, ',') == NULL)
		return memory_copy(list);
	copy = rest = memory_copy(list);
	item = strsep(&rest, ",");
	for (; i > 0 && item != NULL; i--)
		item = strsep(&rest, ",");
	item = item != NULL && *item != '\0' ? memory_copy(item) : NULL;
	free(copy);
	return item;
}

static unsigned list_length(const char *list)
{
	unsigned length = list != NULL ? 1 : 0;

	for (; list != NULL && (list = strchr(list, ',')) != NULL; list++)
		length++;
	return length;
}

static void split(struct target *target, const char *host, const char *address, const char *port)
{
	const unsigned hosts = list_length(host), addresses = list_length(address);

	target->count = hosts > addresses ? hosts : addresses;
	if (target->count > TARGET_SERVERS_MAX)
		target->count = TARGET_SERVERS_MAX;
	for (unsigned i = 0; i < target->count; i++) {
		target->servers[i].host = list_item(host, i);
		target->servers[i].address = list_item(address, i);
		target->servers[i].port = list_item(port, i);
	}
}

struct target *target_new(const char *conninfo)
{
	struct target *target = memory_new(1, sizeof(*target));
	PQconninfoOption *environment;
	const char *host, *address;

	target->options = PQconninfoParse(conninfo, NULL);
	if (target->options == NULL) {
		free(target);
		return NULL;
	}
	environment = PQconndefaults();
	host = option(target->options, "host");
	address = option(target->options, "hostaddr");
	if (host == NULL && address == NULL && option(target->options, "service") == NULL) {
		host = option(environment, "host");
		address = option(environment, "hostaddr");
	}
	split(target, host, address, option(target->options, "port"));
	PQconninfoFree(environment);
	return target;
}

static void server_clear(struct server *server)
{
	free(server->host);
	free(server->address);
	free(server->port);
	*server = (struct server){0};
}

void target_free(struct target *target)
{
	if (target == NULL)
		return;
	for (unsigned i = 0; i < target->count; i++)
		server_clear(&target->servers[i]);
	for (unsigned i = 0; i < 3; i++)
		free(target->lists[i]);
	PQconninfoFree(target->options);
	free(target);
}

static bool is_name(const struct server *server)
{
	struct in6_addr address;

	return server->address == NULL && server->host != NULL && server->host[0] != '/' &&
	       server->host[0] != '@' && inet_pton(AF_INET, server->host, &address) != 1 &&
	       strchr(server->host, ':') == NULL;
}

unsigned target_names(const struct target *target, const char *names[TARGET_SERVERS_MAX])
{
	unsigned count = 0;

	for (unsigned i = 0; i < target->count; i++) {
		if (is_name(&target->servers[i]))
			names[count++] = target->servers[i].host;
	}
	return count;
}

static void server_add(struct target *target, const struct server *from, const char *address)
{
	struct server *server = &target->servers[target->count];

	if (target->count == TARGET_SERVERS_MAX)
		return;
	target->count++;
	server->host = memory_copy(from->host);
	server->address = memory_copy(address);
	server->port = memory_copy(from->port);
}

unsigned target_resolve(struct target *target, const struct resolution *resolutions, unsigned count)
{
	struct server before[TARGET_SERVERS_MAX];
	const unsigned before_count = target->count;
	unsigned next = 0;

	memcpy(before, target->servers, sizeof(before));
	memset(target->servers, 0, sizeof(target->servers));
	target->count = 0;
	for (unsigned i = 0; i < before_count; i++) {
		if (!is_name(&before[i])) {
			server_add(target, &before[i], before[i].address);
		} else if (next < count) {
			for (unsigned j = 0; j < resolutions[next].count; j++)
				server_add(target, &before[i], resolutions[next].addresses[j]);
			next++;
		}
		server_clear(&before[i]);
	}
	return target->count;
}

int64_t target_timeout(const struct target *target, unsigned failures)
{
	const char *given = option(target->options, "connect_timeout");
	int64_t timeout = TIMEOUT_FIRST;

	if (given != NULL && atoi(given) > 0)
		return (int64_t)atoi(given) * 1000000;
	if (target->count <= 1)
		return TIMEOUT_ONE;
	for (; failures > 0 && timeout < TIMEOUT_SEVERAL; failures--)
		timeout *= 2;
	return timeout;
}

static unsigned put(struct target *target, unsigned at, const char *keyword, const char *value)
{
	if (at < TARGET_SETTINGS_MAX) {
		target->keywords[at] = keyword;
		target->values[at] = value;
		at++;
	}
	return at;
}

static void build_lists(struct target *target, unsigned first, unsigned count)
{
	struct text lists[3] = {{0}};

	for (unsigned i = 0; i < count; i++) {
		const struct server *server = &target->servers[(first + i) % target->count];
		const char *items[3] = {server->host, server->address, server->port};

		for (unsigned j = 0; j < 3; j++) {
			if (i > 0)
				text_add(&lists[j], ",");
			text_add(&lists[j], items[j] != NULL ? items[j] : "");
		}
	}
	for (unsigned j = 0; j < 3; j++) {
		free(target->lists[j]);
		target->lists[j] = text_take(&lists[j]);
	}
}

/* `count` servers, beginning with number `first`. */
static void build(struct target *target, unsigned first, unsigned count,
		  const char *const **keywords, const char *const **values)
{
	static const char *const list_keywords[3] = {"host", "hostaddr", "port"};
	unsigned at = 0;

	for (const PQconninfoOption *each = target->options; each->keyword != NULL; each++) {
		const bool listed = strcmp(each->keyword, "host") == 0 ||
				    strcmp(each->keyword, "hostaddr") == 0 ||
				    strcmp(each->keyword, "port") == 0;

		if (each->val != NULL && (!listed || target->count == 0))
			at = put(target, at, each->keyword, each->val);
	}
	for (size_t i = 0; i < sizeof(defaults) / sizeof(*defaults); i++) {
		if (option(target->options, defaults[i].keyword) == NULL)
			at = put(target, at, defaults[i].keyword, defaults[i].value);
	}
	at = put(target, at, "client_encoding", "UTF8");
	if (target->count > 0) {
		build_lists(target, first % target->count, count);
		for (unsigned j = 0; j < 3; j++) {
			/* A list of nothing but commas says nothing. */
			if (strspn(target->lists[j], ",") < strlen(target->lists[j]))
				at = put(target, at, list_keywords[j], target->lists[j]);
		}
	}
	target->keywords[at] = target->values[at] = NULL;
	*keywords = target->keywords;
	*values = target->values;
}

void target_settings(struct target *target, unsigned first, const char *const **keywords,
		     const char *const **values)
{
	build(target, first, target->count, keywords, values);
}

static bool is_like(const char *wanted, const char *found)
{
	return wanted == NULL || strcmp(wanted, found) == 0;
}

unsigned target_find(const struct target *target, const char *host, const char *address,
		     const char *port)
{
	for (unsigned i = 0; i < target->count; i++) {
		const struct server *server = &target->servers[i];

		if (is_like(server->host, host) && is_like(server->address, address) &&
		    is_like(server->port, port))
			return i;
	}
	return TARGET_NONE;
}

unsigned target_choice(const struct target *target)
{
	const char *wanted = option(target->options, "target_session_attrs");

	return wanted == NULL || strcmp(wanted, "read-write") == 0 || strcmp(wanted, "primary") == 0
		       ? target->count
		       : 0;
}

void target_one(struct target *target, unsigned server, const char *const **keywords,
		const char *const **values)
{
	build(target, server, 1, keywords, values);
}
