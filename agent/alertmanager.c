/*
 * alertmanager.c - POST /api/v2/alerts to every member, with libevent's HTTP client and OpenSSL
 *
 * SPDX-License-Identifier: ISC
 *
 * A delivery is one post for each member. Each has a connection of its own, closed after the answer: alerts are rare.
 * Host names are looked up by the resolver, so the HTTP client only ever sees addresses. Nothing is decided or freed
 * from within a callback of the HTTP client: that is left to the event `step`.
 */
#include <config.h>

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/alertmanager.h"
#include "agent/config.h"
#include "agent/connection.h"
#include "agent/resolver.h"
#include "agent/text.h"

#define API_PATH      "/api/v2/alerts"
#define ANSWER_MAX    65536
#define SECRET_MAX    8192
#define SEPARATORS    ", \t\n"
#define REASON_LENGTH 512

struct member {
	char *url; /* as configured, for people */
	char *host;
	char *path;
	char *host_header;
	uint16_t port;
	bool tls;
	bool numeric; /* host is an address */
};

struct alertmanager {
	struct event_base *base;
	struct member members[ALERTMANAGER_MEMBERS_MAX];
	unsigned count;
	char *bearer_token_file;
	char *basic_auth_file;
	SSL_CTX *tls;
	char trouble[REASON_LENGTH]; /* why there can be no TLS */
	uint64_t *posts;             /* counts of the owner, by enum post_result */
};

struct post {
	struct delivery *delivery;
	const struct member *member;
	struct resolver *resolver;
	char addresses[RESOLVER_ADDRESSES_MAX][64];
	unsigned count; /* of addresses */
	unsigned next;  /* to be tried */
	struct evhttp_connection *connection;
	struct event *step;
	bool timed_out;
	bool closed; /* by the other end */
	bool answered;
	bool ended;
	enum post_result result;
	char reason[REASON_LENGTH];
};

struct delivery {
	struct alertmanager *alertmanager;
	char *alerts;
	char *authorization; /* the header, or NULL */
	int64_t deadline;
	struct event *timer;
	struct post posts[ALERTMANAGER_MEMBERS_MAX];
	unsigned running;
	delivery_done *done;
	void *arg;
};

/* ---- URLs ---- */

