/*
 * http.h - a small HTTP server for scrapers and probes: GET and HEAD, one request a connection
 *
 * SPDX-License-Identifier: ISC
 *
 * Knows HTTP and nothing of what it serves. Whoever connects can cost the agent a bounded number of descriptors,
 * bytes and turns of the event loop: the oldest connection gives way to a new one when there are too many, and each is
 * cut off after a while, whatever it does.
 */
#ifndef AGENT_HTTP_H
#define AGENT_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event_base;
struct http;
struct http_request;
struct text;

#define HTTP_CONNECTIONS_MAX 16
#define HTTP_STALL_SECONDS   10 /* without any progress */
#define HTTP_WHOLE_SECONDS   60 /* from accept to close */

/* Answers a GET or HEAD of a path with exactly one http_reply() or http_reply_parts(), before it returns. */
typedef void http_handler(struct http_request *request, const char *path, void *arg);

/* Is this an address to listen at, 127.0.0.1:9847 or [::1]:9847? Names are not looked up. */
bool http_address_valid(const char *address);

/* Binds and begins to accept. Returns 0 or -errno; then *message says what is wrong and what to do. */
int http_new(struct event_base *base, const char *address, http_handler *handler, void *arg,
	     struct http **http, char *message, size_t message_size);

/* Ends all connections at once. NULL is fine. */
void http_free(struct http *http);

/* Connections that had to give way to others, or were cut off because they took too long. */
uint64_t http_cut_off(const struct http *http);

/* The request's Accept header, "" if it has none. */
const char *http_accept(const struct http_request *request);

/* Replies at once with a short text. */
void http_reply(struct http_request *request, int status, const char *type, const char *body);

/*
 * Replies with a text made in parts: `part` appends the next one (some ten kilobytes, or nothing for this time) and
 * returns whether there is more. It is called when the client has taken the last one, from the event loop, and never
 * waits. `end` is called once, after the last part or when the client has gone; both get `arg`.
 */
typedef bool http_part(struct text *text, void *arg);
typedef void http_end(void *arg);
void http_reply_parts(struct http_request *request, const char *type, http_part *part,
		      http_end *end, void *arg);

#endif /* AGENT_HTTP_H */
