/*
 * http.c - libevent's HTTP server, kept within limits
 *
 * SPDX-License-Identifier: ISC
 *
 * The server of libevent 2.1 neither counts its connections nor ends one that sends a byte now and then. So the agent
 * makes their bufferevents itself and keeps a reference to each: one that the server has let go of has no callbacks any
 * more (bufferevent_free() sees to that), and one that has to go is shut down, which the server takes for its end.
 */
#include <config.h>

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <event2/util.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "agent/connection.h"
#include "agent/http.h"
#include "agent/log.h"
#include "agent/text.h"

#define BACKLOG     64
#define HEADERS_MAX 8192
#define BODY_MAX    4096  /* nobody needs one; this much is read and forgotten */
#define INPUT_MAX   16384 /* bytes read ahead */
#define SWEEP_EVERY 1000000
#define SWEEP_FULL  10000 /* microseconds, while there are as many connections as there may be */

struct http_connection {
	struct bufferevent *stream; /* a reference of ours */
	int64_t since;              /* CLOCK_MONOTONIC */
	bool cut;
};

struct http {
	struct event_base *base;
	struct evhttp *server;
	struct evconnlistener *listener; /* the server's */
	struct event *sweep;
	http_handler *handler;
	void *arg;
	struct http_connection connections[HTTP_CONNECTIONS_MAX];
	unsigned count;
	uint64_t cut_off;
};

struct http_request {
	struct http *http;
	struct evhttp_request *request;
};

/* A reply in parts, under way. */
struct reply {
	struct evhttp_request *request;
	struct event *turn; /* nothing was to be sent: goes on in the next turn of the loop */
	struct text text;
	http_part *part;
	http_end *end;
	void *arg;
};

/* ---- the connections -------------------------------------------------------------------- */

static void sweep_in(struct http *http, int64_t microseconds)
{
	const struct timeval delay = {.tv_sec = microseconds / 1000000,
				      .tv_usec = microseconds % 1000000};

	event_add(http->sweep, &delay);
}

/* Has the server let go of it? */
static bool is_over(const struct http_connection *connection)
{
	bufferevent_event_cb on_event;

	bufferevent_getcb(connection->stream, NULL, NULL, &on_event, NULL);
	return on_event == NULL;
}

/* The server sees an end of file, or a broken pipe, when the loop turns. */
static void cut(struct http *http, struct http_connection *connection)
{
	shutdown(bufferevent_getfd(connection->stream), SHUT_RDWR);
	connection->cut = true;
	http->cut_off++;
}

static void release_over(struct http *http)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < http->count; i++) {
		if (is_over(&http->connections[i]))
			bufferevent_decref(http->connections[i].stream);
		else
			http->connections[kept++] = http->connections[i];
	}
	http->count = kept;
}

/* They stand in the order in which they came. */
static void cut_oldest(struct http *http)
{
	for (unsigned i = 0; i < http->count; i++) {
		if (!http->connections[i].cut) {
			cut(http, &http->connections[i]);
			return;
		}
	}
}

static void cut_expired(struct http *http)
{
	const int64_t limit =
		clock_microseconds(CLOCK_MONOTONIC) - (int64_t)HTTP_WHOLE_SECONDS * 1000000;

	for (unsigned i = 0; i < http->count; i++) {
		if (!http->connections[i].cut && http->connections[i].since < limit)
			cut(http, &http->connections[i]);
	}
}

static void on_sweep(evutil_socket_t fd, short what, void *arg)
{
	struct http *http = arg;

	(void)fd;
	(void)what;
	release_over(http);
	cut_expired(http);
	if (http->count == HTTP_CONNECTIONS_MAX) {
		cut_oldest(http);
		sweep_in(http, SWEEP_FULL);
		return;
	}
	/* It was disabled because there were too many, or no descriptor was free. */
	evconnlistener_enable(http->listener);
	sweep_in(http, SWEEP_EVERY);
}

/* The server has accepted a client and wants a stream for it. */
static struct bufferevent *on_accepted(struct event_base *base, void *arg)
{
	struct http *http = arg;
	struct bufferevent *stream = NULL;