static const char *url_problem(const struct evhttp_uri *uri)
{
	const char *scheme = uri != NULL ? evhttp_uri_get_scheme(uri) : NULL;

	if (scheme == NULL || (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
		return "must be an http:// or https:// URL, like http://alertmanager:9093";
	if (evhttp_uri_get_host(uri) == NULL || *evhttp_uri_get_host(uri) == '\0')
		return "has no host; give one like http://alertmanager:9093";
	if (evhttp_uri_get_userinfo(uri) != NULL)
		return "must not carry a password; put user:password into a file and name it in "
		       "basic_auth_file";
	if (evhttp_uri_get_query(uri) != NULL || evhttp_uri_get_fragment(uri) != NULL)
		return "must end with its path; drop what begins with ? or #";
	if (evhttp_uri_get_port(uri) == 0 || evhttp_uri_get_port(uri) > 65535)
		return "has a port that is not from 1 to 65535";
	return NULL;
}

/* [::1] without its brackets. */
static char *plain_host(const char *host)
{
	const size_t length = strlen(host);
	char *copy;

	if (host[0] != '[' || host[length - 1] != ']')
		return memory_copy(host);
	copy = memory_copy(host + 1);
	copy[length - 2] = '\0';
	return copy;
}

static bool is_address(const char *host)
{
	unsigned char room[sizeof(struct in6_addr)];

	return inet_pton(AF_INET, host, room) == 1 || inet_pton(AF_INET6, host, room) == 1;
}

static void member_set(struct member *member, const char *url, const struct evhttp_uri *uri)
{
	const char *path = evhttp_uri_get_path(uri) != NULL ? evhttp_uri_get_path(uri) : "";
	struct text text = {0};
	size_t length = strlen(path);

	while (length > 0 && path[length - 1] == '/')
		length--;
	text_append(&text, path, length);
	text_add(&text, API_PATH);
	member->path = text_take(&text);
	member->url = memory_copy(url);
	member->tls = strcmp(evhttp_uri_get_scheme(uri), "https") == 0;
	member->host = plain_host(evhttp_uri_get_host(uri));
	member->numeric = is_address(member->host);
	member->port = evhttp_uri_get_port(uri) > 0 ? (uint16_t)evhttp_uri_get_port(uri)
		       : member->tls                ? 443
						    : 80;
	text_add(&text, evhttp_uri_get_host(uri));
	if (evhttp_uri_get_port(uri) > 0)
		text_format(&text, ":%d", evhttp_uri_get_port(uri));
	member->host_header = text_take(&text);
}

/* Takes a list apart; `members` may be NULL to check it only. */
static bool parse_urls(const char *urls, struct member *members, unsigned *count, char *reason,
		       size_t size)
{
	char *copy = memory_copy(urls), *rest = copy, *url;
	const char *problem = NULL;
	struct evhttp_uri *uri;

	*count = 0;
	*reason = '\0';
	while (problem == NULL && (url = strtok_r(rest, SEPARATORS, &rest)) != NULL) {
		uri = evhttp_uri_parse(url);
		problem = url_problem(uri);
		if (problem == NULL && *count == ALERTMANAGER_MEMBERS_MAX)
			problem = "is one more than the 16 that there may be";
		if (problem != NULL)
			snprintf(reason, size, "%s %s", url, problem);
		else if (members != NULL)
			member_set(&members[*count], url, uri);
		if (problem == NULL)
			(*count)++;
		if (uri != NULL)
			evhttp_uri_free(uri);
	}
	free(copy);
	return problem == NULL;
}

const char *post_result_name(enum post_result result)
{
	static const char *const names[POST_RESULTS] = {
		[POST_ACCEPTED] = "accepted", [POST_REFUSED] = "refused",
		[POST_STATUS] = "status",     [POST_LOOKUP] = "lookup",
		[POST_CONNECT] = "connect",   [POST_TLS] = "tls",
		[POST_TIMEOUT] = "timeout",   [POST_INTERNAL] = "internal",
	};

	return names[result];
}

bool alertmanager_check(const char *urls, char *reason, size_t size)
{
	unsigned count;

	return parse_urls(urls, NULL, &count, reason, size);
}

/* ---- credentials ---- */

/* Read anew for each delivery: such files are replaced while the agent runs. */
static char *read_secret(const char *path, char *reason, size_t size)
{
	FILE *file = fopen(path, "re");
	char *secret;
	size_t length;

	if (file == NULL) {
		snprintf(reason, size, "cannot read %.300s: %s", path, strerror(errno));
		return NULL;
	}
	secret = memory_new(1, SECRET_MAX + 1);
	length = fread(secret, 1, SECRET_MAX, file);
	fclose(file);
	while (length > 0 && strchr("\r\n", secret[length - 1]) != NULL)
		length--;
	secret[length] = '\0';
	if (length > 0 && strlen(secret) == length && strpbrk(secret, "\r\n") == NULL)
		return secret;
	snprintf(reason, size, "%.300s must hold one line and nothing else", path);
	free(secret);
	return NULL;
}

/* The header's value in *value, NULL if there is none to be sent; false: why it cannot be made. */
static bool make_authorization(const struct alertmanager *alertmanager, char **value, char *reason,
			       size_t size)
{
	const char *path = alertmanager->bearer_token_file != NULL ? alertmanager->bearer_token_file
								   : alertmanager->basic_auth_file;
	unsigned char coded[4 * ((SECRET_MAX + 2) / 3) + 1];
	struct text text = {0};
	char *secret;

	*value = NULL;
	if (path == NULL)
		return true;
	secret = read_secret(path, reason, size);
	if (secret == NULL)
		return false;
	if (path == alertmanager->bearer_token_file) {
		text_format(&text, "Bearer %s", secret);
	} else {
		EVP_EncodeBlock(coded, (const unsigned char *)secret, (int)strlen(secret));
		text_format(&text, "Basic %s", (const char *)coded);
	}
	free(secret);
	*value = text_take(&text);
	return true;
}

/* ---- TLS ---- */

static const char *tls_error(unsigned long error)
{
	const char *reason = error != 0 ? ERR_reason_error_string(error) : NULL;

	return reason != NULL ? reason : "unknown error";
}

/* Servers are verified against the system's authorities, or those of ca_file alone. */
static void start_tls(struct alertmanager *alertmanager, const char *ca_file)
{
	SSL_CTX *tls = SSL_CTX_new(TLS_client_method());
	bool ready = tls != NULL && SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) == 1;

	if (ready) {
		SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
		ready = ca_file != NULL ? SSL_CTX_load_verify_locations(tls, ca_file, NULL) == 1
					: SSL_CTX_set_default_verify_paths(tls) == 1;
	}
	if (ready) {
		alertmanager->tls = tls;
		return;
	}
	snprintf(alertmanager->trouble, sizeof(alertmanager->trouble),
		 "TLS cannot be used, ca_file is %.300s: %s", ca_file != NULL ? ca_file : "not set",
		 tls_error(ERR_peek_last_error()));
	ERR_clear_error();
	SSL_CTX_free(tls);
}

/* A client's side of TLS that insists on the member's name. */
static SSL *new_tls(const struct alertmanager *alertmanager, const struct member *member)
{
	SSL *tls = SSL_new(alertmanager->tls);
	bool bound;

	if (tls == NULL)
		return NULL;
	if (member->numeric)
		bound = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls), member->host) == 1;
	else
		bound = SSL_set1_host(tls, member->host) == 1 &&
			SSL_set_tlsext_host_name(tls, member->host) == 1;
	if (bound)
		return tls;
	SSL_free(tls);
	return NULL;
}

/* ---- one post ---- */

static void post_end(struct post *post, enum post_result result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* What became of it; for good when on_step() runs. */
static void post_end(struct post *post, enum post_result result, const char *format, ...)
{
	const int length =
		snprintf(post->reason, sizeof(post->reason), "%.200s: ", post->member->url);
	va_list args;

	va_start(args, format);
	vsnprintf(post->reason + length, sizeof(post->reason) - (size_t)length, format, args);
	va_end(args);
	post->result = result;
	event_active(post->step, EV_TIMEOUT, 0);
}

static void post_drop_connection(struct post *post)
{
	if (post->connection != NULL)
		evhttp_connection_free(post->connection);
	post->connection = NULL;
}

/* Why a connection has brought no answer. */
static void no_answer(struct post *post, int error)
{
	struct bufferevent *buffer = evhttp_connection_get_bufferevent(post->connection);
	SSL *tls = post->member->tls ? bufferevent_openssl_get_ssl(buffer) : NULL;
	const char *address = post->addresses[post->next - 1];
	long verified = tls != NULL ? SSL_get_verify_result(tls) : X509_V_OK;
	unsigned long tls_problem = tls != NULL ? bufferevent_get_openssl_error(buffer) : 0;

	if (verified != X509_V_OK)
		post_end(post, POST_TLS, "its certificate is refused: %s",
			 X509_verify_cert_error_string(verified));
	else if (tls_problem != 0)
		post_end(post, POST_TLS, "TLS: %s", tls_error(tls_problem));
	else if (post->closed)
		post_end(post, POST_CONNECT, "%s has closed the connection without an answer",
			 address);
	else
		post_end(post, post->timed_out ? POST_TIMEOUT : POST_CONNECT,
			 "no answer from %s%s%s", address, error != 0 ? ": " : "",
			 error != 0 ? strerror(error) : "");
}

/* What a member that is well says of alerts that are not. */
static bool is_refusal(int code)
{
	return code == 400 || code == 413 || code == 422;
}

static void on_answer(struct evhttp_request *request, void *arg)
{
	const int error = errno;
	struct post *post = arg;
	const int code = request != NULL ? evhttp_request_get_response_code(request) : 0;
	char said[160] = "";
	ev_ssize_t length;

	if (code == 0) {
		no_answer(post, error);
		return;
	}
	post->answered = true;
	length = evbuffer_copyout(evhttp_request_get_input_buffer(request), said, sizeof(said) - 1);
	said[length > 0 ? length : 0] = '\0';
	if (code >= 200 && code <= 299)
		post_end(post, POST_ACCEPTED, "status %d", code);
	else
		post_end(post, is_refusal(code) ? POST_REFUSED : POST_STATUS, "status %d: %s", code,
			 said);
}

/* Before on_answer(), which is not told why there is none. */
static void on_request_error(enum evhttp_request_error error, void *arg)
{
	struct post *post = arg;

	post->timed_out = error == EVREQ_HTTP_TIMEOUT;
	post->closed = error == EVREQ_HTTP_EOF;
}

static struct evhttp_request *new_request(struct post *post)
{
	struct evhttp_request *request = evhttp_request_new(on_answer, post);
	struct evkeyvalq *headers;

	if (request == NULL)
		return NULL;
	evhttp_request_set_error_cb(request, on_request_error);
	headers = evhttp_request_get_output_headers(request);
	evhttp_add_header(headers, "Host", post->member->host_header);
	evhttp_add_header(headers, "Content-Type", "application/json");
	evhttp_add_header(headers, "Connection", "close");
	evhttp_add_header(headers, "User-Agent", "cbagent/" PACKAGE_VERSION);
	if (post->delivery->authorization != NULL)
		evhttp_add_header(headers, "Authorization", post->delivery->authorization);
	evbuffer_add(evhttp_request_get_output_buffer(request), post->delivery->alerts,
		     strlen(post->delivery->alerts));
	return request;
}

/* NULL: no TLS. */
static struct evhttp_connection *new_connection(struct post *post, const char *address)
{
	struct alertmanager *alertmanager = post->delivery->alertmanager;
	struct bufferevent *buffer;
	SSL *tls;

	if (!post->member->tls)
		return evhttp_connection_base_new(alertmanager->base, NULL, address,
						  post->member->port);
	tls = alertmanager->tls != NULL ? new_tls(alertmanager, post->member) : NULL;
	if (tls == NULL)
		return NULL;
	buffer = bufferevent_openssl_socket_new(alertmanager->base, -1, tls,
						BUFFEREVENT_SSL_CONNECTING,
						BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
	if (buffer == NULL) {
		SSL_free(tls);
		return NULL;
	}
	return evhttp_connection_base_bufferevent_new(alertmanager->base, NULL, buffer, address,
						      post->member->port);
}

/* Addresses share what time there is, so that a silent one leaves some to the others. */
static void connect_next(struct post *post)
{
	const char *address = post->addresses[post->next++];
	const int64_t left = post->delivery->deadline - clock_microseconds(CLOCK_MONOTONIC);
	const int64_t share = left / (post->count - post->next + 1) + 1;
	const struct timeval timeout = {.tv_sec = share / 1000000, .tv_usec = share % 1000000};
	struct evhttp_request *request;

	post->timed_out = post->closed = false;
	post->connection = new_connection(post, address);
	if (post->connection == NULL) {
		post->next = post->count;
		post_end(post, POST_INTERNAL, "%s", post->delivery->alertmanager->trouble);
		return;
	}
	evhttp_connection_set_timeout_tv(post->connection, &timeout);
	evhttp_connection_set_max_headers_size(post->connection, ANSWER_MAX);
	evhttp_connection_set_max_body_size(post->connection, ANSWER_MAX);
	request = new_request(post);
	errno = 0;
	if (request == NULL || evhttp_make_request(post->connection, request, EVHTTP_REQ_POST,
						   post->member->path) != 0)
		post_end(post, POST_INTERNAL, "no request could be made to %s", address);
}

static void on_resolved(const struct resolution *resolutions, unsigned count, void *arg)
{
	struct post *post = arg;

	assert(count == 1);
	post->count = resolutions->count;
	memcpy(post->addresses, resolutions->addresses, sizeof(post->addresses));
	if (post->count == 0)
		post_end(post, POST_LOOKUP, "cannot look up the host %.200s: %s",
			 post->member->host, resolutions->error);
	else
		connect_next(post);
}

static void post_start(struct post *post)
{
	const char *const host = post->member->host;

	if (post->member->numeric) {
		post->count = 1;
		snprintf(post->addresses[0], sizeof(post->addresses[0]), "%s", host);
		connect_next(post);
		return;
	}
	post->resolver =
		resolver_start(post->delivery->alertmanager->base, &host, 1, on_resolved, post);
	if (post->resolver == NULL)
		post_end(post, POST_INTERNAL, "no thread could be started to look up the host");
}

/* ---- the delivery ---- */

static enum delivery_end end_of(enum post_result result)
{
	return result == POST_ACCEPTED  ? DELIVERY_ACCEPTED
	       : result == POST_REFUSED ? DELIVERY_REFUSED
					: DELIVERY_FAILED;
}

static void delivery_end(struct delivery *delivery)
{
	const struct post *worst = &delivery->posts[0];

	for (unsigned i = 1; i < delivery->alertmanager->count; i++) {
		if (end_of(delivery->posts[i].result) > end_of(worst->result))
			worst = &delivery->posts[i];
	}
	event_del(delivery->timer);
	delivery->done(end_of(worst->result), worst->result == POST_ACCEPTED ? "" : worst->reason,
		       delivery->arg);
}

static void post_ended(struct post *post)
{
	post->ended = true;
	post->delivery->alertmanager->posts[post->result]++;
	post_drop_connection(post);
	resolver_free(post->resolver);
	post->resolver = NULL;
	event_del(post->step);
	if (--post->delivery->running == 0)
		delivery_end(post->delivery);
}

static void on_step(evutil_socket_t fd, short what, void *arg)
{
	struct post *post = arg;

	(void)fd;
	(void)what;
	if (post->ended)
		return;
	post_drop_connection(post);
	if (!post->answered && post->next < post->count)
		connect_next(post);
	else
		post_ended(post);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct delivery *delivery = arg;
	const unsigned count = delivery->alertmanager->count;
	bool last;

	(void)fd;
	(void)what;
	for (unsigned i = 0; i < count; i++) {
		struct post *post = &delivery->posts[i];

		if (post->ended)
			continue;
		if (!event_pending(post->step, EV_TIMEOUT, NULL))
			post_end(post, POST_TIMEOUT, "no answer in time");
		/* The last one ends the delivery, which may be gone then. */
		last = delivery->running == 1;
		post_ended(post);
		if (last)
			return;
	}
}

/* Nothing can be sent: the same end for all, as soon as the loop turns. */
static void fail_all(struct delivery *delivery, const char *reason)
{
	for (unsigned i = 0; i < delivery->alertmanager->count; i++)
		post_end(&delivery->posts[i], POST_INTERNAL, "%s", reason);
}

struct delivery *alertmanager_deliver(struct alertmanager *alertmanager, const char *alerts,
				      int64_t timeout, delivery_done *done, void *arg)
{
	struct delivery *delivery = memory_new(1, sizeof(*delivery));
	const struct timeval delay = {.tv_sec = timeout / 1000000, .tv_usec = timeout % 1000000};
	char reason[REASON_LENGTH];

	delivery->alertmanager = alertmanager;
	delivery->alerts = memory_copy(alerts);
	delivery->done = done;
	delivery->arg = arg;
	delivery->deadline = clock_microseconds(CLOCK_MONOTONIC) + timeout;
	delivery->running = alertmanager->count;
	delivery->timer = evtimer_new(alertmanager->base, on_deadline, delivery);
	event_add(delivery->timer, &delay);
	for (unsigned i = 0; i < alertmanager->count; i++) {
		delivery->posts[i].delivery = delivery;
		delivery->posts[i].member = &alertmanager->members[i];
		delivery->posts[i].step =
			evtimer_new(alertmanager->base, on_step, &delivery->posts[i]);
	}
	if (!make_authorization(alertmanager, &delivery->authorization, reason, sizeof(reason))) {
		fail_all(delivery, reason);
		return delivery;
	}
	for (unsigned i = 0; i < alertmanager->count; i++)
		post_start(&delivery->posts[i]);
	return delivery;
}

void delivery_free(struct delivery *delivery)
{
	if (delivery == NULL)
		return;
	for (unsigned i = 0; i < delivery->alertmanager->count; i++) {
		post_drop_connection(&delivery->posts[i]);
		resolver_free(delivery->posts[i].resolver);
		event_free(delivery->posts[i].step);
	}
	event_free(delivery->timer);
	free(delivery->authorization);
	free(delivery->alerts);
	free(delivery);
}

/* ---- the members ---- */

struct alertmanager *alertmanager_new(struct event_base *base, const struct config *config,
				      uint64_t posts[POST_RESULTS])
{
	struct alertmanager *alertmanager = memory_new(1, sizeof(*alertmanager));
	bool tls = false;

	alertmanager->base = base;
	alertmanager->posts = posts;
	parse_urls(config->alertmanager_url, alertmanager->members, &alertmanager->count,
		   alertmanager->trouble, sizeof(alertmanager->trouble));
	if (alertmanager->count == 0) {
		alertmanager_free(alertmanager);
		return NULL;
	}
	alertmanager->bearer_token_file = memory_copy(config->bearer_token_file);
	alertmanager->basic_auth_file = memory_copy(config->basic_auth_file);
	for (unsigned i = 0; i < alertmanager->count; i++)
		tls = tls || alertmanager->members[i].tls;
	if (tls)
		start_tls(alertmanager, config->ca_file);
	return alertmanager;
}

void alertmanager_free(struct alertmanager *alertmanager)
{
	if (alertmanager == NULL)
		return;
	for (unsigned i = 0; i < alertmanager->count; i++) {
		free(alertmanager->members[i].url);
		free(alertmanager->members[i].host);
		free(alertmanager->members[i].path);
		free(alertmanager->members[i].host_header);
	}
	free(alertmanager->bearer_token_file);
	free(alertmanager->basic_auth_file);
	SSL_CTX_free(alertmanager->tls);
	free(alertmanager);
}