	/* A disabled listener still accepts what is waiting, if libevent is old. */
	if (http->count < HTTP_CONNECTIONS_MAX)
		stream = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
	/* NULL makes the server try it itself: it fails, or has one that is not counted. */
	if (stream == NULL)
		return NULL;
	bufferevent_setwatermark(stream, EV_READ, 0, INPUT_MAX);
	bufferevent_incref(stream);
	http->connections[http->count++] = (struct http_connection){
		.stream = stream,
		.since = clock_microseconds(CLOCK_MONOTONIC),
	};
	if (http->count == HTTP_CONNECTIONS_MAX) {
		evconnlistener_disable(http->listener);
		sweep_in(http, 0);
	}
	return stream;
}

/* No descriptor is free: the next sweep tries again. `arg` is the server's. */
static void on_accept_failed(struct evconnlistener *listener, void *arg)
{
	(void)arg;
	log_problem(LOG_LEVEL_WARNING, "http_accept_failed",
		    "metrics are served again when a descriptor is free: raise the limit of open "
		    "files (LimitNOFILE=)",
		    "error=%s", LOG_VALUE(strerror(errno)));
	evconnlistener_disable(listener);
}

/* ---- replies ---------------------------------------------------------------------------- */

static void on_complete(struct evhttp_request *request, void *arg)
{
	struct http *http = arg;

	(void)request;
	/* Closes the connection as soon as the server is through with it. */
	sweep_in(http, 0);
}

static void add_headers(struct http_request *request, const char *type)
{
	struct evkeyvalq *headers = evhttp_request_get_output_headers(request->request);

	evhttp_add_header(headers, "Content-Type", type);
	evhttp_add_header(headers, "Cache-Control", "no-store");
	evhttp_add_header(headers, "Connection", "close");
	evhttp_request_set_on_complete_cb(request->request, on_complete, request->http);
}

static const char *reason_phrase(int status)
{
	switch (status) {
	case 200:
		return "OK";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	default:
		return "Service Unavailable";
	}
}

const char *http_accept(const struct http_request *request)
{
	const char *accept =
		evhttp_find_header(evhttp_request_get_input_headers(request->request), "Accept");

	return accept != NULL ? accept : "";
}

void http_reply(struct http_request *request, int status, const char *type, const char *body)
{
	struct evbuffer *buffer = evhttp_request_get_output_buffer(request->request);

	add_headers(request, type);
	evbuffer_add(buffer, body, strlen(body));
	evhttp_send_reply(request->request, status, reason_phrase(status), NULL);
}

static void reply_free(struct reply *reply)
{
	reply->end(reply->arg);
	event_free(reply->turn);
	free(reply->text.data);
	free(reply);
}

/* The client has gone, or is cut off. A request that has lost its connection is ours to free. */
static void on_closed(struct evhttp_connection *connection, void *arg)
{
	struct reply *reply = arg;

	(void)connection;
	if (evhttp_request_get_connection(reply->request) == NULL)
		evhttp_send_reply_end(reply->request);
	reply_free(reply);
}

static void send_next(struct reply *reply);

static void on_taken(struct evhttp_connection *connection, void *arg)
{
	(void)connection;
	send_next(arg);
}

static void on_turn(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	send_next(arg);
}

static void send_next(struct reply *reply)
{
	struct evhttp_request *request = reply->request;
	struct evbuffer *buffer = evhttp_request_get_output_buffer(request);
	bool more;

	reply->text.length = 0;
	more = reply->part(&reply->text, reply->arg);
	if (reply->text.length > 0) {
		evbuffer_add(buffer, reply->text.data, reply->text.length);
		evhttp_send_reply_chunk_with_cb(request, buffer, on_taken, reply);
	} else if (more) {
		/* An event made active would run before the loop looks at anything else. */
		event_add(reply->turn, &(struct timeval){0});
	}
	if (more)
		return;
	evhttp_connection_set_closecb(evhttp_request_get_connection(request), NULL, NULL);
	evhttp_send_reply_end(request);
	reply_free(reply);
}

void http_reply_parts(struct http_request *request, const char *type, http_part *part,
		      http_end *end, void *arg)
{
	struct reply *reply;

	if (evhttp_request_get_command(request->request) == EVHTTP_REQ_HEAD) {
		http_reply(request, 200, type, "");
		end(arg);
		return;
	}
	reply = memory_new(1, sizeof(*reply));
	*reply = (struct reply){
		.request = request->request,
		.turn = evtimer_new(request->http->base, on_turn, reply),
		.part = part,
		.end = end,
		.arg = arg,
	};
	add_headers(request, type);
	evhttp_connection_set_closecb(evhttp_request_get_connection(reply->request), on_closed,
				      reply);
	evhttp_send_reply_start(reply->request, 200, reason_phrase(200));
	send_next(reply);
}

/* ---- requests --------------------------------------------------------------------------- */

static void on_request(struct evhttp_request *evrequest, void *arg)
{
	struct http *http = arg;
	struct http_request request = {.http = http, .request = evrequest};
	const enum evhttp_cmd_type command = evhttp_request_get_command(evrequest);
	const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(evrequest);
	const char *path = uri != NULL ? evhttp_uri_get_path(uri) : NULL;

	if (command != EVHTTP_REQ_GET && command != EVHTTP_REQ_HEAD) {
		evhttp_add_header(evhttp_request_get_output_headers(evrequest), "Allow",
				  "GET, HEAD");
		http_reply(&request, 405, "text/plain", "only GET and HEAD are answered here\n");
		return;
	}
	http->handler(&request, path != NULL ? path : "", http->arg);
}

/* ---- life ------------------------------------------------------------------------------- */

static bool parse_address(const char *address, struct sockaddr_storage *storage, int *length)
{
	struct sockaddr *sa = (struct sockaddr *)storage;

	*length = sizeof(*storage);
	if (evutil_parse_sockaddr_port(address, sa, length) != 0)
		return false;
	return sa->sa_family == AF_INET6 ? ((struct sockaddr_in6 *)storage)->sin6_port != 0
					 : ((struct sockaddr_in *)storage)->sin_port != 0;
}

bool http_address_valid(const char *address)
{
	struct sockaddr_storage storage;
	int length;

	return parse_address(address, &storage, &length);
}

static int start_server(struct http *http)
{
	const unsigned every = EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT |
			       EVHTTP_REQ_DELETE | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_TRACE |
			       EVHTTP_REQ_CONNECT | EVHTTP_REQ_PATCH;

	http->server = evhttp_new(http->base);
	http->sweep = evtimer_new(http->base, on_sweep, http);
	if (http->server == NULL || http->sweep == NULL)
		return -ENOMEM;
	evhttp_set_timeout(http->server, HTTP_STALL_SECONDS);
	evhttp_set_max_headers_size(http->server, HEADERS_MAX);
	evhttp_set_max_body_size(http->server, BODY_MAX);
	evhttp_set_allowed_methods(http->server, (ev_uint16_t)every);
	evhttp_set_bevcb(http->server, on_accepted, http);
	evhttp_set_gencb(http->server, on_request, http);
	return 0;
}

static int listen_at(struct http *http, const char *address)
{
	const unsigned flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE;
	struct sockaddr_storage storage;
	int length;

	if (!parse_address(address, &storage, &length))
		return -EINVAL;
	errno = 0;
	http->listener = evconnlistener_new_bind(http->base, NULL, NULL, flags, BACKLOG,
						 (struct sockaddr *)&storage, length);
	if (http->listener == NULL)
		return errno != 0 ? -errno : -ENOMEM;
	evconnlistener_set_error_cb(http->listener, on_accept_failed);
	if (evhttp_bind_listener(http->server, http->listener) != NULL)
		return 0;
	evconnlistener_free(http->listener);
	return -ENOMEM;
}

int http_new(struct event_base *base, const char *address, http_handler *handler, void *arg,
	     struct http **http, char *message, size_t message_size)
{
	struct http *made = memory_new(1, sizeof(*made));
	int rc;

	*made = (struct http){.base = base, .handler = handler, .arg = arg};
	rc = start_server(made);
	if (rc == 0)
		rc = listen_at(made, address);
	if (rc != 0) {
		snprintf(message, message_size, "cannot listen at %s: %s; change [metrics] listen",
			 address, strerror(-rc));
		http_free(made);
		return rc;
	}
	sweep_in(made, SWEEP_EVERY);
	log_event(LOG_LEVEL_INFO, "serving_metrics", "listen=%s", address);
	*http = made;
	return 0;
}

void http_free(struct http *http)
{
	if (http == NULL)
		return;
	if (http->server != NULL)
		evhttp_free(http->server);
	for (unsigned i = 0; i < http->count; i++)
		bufferevent_decref(http->connections[i].stream);
	if (http->sweep != NULL)
		event_free(http->sweep);
	free(http);
}

uint64_t http_cut_off(const struct http *http)
{
	return http->cut_off;
}
